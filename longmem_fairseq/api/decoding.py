"""Continuing several prompts token by token, for those who want to see each token as it comes.

:meth:`LongMem.generate` searches with beams and returns a text; this is greedy or draws, tells what it
chose and from what, and goes on with the rows that have not ended.

B rows, T tokens, V vocabulary.
"""

from typing import Callable, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from longmem_fairseq.api.generation import most_likely
from longmem_fairseq.api.hub_interface import LongMem
from longmem_fairseq.api.reading import Look


class Token(NamedTuple):
    """A token of a dictionary index: its log-probability (nats, the model's own, whatever it was
    drawn from), and the most likely tokens, the likeliest first, with theirs."""

    index: int
    log_prob: float
    choices: List[int]
    choice_log_probs: List[float]


class Draw:
    """How a token is chosen: the most likely one, or a draw like that of :meth:`LongMem.generate`.

    Args:
        temperature, top_k, top_p, seed: see :meth:`LongMem.generate`
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
        if temperature > 0:
            self.generator = torch.Generator(device or "cpu")
            self.generator.seed() if seed is None else self.generator.manual_seed(seed)

    def __call__(self, log_probs: Tensor) -> List[int]:
        """One of V for each row of B x V."""
        if self.temperature == 0:
            return log_probs.argmax(dim=-1).tolist()
        likely = most_likely(log_probs / self.temperature, self.top_k, self.top_p)
        drawn = torch.multinomial(likely.softmax(dim=-1), 1, generator=self.generator)
        return drawn.squeeze(-1).tolist()


@torch.no_grad()
def decode(
    lm: LongMem,
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
        prompts: dictionary indices, what stands before a document included
        max_new_tokens: at most so many for each
        on_token: takes the number of a row and its new token; True ends the row
        draw: default: the most likely token
        top: how many of the most likely tokens to name
        stop: special tokens among these strings end a row; texts are for *on_token* to look for
        look: of one row alone: is shown what was found for every new token; see
            :func:`read_segments`; the new token is the last one of those that are read

    Returns:
        why each row ended: ``stop`` or ``length``
    """
    decoder, tokenizer = lm.decoder, lm.tokenizer
    ends = {*tokenizer.ends, *(tokenizer.special_tokens.get(text, -1) for text in stop)}
    draw = draw or Draw()
    prompts = [prompt.tolist() for prompt in prompts]
    reasons = ["length"] * len(prompts)
    rows = list(range(len(prompts)))  # those that go on
    new = [0] * len(prompts)
    shortest = min(len(prompt) for prompt in prompts)
    tokens = torch.tensor([prompt[:shortest] for prompt in prompts], device=lm.device)
    state = {}
    if look is not None and decoder.memory is not None:
        decoder(tokens[:, :-1], incremental_state=state)
    while rows:
        output = decoder(tokens, incremental_state=state)
        if look is not None and decoder.memory is not None:
            window = decoder.generation_window(state)
            read = output[1]["lookup"], output[1]["pointer"]
            look(*read, window.memory.bank, window.num_new)
        scores = decoder.get_normalized_probs(output, log_probs=True)[:, -1].float()
        scores[:, tokenizer.impossible] = float("-inf")
        log_probs = scores.log_softmax(dim=-1)
        kept, following, length = [], [], tokens.size(1)
        for i, (row, token) in enumerate(zip(rows, _chosen(log_probs, draw, top), strict=True)):
            if length < len(prompts[row]):
                kept.append(i)
                following.append(prompts[row][length])
                continue
            new[row] += 1
            if token.index in ends or on_token(row, token):
                reasons[row] = "stop"
            elif new[row] < max_new_tokens:
                kept.append(i)
                following.append(token.index)
        if not kept:
            break
        if len(kept) < len(rows):
            rows = [rows[i] for i in kept]
            order = torch.tensor(kept, device=lm.device)
            tokens = tokens[order]
            decoder.reorder_incremental_state(state, order)
        column = torch.tensor(following, device=lm.device).unsqueeze(1)
        tokens = torch.cat([tokens, column], dim=1)
    return reasons


def _chosen(log_probs: Tensor, draw: Draw, top: int) -> List[Token]:
    """A token for each row of B x V."""
    indices = torch.tensor(draw(log_probs), device=log_probs.device)
    own = log_probs.gather(-1, indices.unsqueeze(-1)).squeeze(-1)
    likely, choices = log_probs.topk(top, dim=-1)
    parts = (part.tolist() for part in (indices, own, choices, likely))
    return [Token(*token) for token in zip(*parts, strict=True)]
