"""Answers a request with one model, piece by piece."""

from typing import Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from longmem_fairseq.api.decoding import Draw, Token, decode
from longmem_fairseq.api.hub_interface import LongMem
from longmem_fairseq.api.passages import Passage, read_passages
from longmem_fairseq.api.scoring import Row, score_rows
from longmem_fairseq.api.text_stream import TextStream
from longmem_fairseq.serving.requests import Completion

MOST_PASSAGES = 10  # of an answer


class TokenInfo(NamedTuple):
    """Its text and where that begins, its log-probability (nats), and the most likely tokens."""

    text: str
    offset: int
    log_prob: float
    top: List[Tuple[str, float]]


class Chunk(NamedTuple):
    """A piece of the choice *index*: text, and tokens if they are asked for.

    The last one has the *finish_reason*, how many tokens were read and written, and the passages.
    """

    index: int
    text: str
    tokens: Optional[List[TokenInfo]]
    finish_reason: Optional[str] = None
    num_tokens: Tuple[int, int] = (0, 0)
    retrieved: Optional[List[Dict]] = None


def complete(
    lm: LongMem,
    request: Completion,
    check: Callable[[], None],
    emit: Callable[[Chunk], None],
) -> None:
    """Answers every prompt of a request.

    Args:
        check: is called before each token; an exception ends the answer
        emit: takes the pieces
    """
    for index in range(len(request.prompts)):
        check()
        _Choice(lm, request, index, emit).run(check)


class _Choice:
    """The answer to one prompt of a request."""

    def __init__(self, lm: LongMem, request: Completion, index: int, emit: Callable[[Chunk], None]):
        self.lm, self.request, self.index, self.emit = lm, request, index, emit
        self.prompt = request.prompts[index]
        self.stream = TextStream(lm.tokenizer, request.stop)
        self.tokens: List[Token] = []
        self.start = 0  # characters of the prompt before the answer
        self.sent_text = self.sent_tokens = 0
        self.passages: Dict[Tuple, Tuple[Passage, float]] = {}
        self.heads: Set[int] = set()  # that read them

    def run(self, check: Callable[[], None]) -> None:
        request, lm = self.request, self.lm
        if request.echo:
            self._echo()
        reason = "length"
        if request.max_tokens > 0:

            def on_token(row: int, token: Token) -> bool:
                check()
                self.tokens.append(token)
                stopped = self.stream.push(token.index)
                self._send(self.stream.settled)
                return stopped

            draw = Draw(request.temperature, 0, request.top_p, request.seed, lm.device)
            look = self._look if request.retrieved else None
            top = min(max(request.top or 0, 1), len(lm.dictionary))
            prompt = lm.with_excerpts(self.prompt, request.excerpts)
            (reason,) = decode(
                *(lm.decoder, lm.tokenizer, [prompt], request.max_tokens, on_token),
                *(draw, top, request.stop, look),
            )
            self.stream.finish()
        self._send(len(self.stream.text), reason)

    def _send(self, settled: int, reason: Optional[str] = None) -> None:
        """Emits all that is settled and has not been sent."""
        text = self.stream.text[self.sent_text : settled]
        infos = None
        if self.request.top is not None:
            infos, pieces = [], self.stream.pieces
            while self.sent_tokens < len(pieces):
                piece, number = pieces[self.sent_tokens], self.sent_tokens
                if reason is None and piece.offset + len(piece.text) > settled:
                    break
                infos.append(self._info(self.tokens[number], piece.text, self.start + piece.offset))
                self.sent_tokens += 1
        self.sent_text = settled
        if reason is not None:
            counts = (len(self.prompt) - 1, len(self.tokens))
            passages = self._retrieved() if self.request.retrieved else None
            self.emit(Chunk(self.index, text, infos, reason, counts, passages))
        elif text or infos:
            self.emit(Chunk(self.index, text, infos))

    def _echo(self) -> None:
        """Emits the prompt."""
        indices = self.prompt[1:].tolist()
        pieces, infos = self.lm.tokenizer.pieces(indices), None
        if self.request.top is not None:
            top = min(max(self.request.top, 1), len(self.lm.dictionary))
            (scored,) = score_rows(self.lm, [Row(self.prompt, len(indices))], top)
            tokens = zip(indices, *(part.tolist() for part in scored), strict=True)
            infos, offset = [], 0
            for piece, (index, log_prob, choices, likely) in zip(pieces, tokens, strict=True):
                infos.append(self._info(Token(index, log_prob, choices, likely), piece, offset))
                offset += len(piece)
        self.start = sum(len(piece) for piece in pieces)
        self.emit(Chunk(self.index, "".join(pieces), infos))

    def _info(self, token: Token, text: str, offset: int) -> TokenInfo:
        likely = zip(token.choices, token.choice_log_probs, strict=True)
        top = [(self.lm.tokenizer.pieces([i])[0], p) for i, p in likely][: self.request.top]
        return TokenInfo(text, offset, token.log_prob, top)

    def _look(self, lookup, pointer, bank, num_tokens: int) -> None:
        """Notes the passages that were read for a new token, the last one of *num_tokens*."""
        attention = self.lm.decoder.memory_attention
        reading = lookup, pointer, bank, num_tokens
        for passage in read_passages(*reading, attention, self.lm.tokenizer)[-1]:
            self.heads.add(passage.head)
            place = (passage.document, passage.offset, passage.text)
            share = self.passages.get(place, (passage, 0.0))[1]
            self.passages[place] = passage, share + passage.gate * passage.weight

    def _retrieved(self) -> List[Dict]:
        """The passages with the largest shares of the heads' attention, over all tokens."""
        best = sorted(self.passages.values(), key=lambda shared: -shared[1])[:MOST_PASSAGES]
        whole = max(1, len(self.tokens)) * max(1, len(self.heads))
        return [
            {
                **{name: getattr(passage, name) for name in ("document", "offset")},
                **{name: getattr(passage, name) for name in ("before", "text", "after")},
                "share": share / whole,
            }
            for passage, share in best
        ]
