"""Requests for a completion: their fields, and the values that these may have."""

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence

from torch import Tensor

from longmem_fairseq.api.generation import check_generation
from longmem_fairseq.api.hub_interface import LongMem
from longmem_fairseq.api.prompts import document_tokens
from longmem_fairseq.api.remembering import check_excerpts
from longmem_fairseq.serving.errors import RequestError
from longmem_fairseq.utils.argument_error import ArgumentError

MOST_ALTERNATIVES = 20  # that logprobs may ask for
# fields of OpenAI's that are refused unless they ask for nothing
NEUTRAL = {
    "n": (1,),
    "best_of": (1,),
    "suffix": ("",),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
}
IGNORED = ("user", "store", "metadata", "tool_choice", "parallel_tool_calls")
COMMON = ("model", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "logprobs")
COMMON += ("stream_options", "retrieved", "excerpts")
COMPLETION = ("prompt", "echo", "special_tokens", *COMMON)
CHAT = ("messages", "max_completion_tokens", "top_logprobs", *COMMON)


@dataclass
class Completion:
    """A request for the continuation of prompts.

    Args:
        prompts: dictionary indices, those before a document included; a choice for each
        top: how many of the most likely tokens are told for each token; None: nothing of tokens
        others: see OpenAI's API; ``retrieved``: passages that were read for the answer; ``excerpts``:
            tokens of memory that are read again before the prompt
    """

    prompts: List[Tensor]
    max_tokens: int
    temperature: float
    top_p: float
    seed: Optional[int]
    stop: List[str]
    top: Optional[int]
    echo: bool
    stream: bool
    include_usage: bool
    retrieved: bool
    excerpts: int


def completion_of(lm: LongMem, body: Dict[str, Any]) -> Completion:
    """A request to /v1/completions.

    Raises:
        RequestError: a field is missing, unknown, or not what it has to be
    """
    _check_fields(body, COMPLETION)
    prompt = body.get("prompt")
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise RequestError(
            f"prompt ({_short(prompt)}) must be a text, or a list of texts", param="prompt"
        )
    echo = _field(body, "echo", _flag, False)
    special = _field(body, "special_tokens", _flag, False)
    least = 0 if echo else 1
    return Completion(
        prompts=[_prompt(lm, text, special) for text in texts],
        max_tokens=_field(body, "max_tokens", _whole(least), 16),
        top=_field(body, "logprobs", _whole(0, MOST_ALTERNATIVES), None),
        echo=echo,
        **_common(lm, body),
    )


def chat_of(lm: LongMem, body: Dict[str, Any]) -> Completion:
    """A request to /v1/chat/completions.

    Raises:
        RequestError: see :func:`completion_of`; or the model has no chat template
    """
    _check_fields(body, CHAT)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError(f"messages ({_short(messages)}) must be a list", param="messages")
    for message in messages:
        fields = message if isinstance(message, dict) else {}
        if not all(isinstance(fields.get(name), str) for name in ("role", "content")):
            wanted = '{"role": a text, "content": a text}'
            raise RequestError(f"messages: {_short(message)} must be {wanted}", param="messages")
    most = _field(body, "max_tokens", _whole(1), 512)
    top = _field(body, "top_logprobs", _whole(0, MOST_ALTERNATIVES), 0)
    return Completion(
        prompts=[_chat_prompt(lm, messages)],
        max_tokens=_field(body, "max_completion_tokens", _whole(1), most),
        top=top if _field(body, "logprobs", _flag, False) else None,
        echo=False,
        **_common(lm, body),
    )


def _common(lm: LongMem, body: Dict[str, Any]) -> Dict[str, Any]:
    """Fields that both kinds of request have."""
    stop = body.get("stop")
    stop = [stop] if isinstance(stop, str) else ([] if stop is None else stop)
    if not isinstance(stop, list) or not all(isinstance(text, str) for text in stop):
        raise RequestError(
            f"stop ({_short(stop)}) must be a text, or a list of texts", param="stop"
        )
    temperature = _field(body, "temperature", _number, 1.0)
    top_p = _field(body, "top_p", _number, 1.0)
    seed = _field(body, "seed", _whole(-(2**63), 2**63 - 1), None)
    # the most likely token is among those of any probability
    drawn = top_p if temperature > 0 and top_p < 1 else 0.0
    try:
        check_generation(1, temperature, 0, drawn, 1, seed, stop)
    except ArgumentError as error:
        raise RequestError(str(error), param=error.argument) from None
    if not 0 < top_p <= 1:
        raise RequestError(f"top_p ({top_p}) must be above 0 and at most 1", param="top_p")
    options = _field(body, "stream_options", _object, {})
    return {
        "temperature": temperature,
        "top_p": drawn,
        "seed": seed,
        "stop": stop,
        "stream": _field(body, "stream", _flag, False),
        "include_usage": options.get("include_usage") is True,
        "retrieved": _field(body, "retrieved", _flag, False),
        "excerpts": _excerpts(lm, body),
    }


def _excerpts(lm: LongMem, body: Dict[str, Any]) -> int:
    """Tokens of memory that are read again; 0 where the request does not ask for any."""
    max_tokens = _field(body, "excerpts", _whole(0), 0)
    if max_tokens == 0:
        return 0
    if lm.decoder.memory is None:
        raise RequestError("excerpts: this model has no memory", param="excerpts")
    try:
        check_excerpts(max_tokens)
    except ArgumentError as error:
        raise RequestError(str(error), param="excerpts") from None
    return max_tokens


def _check_fields(body: Dict[str, Any], known: Sequence[str]) -> None:
    for name, value in body.items():
        if name in NEUTRAL:
            if value is not None and value not in NEUTRAL[name]:
                raise RequestError(
                    f"{name} ({_short(value)}) is not supported: leave it out", param=name
                )
        elif name not in known and name not in IGNORED:
            names = ", ".join(known)
            raise RequestError(
                f"{_short(name)} is no field of a request: expected {names}", param=name
            )


def _prompt(lm: LongMem, text: str, special_tokens: bool) -> Tensor:
    if not text:
        raise RequestError("the prompt is empty", param="prompt")
    try:
        return document_tokens(lm.tokenizer, text, special_tokens)[0]
    except ValueError as error:
        raise RequestError(f"prompt: {error}", param="prompt") from None


def _chat_prompt(lm: LongMem, messages: List[Dict[str, str]]) -> Tensor:
    """The prompt that the model's template writes of the messages, its beginning included."""
    if lm.tokenizer.ids is None or lm.tokenizer.ids.chat_template is None:
        message = "this model has no chat template: use /v1/completions"
        raise RequestError(message, param="messages", code="no_chat_template")
    try:
        spelled = lm.tokenizer.spelled_chat(messages)
        return document_tokens(lm.tokenizer, spelled, special_tokens=True, bare=True)[0]
    except ValueError as error:
        raise RequestError(f"messages: {error}", param="messages") from None


def _field(body: Dict[str, Any], name: str, read: Callable[[Any], Any], default: Any) -> Any:
    """A field as *read*, which raises ValueError with a description of valid values."""
    value = body.get(name)
    if value is None:
        return default
    try:
        return read(value)
    except ValueError as error:
        raise RequestError(f"{name} ({_short(value)}) must be {error}", param=name) from None


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError("a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("a smaller number") from None


def _object(value: Any) -> Dict:
    if not isinstance(value, dict):
        raise ValueError("an object")
    return value


def _whole(least: int, most: int = 10**6) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return value

    return read


def _short(value: Any) -> str:
    """As in a message of one line."""
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.encode(errors="replace").decode().split())
    return text if len(text) <= 60 else text[:60] + "..."
