"""Continuing one prompt as a text: the most likely tokens, a beam search, or draws."""

import math
from typing import Callable, Optional, Sequence

import torch
from torch import Tensor

from longmem_fairseq.api.beam_search import BeamSearch
from longmem_fairseq.api.decoding import Draw, Token, decode, end_indices
from longmem_fairseq.api.text_stream import TextStream
from longmem_fairseq.models.memory_decoder import MemoryDecoder
from longmem_fairseq.tokenizers import Tokenizer
from longmem_fairseq.utils.argument_error import ArgumentError

LOWEST_TEMPERATURE = 1e-3  # as good as 0; numbers divided by much less overflow


@torch.no_grad()
def generate(
    decoder: MemoryDecoder,
    tokenizer: Tokenizer,
    prompt: Tensor,
    max_new_tokens: int,
    draw: Draw,
    beam: int = 1,
    stop: Sequence[str] = (),
    on_step: Callable[[], None] = lambda: None,
) -> str:
    """The text after a prompt, up to the first end or stop string; the memory is afterwards as it was.

    Args:
        prompt: 1 x T, at least one token
        beam, stop, max_new_tokens: see :meth:`LongMem.generate`
        draw: the choice of a token, with a beam of 1
        on_step: is called after every step
    """
    stream = TextStream(tokenizer, stop)

    def on_token(row: int, token: Token) -> bool:
        on_step()
        return stream.push(token.index)

    if beam == 1:
        decode(decoder, tokenizer, [prompt[0]], max_new_tokens, on_token, draw, stop=stop)
    else:
        search = BeamSearch(decoder, tokenizer, max_new_tokens, stop, on_step)
        ends = end_indices(tokenizer, stop)
        for index in search.search(prompt, beam).tolist():
            if index in ends or stream.push(index):
                break
    stream.finish()
    return stream.text


def check_generation(
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    beam: int,
    seed: Optional[int],
    stop: Sequence[str],
) -> None:
    """Checks the arguments of :meth:`LongMem.generate`.

    Raises:
        ArgumentError: one is out of range, or two do not go together
    """
    for name, value, least in (
        ("max_new_tokens", max_new_tokens, 1),
        ("top_k", top_k, 0),
        ("beam", beam, 1),
    ):
        if value < least:
            raise ArgumentError(f"{{{name}}} ({value}) must be at least {least}")
    if temperature != 0 and not LOWEST_TEMPERATURE <= temperature < math.inf:  # nor is it NaN
        raise ArgumentError(
            f"{{temperature}} ({temperature}) must be 0, or finite and at least {LOWEST_TEMPERATURE}"
        )
    if not 0 <= top_p <= 1:
        raise ArgumentError(f"{{top_p}} ({top_p}) must be between 0 and 1")
    if temperature == 0 and (top_k or top_p):
        raise ArgumentError(
            "{top_k} and {top_p} say what is drawn from: give a {temperature} above 0 too"
        )
    if temperature > 0 and beam > 1:
        raise ArgumentError(
            f"{{beam}} ({beam}) searches, {{temperature}} ({temperature}) draws: give one"
        )
    if seed is not None and not -(2**63) <= seed < 2**64:
        raise ArgumentError(f"{{seed}} ({seed}) must be a number of 64 bits")
    if "" in stop:
        raise ArgumentError("{stop} holds an empty string, which every text contains")
