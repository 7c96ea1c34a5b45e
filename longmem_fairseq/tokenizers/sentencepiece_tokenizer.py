"""SentencePiece with byte fallback: trained on the corpus or given, lossless either way."""

import io
import re
from pathlib import Path
from typing import Iterable, Iterator, Optional

import numpy as np
import sentencepiece
from fairseq.data import Dictionary

from longmem_fairseq.tokenizers.tokenizer import Tokenizer
from longmem_fairseq.utils.argument_error import ArgumentError

SENTENCEPIECE_FILE = "sentencepiece.model"
SPACE_PIECE = "\u2581"  # how SentencePiece writes a space
# These characters go through byte fallback and never enter a piece: that character itself, which would
# come back as a space, and whitespace other than the space. A newline is the one piece <0x0A>, and the
# dictionary, whose file has a symbol a line, holds no line break.
BYTES_ONLY = re.compile(rf"[^\S ]|{SPACE_PIECE}")
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
SENTENCE_CHARACTERS = 2000  # of a training sentence: at most 8000 bytes
MAX_SENTENCE_BYTES = 4 * SENTENCE_CHARACTERS


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model; its pieces in order, less unknown and controls, are the dictionary.

    Args:
        model: serialized model
        name: of its file, for error messages
        dictionary: one that has all pieces (default: made from them, padded to a multiple of 8
            as fairseq does)

    Raises:
        ValueError: it is no model, has no byte fallback, or is not the dictionary's
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, name: str, dictionary: Optional[Dictionary] = None):
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(model or b"none")  # no bytes at all would be a model
            byte_ids = [processor.piece_to_id(piece) for piece in BYTE_PIECES]
            has_bytes = all(processor.is_byte(i) for i in byte_ids)
        except (RuntimeError, IndexError):
            raise ArgumentError("{sentencepiece_model} ({}) is not a model", name) from None
        if not has_bytes:
            raise ArgumentError(
                "{sentencepiece_model} ({}) loses characters: train it with byte_fallback", name
            )
        self.model, self.processor = model, processor
        self.byte_ids = np.array(byte_ids, dtype=np.int32)

        pieces = {
            i: processor.id_to_piece(i)
            for i in range(len(processor))
            if not (processor.is_control(i) or processor.is_unknown(i))
        }
        self.token_bytes = [b""] * len(processor)
        for i, piece in pieces.items():
            self.token_bytes[i] = piece.replace(SPACE_PIECE, " ").encode()
        for byte, i in enumerate(byte_ids):
            self.token_bytes[i] = bytes([byte])

        if dictionary is None:
            dictionary = Dictionary()
            for piece in pieces.values():
                dictionary.add_symbol(piece)
            dictionary.pad_to_multiple_(8)
        self.dictionary = dictionary
        self.to_dictionary = np.full(len(processor), dictionary.unk(), dtype=np.int32)
        for i, piece in pieces.items():
            self.to_dictionary[i] = dictionary.index(piece)
            if self.to_dictionary[i] < dictionary.nspecial:
                raise ArgumentError("{dict} has no entry of its own for the piece {!r}", piece)

    def encode(self, text: str) -> np.ndarray:
        """SentencePiece's ids of a text."""
        parts, start = [], 0
        for match in BYTES_ONLY.finditer(text):
            parts.append(self._encode_span(text[start : match.start()]))
            parts.append(self.byte_ids[list(match.group().encode())])
            start = match.end()
        parts.append(self._encode_span(text[start:]))
        return np.concatenate(parts)

    def _encode_span(self, text: str) -> np.ndarray:
        return np.array(self.processor.encode(text) if text else [], dtype=np.int32)

    def save(self, folder: Path) -> None:
        """Writes the model to a folder."""
        (folder / SENTENCEPIECE_FILE).write_bytes(self.model)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "SentencePieceTokenizer":
        """A tokenizer with byte-pair encoding trained on *texts*; the same texts give the same model.

        BPE rather than unigram: nothing in its training is random or depends on threads, and a
        frequent word reliably becomes one piece.

        Raises:
            ValueError: the texts have too few or too many different characters for *vocab_size*
        """
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(s for text in texts for s in training_sentences(text)),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                byte_fallback=True,
                character_coverage=0.9999,
                required_chars="".join(map(chr, range(ord("!"), ord("~") + 1))),
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                allow_whitespace_only_pieces=True,
                max_sentence_length=MAX_SENTENCE_BYTES,
                bos_id=-1,  # fairseq's dictionary brings these
                eos_id=-1,
                pad_id=-1,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            # "INTERNAL: FILE(LINE) [CONDITION] MESSAGE Increase ... --an_option_of_its_own ..."
            reason = str(error).rsplit("] ", 1)[-1].split(" Increase")[0].strip()
            raise ArgumentError(
                "{vocab_size} ({}) does not suit the train split: {}",
                vocab_size,
                reason or "it has no text",
            ) from None
        return cls(model.getvalue(), "trained here")


def training_sentences(text: str) -> Iterator[str]:
    """Runs of *text* to train on: a line each, long ones cut before a space."""
    for line in BYTES_ONLY.split(text):
        start = 0
        while start < len(line):
            end = start + SENTENCE_CHARACTERS
            if end < len(line):
                space = line.rfind(" ", start + 1, end)
                end = space if space > 0 else end
            yield line[start:end]
            start = end
