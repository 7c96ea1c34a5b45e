"""What every tokenizer has in common.

Every token stands for a run of UTF-8 bytes. That makes the round trip checkable, and maps a
character offset to its token in the same way for every tokenizer.
"""

import codecs
from functools import cached_property
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional

import numpy as np
from fairseq.data import Dictionary

from longmem_fairseq.tokenizers.checkpoint_ids import CheckpointIds


class Tokenizer:
    """A tokenizer, its fairseq dictionary, and the table between their ids."""

    kind: str
    dictionary: Dictionary
    token_bytes: List[bytes]  # of each id of the tokenizer
    to_dictionary: np.ndarray  # id of the tokenizer -> index in the dictionary
    ids: Optional[CheckpointIds] = None  # of a model that came with ids of its own

    @property
    def document_start(self) -> int:
        """Index in the dictionary of what stands before a document; see :func:`document_start`."""
        return self.dictionary.eos() if self.ids is None else self.ids.document_start

    def encode(self, text: str) -> np.ndarray:
        """Ids of the tokenizer (not of the dictionary)."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write the tokenizer's own files; the dictionary is saved apart from it."""
        raise NotImplementedError

    def spelled(self, text: str) -> str:
        """What the tokens of a text join to; other than the text for some tokenizers of others."""
        return text

    def joined_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids of the tokenizer stand for."""
        return b"".join([self.token_bytes[i] for i in ids])

    def token_ends(self, ids: np.ndarray) -> np.ndarray:
        """The byte offset at which each token ends: token i covers [ends[i - 1], ends[i])."""
        return np.cumsum(self._num_bytes[ids])

    def indices(self, text: str) -> np.ndarray:
        """Dictionary indices of a text."""
        return self.to_dictionary[self.encode(text)]

    def pieces(self, indices: Iterable[int]) -> List[str]:
        """The text of every token, from dictionary indices; joined they are the text.

        A character of several tokens is that of the last of them.
        """
        decoded = self.decoder()
        pieces = [decoded(int(i)) for i in indices]
        if pieces:
            pieces[-1] += decoded(None)
        return pieces

    def decoder(self) -> Callable[[Optional[int]], str]:
        """Gives for one dictionary index after another the text that it adds; None: none follows."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        table = self._bytes_of_index
        return lambda index: decoder.decode(table.get(index, b""), final=index is None)

    def decode(self, indices: Iterable[int]) -> str:
        """Text of dictionary indices; those of no token (eos, padding) stand for nothing."""
        table = self._bytes_of_index
        return b"".join([table.get(int(i), b"") for i in indices]).decode(errors="replace")

    @cached_property
    def _num_bytes(self) -> np.ndarray:
        return np.array([len(token) for token in self.token_bytes], dtype=np.int64)

    @cached_property
    def _bytes_of_index(self) -> Dict[int, bytes]:
        known = np.flatnonzero(self.to_dictionary >= self.dictionary.nspecial)
        return {int(self.to_dictionary[i]): self.token_bytes[i] for i in known}


def load_dictionary(path: Path) -> Dictionary:
    """A fairseq dictionary; FileNotFoundError or ValueError name the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return Dictionary.load(str(path))
    except Exception as error:  # fairseq raises bare Exceptions here
        raise ValueError(f"{path} is not a fairseq dictionary: {error}") from None
