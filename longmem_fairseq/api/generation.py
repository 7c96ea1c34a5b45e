"""Continuing a prompt with fairseq's ``SequenceGenerator``.

B hypotheses, T tokens, V vocabulary.
"""

import math
from typing import Callable, Optional, Sequence

import torch
from fairseq.data import Dictionary
from fairseq.search import BeamSearch, Sampling
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator
from torch import Tensor

from longmem_fairseq.tokenizers import Tokenizer

LOWEST_TEMPERATURE = 1e-3  # as good as 0; what is divided by much less overflows


class PromptedModel(EnsembleModel):
    """A model whose hypotheses have all read a prompt, at once, before the generator begins.

    Args:
        model: a language model whose decoder is a :class:`MemoryDecoder`
        prompt: 1 x T, without its last token, which the generator takes for its first
        tokenizer: of the model's dictionary
        stop: strings after which eos is all that can follow
        on_token: is called after every step
    """

    def __init__(
        self,
        model,
        prompt: Tensor,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        on_token: Callable[[], None] = lambda: None,
    ):
        super().__init__([model])
        self.prompt, self.tokenizer, self.stop, self.on_token = prompt, tokenizer, stop, on_token

    def forward_decoder(self, tokens, encoder_outs, incremental_states, temperature=1.0):
        """See ``fairseq.sequence_generator.EnsembleModel``; tokens B x T, log-probabilities B x V."""
        (state,) = incremental_states
        if not state:
            state.update(self.single_model.decoder.start_generation(self.prompt, tokens.size(0)))
        log_probs, attention = super().forward_decoder(
            tokens, encoder_outs, incremental_states, temperature
        )
        if self.stop:
            stopped = self._stopped(tokens[:, 1:])
            log_probs[stopped] = float("-inf")
            log_probs[stopped, self.tokenizer.dictionary.eos()] = 0.0
        self.on_token()
        return log_probs, attention

    def _stopped(self, tokens: Tensor) -> Tensor:
        longest = max(len(stop.encode()) for stop in self.stop)  # a token has a byte or more
        texts = [self.tokenizer.decode(row) for row in tokens[:, -longest:].tolist()]
        return torch.tensor([any(stop in text for stop in self.stop) for text in texts])


class TruncatedSampling(Sampling):
    """Draws the next token from the most likely ones; fairseq's own takes top_k or top_p, not both.

    Args:
        dictionary: of V symbols
        top_k: how many of them, 0 for all
        top_p: of these as few as have this probability together, 0 for all
        temperature: what log-probabilities are divided by; fairseq's SequenceGenerator would divide
            logits, which in float16 overflow
    """

    def __init__(
        self, dictionary: Dictionary, top_k: int = 0, top_p: float = 0.0, temperature: float = 1.0
    ):
        super().__init__(dictionary)
        self.top_k, self.top_p, self.temperature = top_k, top_p, temperature

    def step(self, step, lprobs, *state):
        """See ``fairseq.search.Search``; lprobs ... x V."""
        lprobs = most_likely(lprobs / self.temperature, self.top_k, self.top_p)
        return super().step(step, lprobs.log_softmax(dim=-1), *state)


def most_likely(log_probs: Tensor, top_k: int, top_p: float) -> Tensor:
    """-inf for tokens that :class:`TruncatedSampling` leaves out; ... x V."""
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


def continue_prompt(
    model: PromptedModel,
    last_token: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 0.0,
    beam: int = 1,
) -> str:
    """The text after the prompt, up to the first of the model's stop strings.

    Args:
        last_token: of the prompt
        max_new_tokens, temperature, top_k, top_p, beam: see :meth:`LongMem.generate`
    """
    dictionary = model.tokenizer.dictionary
    search = BeamSearch(dictionary)
    if temperature > 0:
        search = TruncatedSampling(dictionary, top_k, top_p, temperature)
    generator = SequenceGenerator(
        model,
        dictionary,
        beam_size=beam,
        max_len_b=max_new_tokens,
        min_len=0,
        search_strategy=search,
    )
    sample = {"net_input": {"src_tokens": model.prompt}}
    best = generator.generate([], sample, bos_token=last_token)[0][0]
    text = model.tokenizer.decode(best["tokens"].tolist())
    ends = [text.index(stop) for stop in model.stop if stop in text]
    return text[: min(ends, default=len(text))]
