"""``--bpe longmem_tokenizer``: the model's own tokenizer for fairseq's commands."""

from dataclasses import dataclass

from fairseq import utils
from fairseq.data.encoders import register_bpe
from fairseq.dataclass import FairseqDataclass
from omegaconf import II

from longmem_fairseq.tokenizers.folder import load_tokenizer
from longmem_fairseq.utils.text_files import plain_text


@dataclass
class FairseqBPEConfig(FairseqDataclass):
    """The options of ``--bpe longmem_tokenizer``."""

    data: str = II("task.data")  # the folder with dict.txt, where the tokenizer is too


@register_bpe("longmem_tokenizer", dataclass=FairseqBPEConfig)
class FairseqBPE:
    """Text to symbols of the dictionary with spaces between them, and back, without loss.

    Raises:
        FileNotFoundError, ValueError: see :func:`load_tokenizer`
    """

    def __init__(self, cfg: FairseqBPEConfig):
        self.tokenizer = load_tokenizer(utils.split_paths(cfg.data)[0])

    def encode(self, text: str) -> str:
        """Symbols of a text, with spaces between them."""
        dictionary = self.tokenizer.dictionary
        return " ".join(dictionary[index] for index in self.tokenizer.indices(plain_text(text)))

    def decode(self, symbols: str) -> str:
        """The text of such symbols."""
        dictionary = self.tokenizer.dictionary
        return self.tokenizer.decode(dictionary.index(symbol) for symbol in symbols.split())
