"""The base of backbone, LongMem and MemTRM: reads segment by segment, or token by token.

B streams or hypotheses, T tokens, H heads, D head_dim, V vocabulary, W window.
"""

from typing import Callable, Dict, Iterable, Iterator, List, Optional, Tuple, Union

import torch
from fairseq.models import FairseqIncrementalDecoder
from torch import Tensor

from longmem_fairseq.memory import ExternalMemory, MemoryBank, MemoryFork
from longmem_fairseq.models.reading import Entries, Reading, Retrieve
from longmem_fairseq.modules import JointAttention, LocalCache
from longmem_fairseq.modules.rotary_scaling import Rule, length_that_counts
from longmem_fairseq.utils.allocator import give_back_freed_memory


class LocalWindow:
    """State between the steps of a generation: the local window, and the memory of what left it.

    Args:
        tokens: B x 0
        memory: of the hypotheses; None without memory
    """

    def __init__(self, tokens: Tensor, memory: Optional[MemoryFork]):
        self.tokens = tokens  # B x P, those in the caches
        self.caches: List[LocalCache] = []  # see MemoryDecoder.num_caches
        self.memory = memory
        self.num_read = 0  # how many of the tokens that the generator passes are known
        self.num_new = 0  # how many tokens are being read, or were last

    def reorder(self, order: Tensor) -> None:
        """Hypothesis i goes on as hypothesis ``order[i]``."""
        if torch.equal(order, torch.arange(self.tokens.size(0), device=order.device)):
            return
        self.tokens = self.tokens[order]
        for cache in self.caches:
            cache.reorder(order)
        if self.memory is not None:
            self.memory.reorder(order)


class MemoryDecoder(FairseqIncrementalDecoder):
    """A decoder-only language model that may have a memory.

    A subclass sets ``memory``, ``window``, ``rotary_rule`` and ``padding_idx`` and has :meth:`read`,
    :meth:`entries` and ``num_caches``.
    """

    memory: Optional[ExternalMemory] = None
    window: int  # W, tokens of a segment
    overlap: int = 0  # of these, tokens that the segment before has too; set by the task
    num_caches: int  # one for each attention layer, and one of search keys for a pointer
    rotary_rule: Rule  # see parse_scaling

    def read(
        self,
        src_tokens: Tensor,
        retrieve: Optional[Retrieve] = None,
        caches: Optional[List[LocalCache]] = None,
        first: int = 0,
        before: Optional[Tensor] = None,
        target: Optional[Tensor] = None,
        memorized: Optional[Tensor] = None,
    ) -> Reading:
        """Predicts the next token of every one of B x T.

        Args:
            retrieve: see :meth:`JointAttention.forward`
            caches: of the tokens before these, see ``num_caches``
            first: token that the prediction begins with; -1 for that of the last alone
            before: the tokens in *caches*, B x P
            target: B x (T - first), of which to compute the losses alone, instead of all logits
            memorized: B, how many of a row's first tokens are in memory too (default: none)
        """
        raise NotImplementedError

    def entries(self, src_tokens: Tensor) -> Entries:
        """The entries of :meth:`read` of B x T tokens, computing nothing else."""
        raise NotImplementedError

    @property
    def memory_attention(self) -> Optional[JointAttention]:
        """Of the layer that reads memory; None where none does."""
        return None

    @property
    def gate(self) -> Optional[Tensor]:
        """Weight of memory in that layer, H numbers in (0, 1); None where there is none."""
        return None if self.memory_attention is None else self.memory_attention.gate

    def segments(self, src_tokens: Tensor) -> Iterator[Tuple[Tensor, int]]:
        """Segments of B x T tokens, at most W each, and how many of a segment's first tokens the one
        before has too: context, which is neither predicted nor memorized again."""
        stride = self.window - self.overlap
        for start in range(0, src_tokens.size(1), stride):
            overlap = min(self.overlap, start)
            yield src_tokens[:, start - overlap : start + stride], overlap

    def get_normalized_probs(self, net_output, log_probs: bool, sample=None) -> Tensor:
        """See ``fairseq.models.FairseqDecoder``: probabilities B x T x V, of what :meth:`forward`
        returned."""
        log_probs_of_all = self.scores(net_output).float().log_softmax(dim=-1)
        return log_probs_of_all if log_probs else log_probs_of_all.exp()

    def scores(self, net_output) -> Tensor:
        """Logits of the prediction, B x T x V, of what :meth:`forward` returned; with a pointer they
        are log-probabilities."""
        logits, pointer = net_output[0], (net_output[1] or {}).get("pointer")
        if pointer is None:
            return logits
        if logits.shape[:2] != pointer.ids.shape[:2]:
            raise ValueError(
                f"predictions of {tuple(logits.shape[:2])} tokens, but a pointer of "
                f"{tuple(pointer.ids.shape[:2])}: --softmax-batch cannot be used with a pointer"
            )
        return pointer.mixed(logits)

    def forward(
        self,
        src_tokens: Tensor,
        new_document: Optional[Tensor] = None,
        incremental_state: Optional[Dict] = None,
        last_only: bool = True,
        overlap: Optional[Tensor] = None,
        target: Optional[Tensor] = None,
        **unused,
    ) -> Tuple[Tensor, Dict]:
        """Reads a segment of every stream, predicts, and memorizes it; or goes on generating.

        Args:
            src_tokens: B x T, padded on the right; with *incremental_state* everything since it was
                empty, of which only the new tokens are read
            new_document: B, True for rows whose memory is to be forgotten first
            incremental_state: fairseq's, for generation: tokens go into a local window, and out of it
                into a memory of the hypothesis; the evaluation's memory is read, not changed
            last_only: with *incremental_state*: predict only what follows the last token, which is all
                that a generation asks for, and not what follows every new one
            overlap: B, how many of a row's first tokens were in the segment before, and are not
                memorized again (default: none)
            target: B x T, without *incremental_state*: the losses of these are wanted, no logits

        Returns:
            logits B x T x V, with *incremental_state* B x 1 x V or those of the last tokens, at least
            of the new ones; with *target* the losses instead (nats, B x T, 0 for padding); and a
            dictionary of

            - ``pointer``: :class:`Pointer` or None; the losses have it mixed in, the logits have not,
              which :meth:`get_normalized_probs` does
            - ``lookup``: :class:`Lookup` or None
            - ``attn``: None, which fairseq's generators look for
            - with a memory, but without *incremental_state*, :meth:`ExternalMemory.statistics`
        """
        if incremental_state is not None:
            return _output(self._go_on(src_tokens, incremental_state, last_only))
        if self.memory is None:
            return _output(self.read(src_tokens, target=target))
        self.memory.begin(src_tokens.size(0), new_document, self.training, src_tokens.device)
        reading = self.read(src_tokens, self.memory.retrieve, target=target, memorized=overlap)
        predicted, extra = _output(reading)
        extra.update(self.memory.statistics(self.gate))
        valid = self._to_memorize(src_tokens, overlap)
        self.memory.write(**reading.entries._asdict(), valid=valid, token_ids=src_tokens)
        return predicted, extra

    @torch.no_grad()
    def memorize(
        self,
        segments: Iterable[Tuple[Tensor, int]],
        memory: Union[MemoryBank, MemoryFork],
        on_segment: Callable[[int], None] = lambda num_tokens: None,
    ) -> None:
        """Reads segments into a memory of B streams, and predicts nothing.

        Args:
            segments: B x T tokens, and the number of first ones that are in memory already; see
                :meth:`segments`
            on_segment: takes the number of tokens that each segment added
        """
        for tokens, overlap in segments:
            new = slice(overlap, None)
            memory.write(**self.entries(tokens).of_tokens(new)._asdict(), token_ids=tokens[:, new])
            on_segment(tokens.size(1) - overlap)

    @torch.no_grad()
    def memorize_streams(
        self, src_tokens: Tensor, new_document: Tensor, overlap: Optional[Tensor] = None
    ) -> None:
        """Memorizes a segment of every stream and predicts nothing; arguments as :meth:`forward`."""
        self.memory.begin(src_tokens.size(0), new_document, self.training, src_tokens.device)
        entries, valid = self.entries(src_tokens), self._to_memorize(src_tokens, overlap)
        self.memory.write(**entries._asdict(), valid=valid, token_ids=src_tokens)

    def identify_memory(self) -> None:
        """Gives the memory the fingerprint of this model, which its files have to bear.

        Called once the weights are final. A memory of attention keys has the backbone's from the
        start, so that most models have nothing to do here.
        """

    def _to_memorize(self, src_tokens: Tensor, overlap: Optional[Tensor]) -> Tensor:
        """Which of B x T tokens are neither padding nor in memory already, B x T."""
        valid = src_tokens.ne(self.padding_idx)
        if overlap is None:
            return valid
        places = torch.arange(src_tokens.size(1), device=src_tokens.device)
        return valid & (places >= overlap.unsqueeze(1))

    def _go_on(self, src_tokens: Tensor, incremental_state: Dict, last_only: bool) -> Reading:
        window = incremental_state.get(self._state)
        if window is None:
            give_back_freed_memory()  # its tensors may not fit where those of shorter prompts were
            streams, device = src_tokens.size(0), src_tokens.device
            memory = None if self.memory is None else self.memory.fork(streams, device)
            window = incremental_state[self._state] = LocalWindow(src_tokens[:, :0], memory)
        new, before = src_tokens[:, window.num_read :], window.tokens
        window.num_read = src_tokens.size(1)
        tokens = torch.cat([window.tokens, new], dim=1)
        lengths = (window.tokens.size(1), tokens.size(1))
        turned, turns = (length_that_counts(self.rotary_rule, length) for length in lengths)
        # with the rules dynamic and longrope a longer text is another one from its first token on
        if not window.caches or tokens.size(1) > self.window or turned != turns:
            # the oldest half makes room, and the rest is read anew as a segment of its own: so every
            # token sees what it would if the text before it had been memorized in such halves
            past = self.left_behind(tokens.size(1))
            if window.memory is not None and past > 0:
                halves = tokens[:, :past].split(self._half, dim=1)
                self.memorize(((half, 0) for half in halves), window.memory)
            new = tokens = tokens[:, past:]
            before = tokens[:, :0]
            window.caches = [LocalCache(self.window) for _ in range(self.num_caches)]
        window.tokens, window.num_new = tokens, new.size(1)
        retrieve = None if window.memory is None else window.memory.retrieve
        return self.read(new, retrieve, window.caches, -1 if last_only else 0, before)

    @property
    def _half(self) -> int:
        return self.window - self.window // 2

    def left_behind(self, length: int) -> int:
        """The number of tokens, of *length* that a generation has read, which have left its window."""
        return max(0, -(-(length - self.window) // self._half) * self._half)

    def start_generation(self, prompt: Tensor, num_hypotheses: int) -> Dict:
        """An incremental_state of hypotheses that have all read a prompt.

        Args:
            prompt: 1 x T; the tokens that :meth:`forward` is given from then on begin after it
        """
        incremental_state = {}
        self(prompt, incremental_state=incremental_state)
        window = incremental_state[self._state]
        window.num_read = 0
        window.reorder(torch.zeros(num_hypotheses, dtype=torch.long, device=prompt.device))
        return incremental_state

    def generation_window(self, incremental_state: Dict) -> LocalWindow:
        """Of a generation that has begun."""
        return incremental_state[self._state]

    def reorder_incremental_state(self, incremental_state: Dict, new_order: Tensor) -> None:
        """fairseq's beam search goes on with other hypotheses."""
        if self._state in incremental_state:
            incremental_state[self._state].reorder(new_order)

    @property
    def _state(self) -> str:
        """The key in fairseq's incremental_state; the backbone inside another decoder has its own."""
        return f"{type(self).__name__}.{id(self)}"

    def max_positions(self) -> int:
        """See ``fairseq.models.FairseqDecoder``."""
        return 10**9  # a stream has no limit


def _output(reading: Reading) -> Tuple[Tensor, Dict]:
    """A reading in the form of :meth:`MemoryDecoder.forward`."""
    extra = {"pointer": reading.pointer, "lookup": reading.lookup, "attn": None}
    return reading.logits if reading.losses is None else reading.losses, extra


def unwrapped(model):
    """The model in fairseq's distributed wrappers, which keep it in ``module``."""
    while not hasattr(model, "decoder"):
        model = model.module
    return model
