"""Reads prompts that share a memory, and a prefix in the window.

B rows, T tokens, n segments, H heads, D head_dim, W window.
"""

from collections import deque
from itertools import groupby
from typing import List, NamedTuple, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from longmem_fairseq import LongMem
from longmem_fairseq.api.memorizing import remember_words
from longmem_fairseq.models.reading import Entries
from longmem_fairseq.modules import token_losses

MEMORIZED_AT_ONCE = 8192  # tokens whose keys and values are computed at a time


class Scored(NamedTuple):
    """Of each token of a row the log-probability (natural), and the most likely token in its place."""

    log_probabilities: Tensor
    choices: Tensor


class PromptReader:
    """A model with one memory, which prompts read but do not change.

    Args:
        lm: the model may have no memory
    """

    def __init__(self, lm: LongMem):
        self.lm, self.decoder, self.window = lm, lm.decoder, lm.window
        self.start = torch.tensor([lm.tokenizer.document_start])
        self.has_memory = self.decoder.memory is not None

    def tokens(self, text: str) -> Tensor:
        """A text as indices of the dictionary."""
        return torch.from_numpy(self.lm.tokenizer.indices(text)).long()

    def forget(self) -> None:
        """Empties the memory, if there is one."""
        if self.has_memory:
            self.lm.memory.single_bank(self.lm.device).reset()

    def memorize(self, tokens: Tensor, words_only: bool = False) -> None:
        """Adds T tokens to the memory, read in segments of the window; without memory they are lost.

        Tokens that start a document complete the last chunk, which could not be found otherwise.

        Args:
            words_only: see :meth:`LongMem.memorize`
        """
        if self.has_memory and len(tokens) > 0:
            missing = self.whole_chunks(len(tokens)) - len(tokens)
            tokens = torch.cat([tokens, self.start.expand(missing)])
            if words_only:
                self.check_room(len(tokens))
                bank = self.lm.memory.single_bank(self.lm.device)
                remember_words(self.decoder, tokens.unsqueeze(0), bank)
            else:
                self.write(self.entries(tokens), tokens)

    def whole_chunks(self, tokens: int) -> int:
        """The number of tokens that the memory holds after it has memorized *tokens*."""
        size = self.decoder.memory.options["chunk_size"] if self.has_memory else 1
        return -(-tokens // size) * size

    def write(self, entries: Entries, tokens: Tensor) -> None:
        """Adds T tokens to the memory.

        Raises:
            ValueError: the memory would lose its oldest tokens for them
        """
        bank = self.lm.memory.single_bank(self.lm.device)
        self.check_room(bank.num_tokens[0] + bank.num_pending[0] + len(tokens))
        bank.write(**entries._asdict(), token_ids=tokens.unsqueeze(0))

    def check_room(self, tokens: int) -> None:
        """Raises ValueError where there is a memory that holds less than *tokens*."""
        if self.has_memory and tokens > (size := self.decoder.memory.options["memory_size"]):
            raise ValueError(
                f"--memory-size ({size}) is too small for the {tokens:,} tokens to be memorized"
            )

    @torch.no_grad()
    def entries(self, tokens: Tensor) -> Entries:
        """Keys and values of T tokens read in segments of the window, in one row."""
        # the cached layer stands below the one that reads memory: segments can be read side by side
        tokens, parts = tokens.unsqueeze(0).to(self.lm.device), []
        for (_, overlap), alike in groupby(
            self.decoder.segments(tokens), lambda segment: (segment[0].size(1), segment[1])
        ):
            segments = torch.cat([segment for segment, _ in alike])
            for rows in segments.split(max(1, MEMORIZED_AT_ONCE // self.window)):
                parts.append(self.decoder.entries(rows).of_tokens(slice(overlap, None)))
        return Entries.in_one_row(parts)

    @torch.no_grad()
    def score(self, prefix: Tensor, rows: Sequence[Tensor]) -> List[Scored]:
        """Scores of the tokens of every row after the same *prefix*, which is read once.

        A row that the window does not hold beside the prefix has to be alone. Only its last tokens are
        scored: those before them go to a memory of its own, if there is one.

        Args:
            prefix: at least one token
            rows: of one token or more
        """
        longest, pad = max(len(row) for row in rows), self.lm.dictionary.pad()
        if len(prefix) - 1 + longest > self.window and len(rows) > 1:
            raise ValueError(
                f"--tokens-per-sample ({self.window}) is too small for {len(rows)} rows of up to "
                f"{len(prefix) - 1 + longest} tokens side by side"
            )
        targets = pad_sequence(list(rows), batch_first=True, padding_value=pad)  # B x T
        targets, prefix = targets.to(self.lm.device), prefix.to(self.lm.device)
        last = prefix[-1:].expand(len(rows), -1)
        state = self.decoder.start_generation(prefix[None, :-1], len(rows))
        inputs = torch.cat([last, targets[:, :-1]], dim=1)
        output = self.decoder(inputs, incremental_state=state, last_only=False)
        logits = self.decoder.scores(output)
        known = min(longest, logits.size(1))
        logits, targets = logits[:, -known:], targets[:, -known:]
        likelihoods, choices = -token_losses(logits, targets, pad), logits.argmax(dim=-1)
        lengths = [min(len(row), known) for row in rows]
        return [
            Scored(likelihoods[i, :length].cpu(), choices[i, :length].cpu())
            for i, length in enumerate(lengths)
        ]

    @torch.no_grad()
    def generate(self, prefix: Tensor, rows: Tensor, max_new_tokens: int, stop: Tensor) -> Tensor:
        """The most likely token after each of B x T, again and again; B x N.

        Args:
            prefix: tokens before every row
            stop: tokens that end a row; N is the length at which all rows have ended
        """
        prefix, tokens = prefix.to(self.lm.device), rows.to(self.lm.device)
        stop = stop.to(self.lm.device)
        state = self.decoder.start_generation(prefix[None], len(rows))
        ended = torch.zeros(len(rows), dtype=torch.bool, device=self.lm.device)
        for _ in range(max_new_tokens):
            scores = self.decoder.scores(self.decoder(tokens, incremental_state=state))
            following = scores[:, -1].argmax(dim=-1)
            tokens = torch.cat([tokens, following.unsqueeze(1)], dim=1)
            ended |= torch.isin(following, stop)
            if ended.all():
                break
        return tokens[:, rows.size(1) :].cpu()


class Demonstrations:
    """Demonstrations before an item: the window holds the last ones, the memory those before.

    Items come in the order of their lengths, the shortest first. The longer they are, the fewer
    demonstrations fit beside them; those that no longer fit move to the memory, the oldest first.

    Args:
        in_memory, in_context: tokens of every demonstration
        longest: tokens of the longest item

    Raises:
        ValueError: the memory is too small for the demonstrations in it at the longest item
    """

    def __init__(
        self,
        reader: PromptReader,
        in_memory: Sequence[Tensor],
        in_context: Sequence[Tensor],
        longest: int,
    ):
        self.reader, self.in_context = reader, deque(in_context)
        first = [reader.start, *in_memory] if in_memory else []
        moved = list(in_context)[: self._too_many(longest)]
        self.memorized = sum(len(tokens) for tokens in in_memory)  # tokens
        together = [sum(len(tokens) for tokens in first), *(len(tokens) for tokens in moved)]
        reader.check_room(sum(reader.whole_chunks(tokens) for tokens in together))
        reader.forget()
        if in_memory:
            reader.memorize(torch.cat(first))

    def before(self, length: int) -> Tensor:
        """The prefix in the window of items of up to *length* tokens."""
        for _ in range(self._too_many(length)):
            oldest = self.in_context.popleft()
            self.memorized += len(oldest)
            self.reader.memorize(oldest)
        return torch.cat([self.reader.start, *self.in_context])

    def _too_many(self, length: int) -> int:
        """The number of the oldest demonstrations that do not fit beside *length* tokens."""
        room = self.reader.window - len(self.reader.start) - length
        sizes = [len(tokens) for tokens in self.in_context]
        return next(count for count in range(len(sizes) + 1) if sum(sizes[count:]) <= max(room, 0))
