"""Beam search, step by step as transformers does it with its defaults.

So both give the same text (``_beam_search`` of its generation). fairseq's search adds the end of text
to hypotheses that are cut off, narrows the beam by those that have ended, and stops when as many have
as it is wide.

B hypotheses, T tokens, V vocabulary.
"""

from typing import Callable, Dict, List, Sequence, Tuple

import torch
from torch import Tensor

from longmem_fairseq.api.decoding import end_indices, next_log_probs
from longmem_fairseq.models.memory_decoder import MemoryDecoder
from longmem_fairseq.tokenizers import Tokenizer

NEVER = -1e9  # a score below that of any hypothesis


class BeamSearch:
    """Hypotheses that have all read the same prompt.

    Args:
        max_new_tokens: at most so many
        stop: strings at which a hypothesis ends; one that is a special token names that token too
        on_step: is called after every step
    """

    def __init__(
        self,
        decoder: MemoryDecoder,
        tokenizer: Tokenizer,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        on_step: Callable[[], None] = lambda: None,
    ):
        self.decoder, self.tokenizer = decoder, tokenizer
        self.max_new_tokens, self.stop, self.on_step = max_new_tokens, stop, on_step
        self.ends = torch.tensor(sorted(end_indices(tokenizer, stop)))
        self.state: Dict = {}

    def search(self, prompt: Tensor, beam: int) -> Tensor:
        """New tokens, T, of the best hypothesis by mean log-probability of a token, its end included.

        Args:
            prompt: 1 x T, at least one token
        """
        self.ends = self.ends.to(prompt.device)
        self.state = self.decoder.start_generation(prompt[:, :-1], beam)
        tokens = prompt[:, -1:].expand(beam, 1)
        scores = torch.full((beam,), NEVER, device=tokens.device)
        scores[0] = 0.0  # all are the same still
        best: List[Tuple[float, Tensor]] = []  # of those that have ended, the best first
        width = max(2, 1 + len(self.ends)) * beam
        while True:
            totals = scores[:, None] + self._log_probs(tokens)
            sums, places = totals.flatten().topk(min(width, totals.numel()))
            rows, new = places // totals.size(1), places % totals.size(1)
            longer = torch.cat([tokens[rows], new[:, None]], dim=1)
            ended, length = self._ended(longer), tokens.size(1)
            best += [(float(sums[i]) / length, longer[i]) for i in range(beam) if ended[i]]
            best = sorted(best, key=lambda scored: -scored[0])[:beam]
            scores, going_on = (sums + NEVER * ended).topk(beam)
            hopeless = len(best) == beam and float(scores[0]) / length <= best[-1][0]
            if hopeless or ended.all():
                return best[0][1][1:]
            tokens = longer[going_on]
            self.decoder.reorder_incremental_state_scripting(self.state, rows[going_on])

    def _log_probs(self, tokens: Tensor) -> Tensor:
        """Of the token after B x T, where T begins with the last token of the prompt; B x V."""
        output = self.decoder(tokens, incremental_state=self.state)
        self.on_step()
        return next_log_probs(self.decoder, self.tokenizer, output)

    def _ended(self, tokens: Tensor) -> Tensor:
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
