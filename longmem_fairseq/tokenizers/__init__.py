"""Text to token ids and back, without loss: SentencePiece, GPT-2's byte-pair encoding, and those of
converted Hugging Face models."""

from longmem_fairseq.tokenizers.checkpoint_ids import CheckpointIds
from longmem_fairseq.tokenizers.fairseq_bpe import FairseqBPE
from longmem_fairseq.tokenizers.folder import load_tokenizer
from longmem_fairseq.tokenizers.gpt2_tokenizer import GPT2_FILES, GPT2Tokenizer
from longmem_fairseq.tokenizers.hf_tokenizer import HFTokenizer
from longmem_fairseq.tokenizers.no_tokenizer import NoTokenizer
from longmem_fairseq.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from longmem_fairseq.tokenizers.tokenizer import Tokenizer, load_dictionary

__all__ = [
    "CheckpointIds",
    "GPT2_FILES",
    "FairseqBPE",
    "GPT2Tokenizer",
    "HFTokenizer",
    "NoTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "load_dictionary",
    "load_tokenizer",
]
