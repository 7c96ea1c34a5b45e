"""Continuing prompts token by token, greedily or with draws.

B rows, T tokens, V vocabulary.
"""

from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Set

import torch
from torch import Tensor

from longmem_fairseq.api.reading import Look
from longmem_fairseq.models.memory_decoder import MemoryDecoder
from longmem_fairseq.tokenizers import Tokenizer


class Token(NamedTuple):
    """A token of a dictionary index: its log-probability (nats, the model's own, whatever it was
    drawn from), and the most likely tokens, the likeliest first, with theirs."""

    index: int
    log_prob: float
    choices: List[int]
    choice_log_probs: List[float]


class Draw:
    """The choice of a token: the most likely one, or a draw.

    Args:
        temperature, top_k, top_p: see :meth:`LongMem.generate`
        seed: of the draws (default: PyTorch's generator goes on)
        device: of the log-probabilities
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 0.0,
        seed: Optional[int] = None,
        device: Optional[torch.device] = None,
    ):
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.generator = None
        if seed is not None:
            self.generator = torch.Generator(device or "cpu").manual_seed(seed)

    def __call__(self, log_probs: Tensor) -> List[int]:
        """One of V for each row of B x V."""
        if self.temperature == 0:
            return log_probs.argmax(dim=-1).tolist()
        # log-probabilities: logits divided by a small temperature would overflow in float16
        likely = most_likely(log_probs / self.temperature, self.top_k, self.top_p)
        drawn = torch.multinomial(likely.softmax(dim=-1), 1, generator=self.generator)
        return drawn.squeeze(-1).tolist()


def most_likely(log_probs: Tensor, top_k: int, top_p: float) -> Tensor:
    """-inf for all but the *top_k* most likely tokens (0: all), and of these as few as have the
    probability *top_p* together (0: all); ... x V."""
    ordered, tokens = log_probs.sort(dim=-1, descending=True)
    if top_k > 0:
        ordered[..., top_k:] = float("-inf")
    if top_p > 0:
        probs = ordered.softmax(dim=-1)
        ordered[probs.cumsum(dim=-1) - probs >= top_p] = float("-inf")
    return torch.empty_like(log_probs).scatter(-1, tokens, ordered)


def end_indices(tokenizer: Tokenizer, stop: Sequence[str]) -> Set[int]:
    """Indices of the tokens that end a text: the model's own, and special ones that *stop* names."""
    special = tokenizer.special_tokens
    return {*tokenizer.ends, *(special[text] for text in stop if text in special)}


def next_log_probs(decoder: MemoryDecoder, tokenizer: Tokenizer, output) -> Tensor:
    """Log-probabilities of the token after the last, B x V, of what the decoder returned."""
    scores = decoder.scores(output)[:, -1].float()
    scores[:, tokenizer.impossible] = float("-inf")
    return scores.log_softmax(dim=-1)


class _Rows:
    """The prompts that still go on, what they have read, and what they remember."""

    def __init__(self, decoder: MemoryDecoder, prompts: Sequence[Tensor]):
        self.decoder, self.prompts = decoder, [prompt.tolist() for prompt in prompts]
        self.numbers = list(range(len(prompts)))  # of those that go on
        shortest = min(map(len, self.prompts))
        self.device = next(decoder.parameters()).device
        begun = [prompt[:shortest] for prompt in self.prompts]
        self.tokens = torch.tensor(begun, device=self.device)  # B x T
        self.state: Dict = {}  # of the generation

    def read(self, look: Optional[Look] = None):
        """Reads all new tokens; the decoder's output."""
        output = self.decoder(self.tokens, incremental_state=self.state)
        if look is not None:
            window = self.decoder.generation_window(self.state)
            look(output[1]["lookup"], output[1]["pointer"], window.memory.bank, window.num_new)
        return output

    def unread(self, number: int) -> Optional[int]:
        """The next token of a prompt, None where it has been read to its end."""
        prompt, length = self.prompts[number], self.tokens.size(1)
        return prompt[length] if length < len(prompt) else None

    def advance(self, following: Dict[int, int]) -> None:
        """Goes on with these rows alone.

        Args:
            following: the next token by row of B
        """
        if len(following) < len(self.numbers):
            order = torch.tensor(list(following), dtype=torch.long, device=self.device)
            self.numbers = [self.numbers[row] for row in following]
            self.tokens = self.tokens[order]
            if following:
                self.decoder.reorder_incremental_state(self.state, order)
        column = torch.tensor(list(following.values()), dtype=torch.long, device=self.device)
        self.tokens = torch.cat([self.tokens, column.unsqueeze(1)], dim=1)


@torch.no_grad()
def decode(
    decoder: MemoryDecoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Tensor],
    max_new_tokens: int,
    on_token: Callable[[int, Token], bool],
    draw: Optional[Draw] = None,
    top: int = 1,
    stop: Sequence[str] = (),
    look: Optional[Look] = None,
) -> List[str]:
    """Continues every prompt until its document ends; the memory is afterwards as it was.

    The rows advance together from the end of the shortest prompt on. A row with a longer one reads the
    rest of it meanwhile, so prompts of similar lengths are best.

    Args:
        prompts: dictionary indices, those before a document included
        max_new_tokens: at most so many for each
        on_token: takes the number of a row and its new token; True ends the row
        draw: default: the most likely token
        top: how many of the most likely tokens to name
        stop: special tokens among these strings end a row; texts are for *on_token* to look for
        look: for one row alone: is shown the passages that were found for every new token, the last of
            those that are read; see :func:`read_segments`

    Returns:
        why each row ended: ``stop`` or ``length``
    """
    rows, ends = _Rows(decoder, prompts), end_indices(tokenizer, stop)
    draw, reasons, num_new = draw or Draw(), ["length"] * len(prompts), [0] * len(prompts)
    look = None if decoder.memory is None else look
    if look is not None:  # reads the prompt but for its last token, with which *look* begins
        decoder(rows.tokens[:, :-1], incremental_state=rows.state)
    while rows.numbers:
        log_probs, following = next_log_probs(decoder, tokenizer, rows.read(look)), {}
        for row, token in enumerate(_chosen(log_probs, draw, top)):
            number = rows.numbers[row]
            if (unread := rows.unread(number)) is not None:
                following[row] = unread
                continue
            num_new[number] += 1
            if token.index in ends or on_token(number, token):
                reasons[number] = "stop"
            elif num_new[number] < max_new_tokens:
                following[row] = token.index
        rows.advance(following)
    return reasons


def _chosen(log_probs: Tensor, draw: Draw, top: int) -> List[Token]:
    """A token for each row of B x V."""
    indices = torch.tensor(draw(log_probs), device=log_probs.device)
    chosen = log_probs.gather(-1, indices.unsqueeze(-1)).squeeze(-1)
    likely, choices = log_probs.topk(top, dim=-1)
    parts = (part.tolist() for part in (indices, chosen, choices, likely))
    return [Token(*token) for token in zip(*parts, strict=True)]
