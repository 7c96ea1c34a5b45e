"""The base of every tokenizer.

Every token stands for a run of UTF-8 bytes. That makes the round trip checkable, and maps a
character offset to its token in the same way for every tokenizer.
"""

import codecs
from functools import cached_property
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Sequence

import numpy as np
from fairseq.data import Dictionary

from longmem_fairseq.tokenizers.chat_template import Message, render_chat
from longmem_fairseq.tokenizers.checkpoint_ids import CheckpointIds
from longmem_fairseq.utils.argument_error import ArgumentError


class Tokenizer:
    """A tokenizer, its fairseq dictionary, and the table between their ids."""

    kind: str
    dictionary: Dictionary
    token_bytes: List[bytes]  # of each id of the tokenizer
    to_dictionary: np.ndarray  # id of the tokenizer -> index in the dictionary
    ids: Optional[CheckpointIds] = None  # of a model that came with ids of its own
    special_tokens: Dict[str, int] = {}  # how they are spelled -> index in the dictionary

    @property
    def document_start(self) -> int:
        """Index in the dictionary of the symbol that stands before a document."""
        return self.dictionary.eos() if self.ids is None else self.ids.document_start

    @property
    def ends(self) -> List[int]:
        """Indices of the tokens that end a generated text."""
        return [self.dictionary.eos()] if self.ids is None else self.ids.end_indices

    @property
    def impossible(self) -> List[int]:
        """Indices that are never generated: those of no token of the model."""
        return [self.dictionary.pad()] if self.ids is None else self.ids.absent.tolist()

    def encode(self, text: str) -> np.ndarray:
        """Ids of the tokenizer (not of the dictionary); a spelled-out special token is text."""
        raise NotImplementedError

    def encode_spelled(self, text: str) -> np.ndarray:
        """As :meth:`encode`, but special tokens that are spelled out are read as such.

        Raises:
            ValueError: the tokenizer has none
        """
        raise ArgumentError(
            "the model's tokenizer has no special tokens: leave {special_tokens} out"
        )

    def spelled_chat(self, messages: Sequence[Message]) -> str:
        """The prompt that the model's own template makes of a chat, with special tokens spelled out.

        Raises:
            ValueError: it has no template, or one that refuses the messages
        """
        if self.ids is None or self.ids.chat_template is None:
            raise ArgumentError("the model has no chat template: give it prompts without {chat}")
        return render_chat(self.ids.chat_template, messages, self.ids.named_tokens)

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's own files; the dictionary is saved apart from it."""
        raise NotImplementedError

    def spelled(self, text: str) -> str:
        """Text obtained by joining the tokens of *text*. Some third-party tokenizers normalize, so it
        may differ."""
        return text

    def joined_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids of the tokenizer stand for."""
        return b"".join([self.token_bytes[i] for i in ids])

    def token_ends(self, ids: np.ndarray) -> np.ndarray:
        """The byte offset at which each token ends: token i covers [ends[i - 1], ends[i])."""
        return np.cumsum(self._num_bytes[ids])

    def indices(self, text: str, special_tokens: bool = False) -> np.ndarray:
        """Dictionary indices of a text.

        Args:
            special_tokens: read those that are spelled out in it
        """
        return self.to_dictionary[
            self.encode_spelled(text) if special_tokens else self.encode(text)
        ]

    def pieces(self, indices: Iterable[int], special_tokens: bool = False) -> List[str]:
        """The text of every token, from dictionary indices; joined they are the text.

        A character of several tokens is that of the last of them.

        Args:
            special_tokens: spell them out; otherwise they stand for nothing
        """
        piece_of = self.decoder(special_tokens)
        pieces = [piece_of(int(i)) for i in indices]
        if pieces:
            pieces[-1] += piece_of(None)
        return pieces

    def decoder(self, special_tokens: bool = False) -> Callable[[Optional[int]], str]:
        """Gives for one index after another the text that it adds; None: no other follows."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        table = self._spelled_of_index if special_tokens else self._bytes_of_index
        return lambda index: decoder.decode(table.get(index, b""), final=index is None)

    def decode(self, indices: Iterable[int], special_tokens: bool = False) -> str:
        """Text of dictionary indices; those of no token (eos, padding) stand for nothing.

        Args:
            special_tokens: spell them out; otherwise they stand for nothing too
        """
        table = self._spelled_of_index if special_tokens else self._bytes_of_index
        return b"".join([table.get(int(i), b"") for i in indices]).decode(errors="replace")

    @cached_property
    def words(self) -> np.ndarray:
        """For every index of the dictionary the first whose text is the same but for case and for
        space around it."""
        words, first = np.arange(len(self.dictionary)), {}
        for index, token in sorted(self._bytes_of_index.items()):
            if word := token.decode(errors="replace").strip().casefold():
                words[index] = first.setdefault(word, index)
        return words

    @cached_property
    def _num_bytes(self) -> np.ndarray:
        return np.array([len(token) for token in self.token_bytes], dtype=np.int64)

    @cached_property
    def _bytes_of_index(self) -> Dict[int, bytes]:
        known = np.flatnonzero(self.to_dictionary >= self.dictionary.nspecial)
        return {int(self.to_dictionary[i]): self.token_bytes[i] for i in known}

    @cached_property
    def _spelled_of_index(self) -> Dict[int, bytes]:
        spelled = {index: token.encode() for token, index in self.special_tokens.items()}
        return {**self._bytes_of_index, **spelled}


def load_dictionary(path: Path) -> Dictionary:
    """The fairseq dictionary in a file.

    Raises:
        FileNotFoundError: there is no such file
        ValueError: it is no dictionary
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return Dictionary.load(str(path))
    except Exception as error:  # fairseq raises bare Exceptions here
        raise ValueError(f"{path} is not a fairseq dictionary: {error}") from None
