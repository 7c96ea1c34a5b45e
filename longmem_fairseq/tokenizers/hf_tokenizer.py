"""The tokenizer of a converted Hugging Face model: its tokenizer.json, run by ``tokenizers``."""

import json
from contextlib import contextmanager
from pathlib import Path
from typing import List

import numpy as np
from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode

from longmem_fairseq.tokenizers.checkpoint_ids import IDS_FILE, CheckpointIds
from longmem_fairseq.tokenizers.tokenizer import Tokenizer
from longmem_fairseq.utils.text_files import parse_json, read_text

TOKENIZER_FILE = "tokenizer.json"
SPACE_PIECE = "\u2581"  # how tokenizers that came from SentencePiece write a space


class HFTokenizer(Tokenizer):
    """Byte-level BPE (GPT-2, OPT, BLOOM, NeoX, Falcon, LLaMA 3, Qwen) or SentencePiece's (LLaMA,
    Mistral, Gemma); ids as in the checkpoint.

    A text is text: a special token that is spelled out in it is split like any other word, unless
    :meth:`encode_spelled` is asked. Some tokenizers put a space before every text or normalize it
    (:meth:`spelled`).

    Args:
        folder: of a converted model: holds tokenizer.json and ids.json
        dictionary: the one in use

    Raises:
        ImportError: the package ``tokenizers`` is not installed
        FileNotFoundError, ValueError: a file is missing, damaged, or another dictionary's
    """

    kind = "hf"

    def __init__(self, folder: Path, dictionary: Dictionary):
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{folder} has no {TOKENIZER_FILE}")
        self.ids = CheckpointIds.load(folder, dictionary)
        if self.ids is None:
            raise FileNotFoundError(
                f"{folder} has a {TOKENIZER_FILE} but no ids.json: make the folder with "
                "preprocess/convert_checkpoint.py"
            )
        self.text = read_text(path)
        self.tokenizer = parsed_tokenizer(path, self.text)
        self.dictionary, self.to_dictionary = dictionary, self.ids.to_dictionary
        try:
            self.is_byte_level = '"ByteLevel"' in json.dumps(parse_json(self.text).get("decoder"))
            self.token_bytes = self._token_bytes()
            added = self.tokenizer.get_added_tokens_decoder().items()
            self.special_tokens = {
                token.content: int(self.to_dictionary[id_]) for id_, token in added if token.special
            }
        except (ValueError, LookupError) as error:
            raise ValueError(f"{path} has other ids than {folder / IDS_FILE} ({error})") from None

    def encode(self, text: str) -> np.ndarray:
        """The checkpoint's ids of a text; a spelled-out special token is text."""
        return self._encode(text, special_tokens_are_text=True)

    def encode_spelled(self, text: str) -> np.ndarray:
        """The checkpoint's ids of a text in which special tokens are spelled out."""
        return self._encode(text, special_tokens_are_text=False)

    def _encode(self, text: str, special_tokens_are_text: bool) -> np.ndarray:
        # at every call: a copy in another process has forgotten
        self.tokenizer.encode_special_tokens = special_tokens_are_text
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def spelled(self, text: str) -> str:
        """The text as normalized (NFC in some), and with the space that some put before it."""
        if self.tokenizer.normalizer is not None:
            text = self.tokenizer.normalizer.normalize_str(text)
        if not self.is_byte_level:
            text = text.replace(SPACE_PIECE, " ")
        first = self.joined_bytes(self.encode(text[:1])[:1].tolist()) if text else b""
        adds_space = first[:1] == b" " and text[:1] != " "
        return " " + text if adds_space else text

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and ids.json to a folder."""
        (folder / TOKENIZER_FILE).write_text(self.text, encoding="utf-8")
        self.ids.save(folder)

    def _token_bytes(self) -> List[bytes]:
        table = [b""] * self.ids.num_ids
        alphabet = {character: chr(byte) for byte, character in bytes_to_unicode().items()}
        characters, to_latin1 = set(alphabet), str.maketrans(alphabet)
        for piece, id_ in self.tokenizer.get_vocab(with_added_tokens=False).items():
            if not self.is_byte_level:
                is_byte = len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
                spelled = piece.replace(SPACE_PIECE, " ").encode()
                table[id_] = bytes([int(piece[3:5], 16)]) if is_byte else spelled
            elif characters.issuperset(piece):
                table[id_] = piece.translate(to_latin1).encode("latin-1")
        for id_, token in self.tokenizer.get_added_tokens_decoder().items():
            table[id_] = b"" if token.special else token.content.encode()
        return table


def parsed_tokenizer(path: Path, text: str):
    """The ``tokenizers.Tokenizer`` of a tokenizer.json.

    Raises:
        ImportError: the package ``tokenizers`` is not installed
        ValueError: *text*, the content of *path*, is none
    """
    try:
        from tokenizers import Tokenizer as Backend
    except ImportError as error:
        raise ImportError(
            f"{path} needs the package tokenizers: pip install 'longmem-fairseq[hf]'"
        ) from error
    try:
        with panics_as_errors():
            backend = Backend.from_str(text)
    except Exception as error:  # the library raises bare Exceptions
        raise ValueError(f"{path} is not a tokenizer: {error}") from None
    backend.no_truncation()
    backend.no_padding()
    return backend


@contextmanager
def panics_as_errors():
    """Where the Rust code of ``tokenizers`` panics, its exception is no Exception: here it is one.

    Raises:
        RuntimeError: with its message
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RuntimeError(str(error)) from None
