"""GPT-2's byte-pair encoding, from the files that fairseq publishes for it."""

import shutil
from pathlib import Path
from typing import Optional

import numpy as np
from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode, get_encoder

from longmem_fairseq.tokenizers.tokenizer import Tokenizer, load_dictionary
from longmem_fairseq.utils.argument_error import ArgumentError, MissingFileError

GPT2_FILES = ("encoder.json", "vocab.bpe", "dict.txt")
MOST_IDS = 1_000_000  # GPT-2 has 50,257, and every one up to the largest takes a place in a table
CACHED_WORDS = 1_000_000  # fairseq's encoder remembers every word it has met, without a limit


class GPT2Tokenizer(Tokenizer):
    """GPT-2 BPE as fairseq uses it: the dictionary's symbols are GPT-2's ids in digits.

    Args:
        folder: holds encoder.json, vocab.bpe and, unless *dictionary* is given, dict.txt

    Raises:
        FileNotFoundError: a file is missing
        ValueError: one is damaged
    """

    kind = "gpt2"

    def __init__(self, folder: Path, dictionary: Optional[Dictionary] = None):
        self.folder = folder
        for name in GPT2_FILES if dictionary is None else GPT2_FILES[:2]:
            if not (folder / name).is_file():
                expected = ", ".join(GPT2_FILES)
                message = "{gpt2_bpe_dir} ({}) has no {}: expected {}"
                raise MissingFileError(message, folder, name, expected)
        byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
        try:
            self.bpe = get_encoder(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
            # all pieces that a text can have: bytes, and those that are merged of them
            pieces = {*byte_of, *("".join(merge) for merge in self.bpe.bpe_ranks)}
            if max(self.bpe.decoder) >= MOST_IDS or not pieces <= self.bpe.encoder.keys():
                raise ValueError("pieces are missing, or ids are too large")
            self.token_bytes = [b""] * (max(self.bpe.decoder) + 1)
            for i, token in self.bpe.decoder.items():
                self.token_bytes[i] = bytes(byte_of[character] for character in token)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # fairseq checks neither file
            raise ArgumentError(
                "{gpt2_bpe_dir} ({}): encoder.json or vocab.bpe is not GPT-2's", folder
            ) from error
        self.dictionary = dictionary or load_dictionary(folder / "dict.txt")
        # Ids that the dictionary leaves out become unknown; a text with one is refused later.
        indices = [self.dictionary.index(str(i)) for i in range(len(self.token_bytes))]
        self.to_dictionary = np.array(indices, dtype=np.int32)

    def encode(self, text: str) -> np.ndarray:
        """GPT-2's ids of a text."""
        if len(self.bpe.cache) > CACHED_WORDS:
            self.bpe.cache.clear()
        return np.array(self.bpe.encode(text), dtype=np.int32)

    def save(self, folder: Path) -> None:
        """Copies encoder.json and vocab.bpe into a folder."""
        for name in GPT2_FILES[:2]:
            shutil.copyfile(self.folder / name, folder / name)
