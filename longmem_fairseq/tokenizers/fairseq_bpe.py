"""The tokenizer of a folder as fairseq's ``--bpe longmem``, for ``fairseq-interactive``."""

from dataclasses import dataclass, field

from fairseq.data.encoders import register_bpe
from fairseq.dataclass import FairseqDataclass
from omegaconf import MISSING

from longmem_fairseq.tokenizers.folder import load_tokenizer


@dataclass
class LongMemBPEConfig(FairseqDataclass):
    tokenizer_folder: str = field(
        default=MISSING,
        metadata={"help": "folder of a model or corpus: its dict.txt and tokenizer"},
    )


@register_bpe("longmem", dataclass=LongMemBPEConfig)
class LongMemBPE:
    """Text to symbols of the dictionary, with a space between them, and back."""

    def __init__(self, cfg: LongMemBPEConfig):
        self.tokenizer = load_tokenizer(cfg.tokenizer_folder)

    def encode(self, text: str) -> str:
        indices = self.tokenizer.to_dictionary[self.tokenizer.encode(text)]
        return " ".join(self.tokenizer.dictionary[int(i)] for i in indices)

    def decode(self, symbols: str) -> str:
        indices = [self.tokenizer.dictionary.index(symbol) for symbol in symbols.split(" ")]
        return self.tokenizer.decode(indices)
