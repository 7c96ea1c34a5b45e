"""Text to token ids and back, without loss: SentencePiece and GPT-2's byte-pair encoding."""

from longmem_fairseq.tokenizers.fairseq_bpe import FairseqBPE
from longmem_fairseq.tokenizers.folder import load_tokenizer
from longmem_fairseq.tokenizers.gpt2_tokenizer import GPT2_FILES, GPT2Tokenizer
from longmem_fairseq.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from longmem_fairseq.tokenizers.tokenizer import Tokenizer, load_dictionary

__all__ = [
    "GPT2_FILES",
    "FairseqBPE",
    "GPT2Tokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "load_dictionary",
    "load_tokenizer",
]
