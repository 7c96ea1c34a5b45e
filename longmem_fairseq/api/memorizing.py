"""The documents of a memory: reading them into it, and forgetting them."""

import logging
from pathlib import Path
from typing import Callable, Iterable, List, Optional, Tuple

import torch
from torch import Tensor

from longmem_fairseq.api.prompts import document_tokens
from longmem_fairseq.api.reading import progress_bar
from longmem_fairseq.memory import ExternalMemory, MemoryBank, forget_document
from longmem_fairseq.models.memory_decoder import MemoryDecoder
from longmem_fairseq.tokenizers import Tokenizer
from longmem_fairseq.utils.argument_error import ArgumentError
from longmem_fairseq.utils.text_files import Text, read_text

logger = logging.getLogger(__name__)


@torch.no_grad()
def memorize_documents(
    decoder: MemoryDecoder,
    tokenizer: Tokenizer,
    bank: MemoryBank,
    documents: Iterable[Tuple[Optional[str], Text]],
    progress: bool,
    special_tokens: bool,
    words_only: bool = False,
) -> int:
    """Reads documents into a bank of one stream, each from its beginning; how many tokens they have.

    Args:
        documents: names, None for the next number, and texts; see :func:`named_texts`
        progress, special_tokens, words_only: see :meth:`LongMem.memorize`

    Raises:
        OSError, ValueError: a text cannot be read, is empty, or not in UTF-8
    """
    num_tokens, oldest = 0, bank.held(0).start
    with progress_bar("memorizing", progress) as bar:
        for name, text in documents:
            bank.begin_document(0, name or f"document {len(bank.sources[0]) + 1}", offset=-1)
            text = read_text(text) if isinstance(text, Path) else text
            tokens = document_tokens(tokenizer, text, special_tokens).to(bank.device)
            if words_only:
                remember_words(decoder, tokens, bank, bar.update)
            else:
                decoder.memorize(decoder.segments(tokens), bank, bar.update)
            num_tokens += tokens.size(1) - 1
    if (forgotten := bank.held(0).start - oldest) > 0:
        logger.warning(
            f"the memory holds {bank.layout.memory_size:,} tokens: {forgotten:,} that were read "
            "before are forgotten; raise memory_size"
        )
    return num_tokens


def remember_words(
    decoder: MemoryDecoder,
    tokens: Tensor,
    bank: MemoryBank,
    on_segment: Callable[[int], None] = lambda num_tokens: None,
) -> None:
    """Writes 1 x T tokens with search keys of zeros, which resemble nothing: only literal matches and
    excerpts find them.

    Args:
        on_segment: see :meth:`MemoryDecoder.memorize`

    Raises:
        ValueError: a SideNet reads keys and values, or each head searches for itself
    """
    layout = bank.layout
    if layout.num_heads > 0 or layout.search != "hidden":
        raise ArgumentError(
            "{words_only} is for a backbone without a SideNet, which would read keys and values that "
            "are not there"
        )
    for part in tokens.split(decoder.window, dim=1):
        shape = (1, 0, part.size(1), layout.head_dim)
        nothing = torch.zeros(shape, device=bank.device)
        search_keys = torch.zeros(1, part.size(1), layout.search_dim, device=bank.device)
        bank.write(nothing, nothing, search_keys=search_keys, token_ids=part)
        on_segment(part.size(1))


def forget_named(bank: MemoryBank, name: str) -> int:
    """Removes a document from a bank of one stream; how many tokens were forgotten.

    Raises:
        ValueError: there is no such document
    """
    names: List[str] = list(bank.documents(0))
    if name not in names:
        there = ", ".join(map(repr, names)) or "none"
        raise ValueError(f"no document {name!r} is in memory, which holds: {there}")
    return forget_document(bank, name)


def forget_all(memory: ExternalMemory) -> int:
    """Empties the memory of evaluation and training; how many tokens the first held."""
    bank, num_tokens = memory.banks.get(False), 0
    if bank is not None:
        num_tokens = sum(len(bank.held(i)) for i in range(bank.layout.num_banks))
    memory.reset()
    return num_tokens
