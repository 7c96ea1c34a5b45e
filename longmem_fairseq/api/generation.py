"""Continuing a prompt: the most likely tokens, a beam search as transformers does it, or draws.

B hypotheses, T tokens, V vocabulary.
"""

import math
from typing import Callable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from longmem_fairseq.models.memory_decoder import MemoryDecoder
from longmem_fairseq.tokenizers import Tokenizer

LOWEST_TEMPERATURE = 1e-3  # as good as 0; what is divided by much less overflows
NEVER = -1e9  # a score below that of any hypothesis


class Continuation:
    """What follows a prompt, which all hypotheses have read at once before the first step.

    Args:
        decoder: of the model
        tokenizer: of its dictionary
        prompt: 1 x T, at least one token
        max_new_tokens: at most so many
        stop: strings at which a hypothesis ends; one that is a special token names that token too
        on_token: is called after every step
    """

    def __init__(
        self,
        decoder: MemoryDecoder,
        tokenizer: Tokenizer,
        prompt: Tensor,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        on_token: Callable[[], None] = lambda: None,
    ):
        self.decoder, self.tokenizer, self.prompt = decoder, tokenizer, prompt
        self.max_new_tokens, self.stop, self.on_token = max_new_tokens, stop, on_token
        named = [
            tokenizer.special_tokens[text] for text in stop if text in tokenizer.special_tokens
        ]
        self.ends = torch.tensor([*tokenizer.ends, *named], device=prompt.device).unique()
        self.impossible = torch.tensor(tokenizer.impossible, dtype=torch.long, device=prompt.device)
        self.state = {}

    def text(self, tokens: Tensor) -> str:
        """The text of new tokens, up to what ends it."""
        ended = torch.isin(tokens, self.ends).nonzero().flatten().tolist()
        text = self.tokenizer.decode(tokens[: min(ended, default=None)].tolist())
        return text[: min((text.index(stop) for stop in self.stop if stop in text), default=None)]

    def one_by_one(self, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """New tokens, T, each the one that *choose* takes from log-probabilities 1 x V."""
        tokens = self.begin(1)
        while True:
            tokens = torch.cat([tokens, choose(self.log_probs(tokens)).view(1, 1)], dim=1)
            if self.ended(tokens)[0]:
                return tokens[0, 1:]

    def beam_search(self, beam: int) -> Tensor:
        """New tokens, T, of the best hypothesis by mean log-probability of a token, its end included.

        Step by step that of transformers with its defaults (``_beam_search`` of its generation), so
        that both give the same text: fairseq's adds the end of text to hypotheses that are cut off,
        narrows the beam by those that have ended, and stops when as many have as it is wide.
        """
        tokens = self.begin(beam)
        scores = torch.full((beam,), NEVER, device=tokens.device)
        scores[0] = 0.0  # all are the same still
        best: List[Tuple[float, Tensor]] = []  # of those that have ended, the best first
        width = max(2, 1 + len(self.ends)) * beam
        while True:
            totals = scores[:, None] + self.log_probs(tokens)
            found, places = totals.flatten().topk(min(width, totals.numel()))
            rows, new = places // totals.size(1), places % totals.size(1)
            longer = torch.cat([tokens[rows], new[:, None]], dim=1)
            ended, length = self.ended(longer), tokens.size(1)
            best += [(float(found[i]) / length, longer[i]) for i in range(beam) if ended[i]]
            best = sorted(best, key=lambda scored: -scored[0])[:beam]
            scores, kept = (found + NEVER * ended).topk(beam)
            hopeless = len(best) == beam and float(scores[0]) / length <= best[-1][0]
            if hopeless or ended.all():
                return best[0][1][1:]
            tokens = longer[kept]
            self.decoder.reorder_incremental_state_scripting(self.state, rows[kept])

    def begin(self, hypotheses: int) -> Tensor:
        """B x 1, the last token of the prompt; the state is that of having read what is before."""
        self.state = self.decoder.start_generation(self.prompt[:, :-1], hypotheses)
        return self.prompt[:, -1:].expand(hypotheses, 1)

    def log_probs(self, tokens: Tensor) -> Tensor:
        """Of what follows B x T, where T begins with the last token of the prompt; B x V."""
        output = self.decoder(tokens, incremental_state=self.state)
        scores = self.decoder.scores(output)[:, -1].float()
        scores[:, self.impossible] = -math.inf
        self.on_token()
        return scores.log_softmax(dim=-1)

    def ended(self, tokens: Tensor) -> Tensor:
        """B, those of B x T that are complete."""
        if tokens.size(1) > self.max_new_tokens:
            return torch.ones(tokens.size(0), dtype=torch.bool, device=tokens.device)
        ended = torch.isin(tokens[:, -1], self.ends)
        if self.stop:
            longest = max(len(stop.encode()) for stop in self.stop)  # a token has a byte or more
            texts = [self.tokenizer.decode(row[-longest:]) for row in tokens[:, 1:].tolist()]
            stopped = [any(stop in text for stop in self.stop) for text in texts]
            ended |= torch.tensor(stopped, device=tokens.device)
        return ended


def drawn(
    log_probs: Tensor, top_k: int = 0, top_p: float = 0.0, temperature: float = 1.0
) -> Tensor:
    """B x 1, a token drawn from each of log-probabilities B x V.

    Args:
        top_k, top_p: see :func:`most_likely`
        temperature: what log-probabilities are divided by; logits would overflow in float16
    """
    return most_likely(log_probs / temperature, top_k, top_p).softmax(dim=-1).multinomial(1)


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


def check_generation(
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    beam: int,
    seed: Optional[int],
    stop: Sequence[str],
    spelled: Callable[[str], str] = str,
) -> None:
    """Raises ValueError naming the argument, where they do not go together.

    Args:
        spelled: what the user calls an argument of this name
    """
    for name, value, least in (
        ("max_new_tokens", max_new_tokens, 1),
        ("top_k", top_k, 0),
        ("beam", beam, 1),
    ):
        if value < least:
            raise ValueError(f"{spelled(name)} ({value}) must be at least {least}")
    heat = spelled("temperature")
    if temperature != 0 and not LOWEST_TEMPERATURE <= temperature < math.inf:  # nor is it NaN
        raise ValueError(
            f"{heat} ({temperature}) must be 0, or finite and at least {LOWEST_TEMPERATURE}"
        )
    if not 0 <= top_p <= 1:
        raise ValueError(f"{spelled('top_p')} ({top_p}) must be between 0 and 1")
    if temperature == 0 and (top_k or top_p):
        raise ValueError(
            f"{spelled('top_k')} and {spelled('top_p')} say what is drawn from: give a {heat} above "
            "0 too"
        )
    if temperature > 0 and beam > 1:
        raise ValueError(
            f"{spelled('beam')} ({beam}) searches, {heat} ({temperature}) draws: give one"
        )
    if seed is not None and not -(2**63) <= seed < 2**64:
        raise ValueError(f"{spelled('seed')} ({seed}) must be a number of 64 bits")
    if "" in stop:
        raise ValueError(f"{spelled('stop')} holds an empty string, which every text contains")
