"""The tokens that a model is given for a text, and for a prompt.

T tokens.
"""

import logging
from typing import Sequence, Union

import torch
from torch import Tensor

from longmem_fairseq.models.memory_decoder import MemoryDecoder
from longmem_fairseq.tokenizers import Tokenizer
from longmem_fairseq.tokenizers.chat_template import Message
from longmem_fairseq.utils.argument_error import ArgumentError

logger = logging.getLogger(__name__)


def document_tokens(
    tokenizer: Tokenizer, text: str, special_tokens: bool = False, bare: bool = False
) -> Tensor:
    """1 x T: the beginning of a document, unless the text spells that out, and its tokens.

    Args:
        special_tokens: read those that are spelled out
        bare: put no beginning before them

    Raises:
        ValueError: the text is empty, or cannot be written in UTF-8
    """
    if not text:
        raise ValueError("the text is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half of a surrogate pair, which is no text") from None
    indices = torch.from_numpy(tokenizer.indices(text, special_tokens)).long()
    start = torch.tensor([tokenizer.document_start])
    if not (bare or (special_tokens and torch.equal(indices[:1], start))):
        indices = torch.cat([start, indices])
    return indices.unsqueeze(0)


def prompt_tokens(
    decoder: MemoryDecoder,
    tokenizer: Tokenizer,
    prompt: Union[str, Sequence[Message]],
    special_tokens: bool,
    chat: bool,
) -> Tensor:
    """1 x T, the tokens that a continuation of the prompt reads; warns of those that it does not.

    Raises:
        ValueError: see :meth:`LongMem.generate`
    """
    if not prompt:
        raise ValueError("the prompt is empty")
    if chat:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        # the template writes the whole prompt, the beginning too
        tokens = document_tokens(tokenizer, tokenizer.spelled_chat(messages), True, bare=True)
    elif not isinstance(prompt, str):
        raise ArgumentError("messages are a chat: give {chat} too, or a text for a prompt")
    else:
        tokens = document_tokens(tokenizer, prompt, special_tokens)
        spelled = [token for token in tokenizer.special_tokens if token in prompt]
        if spelled and not special_tokens:
            logger.warning(
                f"the prompt spells out {', '.join(spelled)}, which is read as text: special_tokens "
                "reads special tokens as such, and chat puts those of the model's template around the "
                "prompt"
            )
    unread = decoder.left_behind(tokens.size(1)) if decoder.memory is None else 0
    if unread > 0:
        logger.warning(
            f"the prompt has {tokens.size(1):,} tokens and the window {decoder.window:,}: the first "
            f"{unread:,} are not read, as this model has no memory; tokens_per_sample widens the window"
        )
    return tokens
