"""Answers in OpenAI's formats."""

import time
from typing import Any, Dict, List, Optional

from longmem_fairseq.serving.completion import Chunk, TokenInfo


class Format:
    """Of the answers to one request.

    Args:
        chat: whether to /v1/chat/completions
        model: its name
        number: of the request
    """

    def __init__(self, chat: bool, model: str, number: int):
        self.chat, self.created = chat, int(time.time())
        prefix, self.kind = ("chatcmpl", "chat.completion") if chat else ("cmpl", "text_completion")
        self.head = {"id": f"{prefix}-{number}", "created": self.created, "model": model}

    def answer(self, chunks: List[Chunk]) -> Dict[str, Any]:
        """The whole of it."""
        choices = []
        for index in range(1 + max(chunk.index for chunk in chunks)):
            pieces = [chunk for chunk in chunks if chunk.index == index]
            infos = None
            if pieces[-1].tokens is not None:
                infos = [info for chunk in pieces for info in chunk.tokens]
            text = "".join(chunk.text for chunk in pieces)
            choices.append(self._choice(pieces[-1]._replace(text=text, tokens=infos), "message"))
        return {**self.head, "object": self.kind, "choices": choices, "usage": usage(chunks)}

    def piece(self, chunk: Chunk) -> Dict[str, Any]:
        """One of a stream."""
        return {**self._stream_head(), "choices": [self._choice(chunk, "delta")]}

    def usage_piece(self, chunks: List[Chunk]) -> Dict[str, Any]:
        """The last of a stream that is asked for it."""
        return {**self._stream_head(), "choices": [], "usage": usage(chunks)}

    def _stream_head(self) -> Dict[str, Any]:
        return {**self.head, "object": self.kind + (".chunk" if self.chat else "")}

    def _choice(self, chunk: Chunk, message: str) -> Dict[str, Any]:
        choice = {"index": chunk.index, "finish_reason": chunk.finish_reason}
        if self.chat:
            choice[message] = {"role": "assistant", "content": chunk.text}
            choice["logprobs"] = _chat_logprobs(chunk.tokens)
        else:
            choice["text"], choice["logprobs"] = chunk.text, _logprobs(chunk.tokens)
        if chunk.retrieved is not None:
            choice["retrieved"] = chunk.retrieved
        return choice


def usage(chunks: List[Chunk]) -> Dict[str, int]:
    """Tokens that were read and written; the symbol before a document is not counted."""
    prompt, completion = (sum(chunk.num_tokens[i] for chunk in chunks) for i in (0, 1))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _logprobs(infos: Optional[List[TokenInfo]]) -> Optional[Dict]:
    if infos is None:
        return None
    return {
        "tokens": [info.text for info in infos],
        "token_logprobs": [info.log_prob for info in infos],
        "top_logprobs": [dict(reversed(info.top)) for info in infos],  # of one text, the likeliest
        "text_offset": [info.offset for info in infos],
    }


def _chat_logprobs(infos: Optional[List[TokenInfo]]) -> Optional[Dict]:
    if infos is None:
        return None

    def entry(text: str, log_prob: float) -> Dict:
        return {"token": text, "logprob": log_prob, "bytes": list(text.encode())}

    return {
        "content": [
            {**entry(info.text, info.log_prob), "top_logprobs": [entry(*top) for top in info.top]}
            for info in infos
        ]
    }
