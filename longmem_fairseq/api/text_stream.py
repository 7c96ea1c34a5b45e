"""The text of tokens that come one by one, up to the first of some strings."""

from typing import List, NamedTuple, Sequence

from longmem_fairseq.tokenizers import Tokenizer


class Piece(NamedTuple):
    """Where the text of a token begins, and the text; a character of several tokens is that of the
    last of them."""

    offset: int
    text: str


class TextStream:
    """Decodes tokens and looks for the strings that end the text.

    Args:
        tokenizer: of the tokens' dictionary
        stop: the text ends before the first of them; none is empty
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.stop, self.stopped = list(stop), False
        self.text = ""  # so far, without the stop string
        self.pieces: List[Piece] = []  # of the tokens that the text has
        self._decoder = tokenizer.decoder()

    def push(self, index: int) -> bool:
        """Takes a token; True if the text ends in it."""
        self._append(self._decoder(index))
        return self.stopped

    def finish(self) -> None:
        """No token follows: half of a character at the end counts as a replacement character."""
        if not self.stopped:
            self._append(self._decoder(None), joins=True)

    @property
    def settled(self) -> int:
        """The number of characters that no further token changes: an end that may begin a stop string
        is not among them."""
        if self.stopped:
            return len(self.text)
        return len(self.text) - max(
            (
                size
                for stop in self.stop
                for size in range(1, len(stop))
                if self.text.endswith(stop[:size])
            ),
            default=0,
        )

    def _append(self, text: str, joins: bool = False) -> None:
        offset = len(self.text)
        if joins:
            if self.pieces:
                last = self.pieces.pop()
                self.pieces.append(last._replace(text=last.text + text))
        else:
            self.pieces.append(Piece(offset, text))
        longest = max((len(stop) for stop in self.stop), default=0)
        searched = max(0, offset - longest + 1)
        self.text += text
        places = [self.text.find(stop, searched) for stop in self.stop]
        ends = [place for place in places if place >= 0]
        if ends:
            self.stopped = True
            self.text = self.text[: min(ends)]
            self.pieces = [p for p in self.pieces if p.offset < len(self.text)]
