"""Self-attention over the segment, fused with attention to what was retrieved from memory.

B streams, T tokens, C embed_dim, H heads, H' key/value heads (H, or with grouped-query attention
fewer), G = H / H' heads of a group, D head_dim, P tokens that were read before.
"""

from typing import Callable, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn

from longmem_fairseq.memory import Retrieved
from longmem_fairseq.modules.causal_attention import causal_attention
from longmem_fairseq.modules.memory_attention import memory_attention
from longmem_fairseq.modules.norms import QK_NORMS
from longmem_fairseq.modules.place_reader import PlaceReader
from longmem_fairseq.modules.rotary import Rotary


class AttentionOutput(NamedTuple):
    """Output B x T x C; keys and values B x H' x T x D, before rotary: free of any position term."""

    output: Tensor
    keys: Tensor
    values: Tensor


class MemoryReading(NamedTuple):
    """How the queries of a layer read what they retrieved: themselves B x H x T x D, what is added to
    the scores of their attention (B x H x T x K; None: nothing), and the weight of memory, B (or 1) x H
    x T (or 1) x 1."""

    queries: Tensor
    bias: Optional[Tensor]
    gate: Tensor


class LocalCache:
    """Keys and values of an attention layer, of the tokens of its window that were read before.

    Args:
        window: the most tokens that there may be
    """

    def __init__(self, window: int):
        self.window, self.num_tokens = window, 0
        self.keys: Optional[Tensor] = None  # B x H' x window x D
        self.values: Optional[Tensor] = None
        self.last: Optional[Tensor] = None  # B x 1 x C, the layer's input at the last token

    def extend(self, x: Tensor, keys: Tensor, values: Tensor) -> Tuple[Tensor, Tensor]:
        """Adds T tokens (x: B x T x C) and returns all keys and values, B x H' x (P + T) x D."""
        if self.keys is None:
            self.keys, self.values = (
                t.new_empty(*t.shape[:2], self.window, t.size(3)) for t in (keys, values)
            )
        start, self.num_tokens = self.num_tokens, self.num_tokens + keys.size(2)
        self.keys[:, :, start : self.num_tokens] = keys
        self.values[:, :, start : self.num_tokens] = values
        if x.size(1) > 0:
            self.last = x[:, -1:]
        return self.keys[:, :, : self.num_tokens], self.values[:, :, : self.num_tokens]

    def extend_search_keys(self, search_keys: Tensor) -> Tensor:
        """As :meth:`extend`, of search keys B x T x E alone."""
        keys = search_keys.unsqueeze(1)
        return self.extend(search_keys, keys, keys[..., :0])[0].squeeze(1)

    def reorder(self, order: Tensor) -> None:
        """Row i goes on as row ``order[i]``."""
        if self.keys is not None:
            self.keys, self.values = self.keys[order], self.values[order]
        if self.last is not None:
            self.last = self.last[order]


class JointAttention(nn.Module):
    """Causal attention; in the memory layer fused with memory (section 3.3 of the paper).

    ``A = (1 - g) A_local + g A_mem`` with two separate softmaxes and ``g = sigmoid(memory_bias)``,
    one scalar a head; where nothing has been memorized, ``A = A_local``. Memory has no positions:
    its queries and keys are those before rotary. What one search found for all heads is read as
    :class:`PlaceReader` says.

    Args:
        embed_dim, num_heads: C, H
        num_kv_heads, head_dim: H', D (default: H, C / H)
        qkv_bias, out_bias: whether the projections have one
        qk_norm_eps: epsilon of the norms of queries and keys (default: there are none)
        qk_norm: their kind, a key of ``QK_NORMS``
        query_scale: factor of queries, besides D^-0.5
        rotary: positions of queries and keys (default: none but those of the attention bias)
        softcap: scores s become softcap * tanh(s / softcap) (Gemma 2); 0 leaves them
        has_memory: this layer reads memory, that is, it has a gate
        smeared_keys: half of the channels that feed ``k_proj`` come from the previous token, so that
            a key says what came before it (Olsson et al. 2022, "In-context Learning and Induction
            Heads", section on smeared keys)
        gate_lr_multiplier: the gate moves this many times faster than the learning rate says
        memory_heads: ``query``: every head retrieves for itself; ``shared``: the G heads of a group
            retrieve together, by the mean of their queries
        memory_distance: retrieved keys count as so many tokens back, by rotary; 0: no positions
        memory_search: ``hidden``: one search for all heads; ``attention``: each searches for itself
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: Optional[int] = None,
        head_dim: Optional[int] = None,
        qkv_bias: bool = False,
        out_bias: bool = False,
        qk_norm_eps: Optional[float] = None,
        qk_norm: str = "head_rms_norm",
        query_scale: float = 1.0,
        rotary: Optional[Rotary] = None,
        softcap: float = 0.0,
        has_memory: bool = False,
        smeared_keys: bool = False,
        gate_lr_multiplier: float = 1.0,
        memory_heads: str = "query",
        memory_distance: int = 0,
        memory_search: str = "attention",
    ):
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads or num_heads
        head_dim = head_dim or embed_dim // num_heads
        self.rotary, self.softcap, self.smeared_keys = rotary, softcap, smeared_keys
        self.query_scale = query_scale
        self.gate_lr_multiplier = gate_lr_multiplier
        self.memory_heads, self.memory_distance = memory_heads, memory_distance
        self.q_proj = nn.Linear(embed_dim, num_heads * head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(embed_dim, self.num_kv_heads * head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(embed_dim, self.num_kv_heads * head_dim, bias=qkv_bias)
        self.out_proj = nn.Linear(num_heads * head_dim, embed_dim, bias=out_bias)
        self.q_norm, self.k_norm = nn.Identity(), nn.Identity()
        if qk_norm_eps is not None:
            heads = (num_heads, self.num_kv_heads)
            self.q_norm, self.k_norm = (QK_NORMS[qk_norm](n, head_dim, qk_norm_eps) for n in heads)
        self.memory_bias = nn.Parameter(torch.zeros(num_heads)) if has_memory else None
        self.place_reader = None
        if has_memory and memory_search == "hidden":
            self.place_reader = PlaceReader(num_heads)
        if not has_memory:
            self.register_load_state_dict_pre_hook(_drop_gate)

    @property
    def gate(self) -> Tensor:
        """Weight of memory, H numbers in (0, 1)."""
        return torch.sigmoid(self.memory_bias * self.gate_lr_multiplier)

    def forward(
        self,
        x: Tensor,
        attention_bias: Optional[Tensor] = None,
        retrieve: Optional[Callable[[Tensor], Optional[Retrieved]]] = None,
        cache: Optional[LocalCache] = None,
    ) -> AttentionOutput:
        """
        Args:
            x: B x T x C, normalized
            attention_bias: see :func:`causal_attention`
            retrieve: maps unscaled queries B x H' x n x D to :class:`Retrieved`, or to None where
                nothing is memorized; only for a layer with memory
            cache: the P tokens before, to which these are added (default: there are none)
        """
        queries = self._split_heads(self.q_proj(x))
        queries = self.q_norm(queries).to(queries.dtype)
        if self.query_scale != 1:
            queries = queries * self.query_scale
        keys, values = self.keys_values(x, cache)
        start = 0 if cache is None else cache.num_tokens
        positions = range(start, start + x.size(1))
        turned_keys = self._turned(keys, positions)
        past = (turned_keys, values) if cache is None else cache.extend(x, turned_keys, values)
        turned_queries = self._turned(queries, positions)
        attended = causal_attention(turned_queries, *past, attention_bias, self.softcap)
        if retrieve is not None:
            if self.memory_distance > 0:
                at = range(self.memory_distance, self.memory_distance + 1)
                # turned by 0 as well, as keys at position 0: they would grow with YaRN and LongRoPE
                queries = self._turned(self._turned(queries, range(1)), at)
            retrieved = self._retrieve(queries, retrieve)
            if retrieved is not None:
                attended = self._fuse(attended, queries, retrieved)
            elif self.training:
                # a gradient of zero, not none: optimizers tell them apart, and some of fairseq's
                # wrappers for several processes turn the one into the other
                attended = attended + 0 * self.gate.sum()
        attended = attended.transpose(1, 2).flatten(2)  # B x T x (H * D)
        return AttentionOutput(self.out_proj(attended), keys, values)

    def keys_values(self, x: Tensor, cache: Optional[LocalCache] = None) -> Tuple[Tensor, Tensor]:
        """Keys before rotary, and values, of B x T x C, each B x H' x T x D; *cache* as in
        :meth:`forward`."""
        seen = smear(x, None if cache is None else cache.last) if self.smeared_keys else x
        keys, values = self._split_heads(self.k_proj(seen)), self._split_heads(self.v_proj(x))
        return self.k_norm(keys).to(values.dtype), values

    def _turned(self, x: Tensor, positions: range) -> Tensor:
        return x if self.rotary is None else self.rotary(x, positions)

    def _retrieve(
        self, queries: Tensor, retrieve: Callable[[Tensor], Optional[Retrieved]]
    ) -> Optional[Retrieved]:
        """The retrieval of each of B x H x T x D queries, in the memory of its key/value head."""
        groups = queries.unflatten(1, (self.num_kv_heads, -1))  # B x H' x G x T x D
        shared = self.memory_heads == "shared"
        retrieved = retrieve(groups.mean(dim=2) if shared else groups.flatten(2, 3))
        if retrieved is None:
            return None
        if retrieved.scores is not None:  # one search for all heads, not by these queries
            return retrieved.for_heads(groups.size(2))
        chunks, rows = retrieved.chunks, retrieved.rows  # B x H' x T (or G * T) x R
        if shared:
            chunks, rows = (t.repeat_interleave(groups.size(2), dim=1) for t in (chunks, rows))
        shape = (*queries.shape[:3], chunks.size(-1))  # B x H x T x R
        return Retrieved(chunks.view(shape), rows.view(shape), retrieved.store)

    def reads(self, queries: Tensor, retrieved: Retrieved) -> MemoryReading:
        """How B x H x T x D queries read what they retrieved."""
        gate = self.gate.view(1, -1, 1, 1)
        if self.place_reader is None:
            return MemoryReading(queries, None, gate)
        scores = self.place_reader.scores(retrieved)
        logit = (self.memory_bias * self.gate_lr_multiplier).view(1, -1, 1, 1)
        gate = torch.sigmoid(logit + self.place_reader.gate_logit(scores))
        return MemoryReading(self.place_reader.scaled(queries), scores, gate)

    def _fuse(self, local: Tensor, queries: Tensor, retrieved: Retrieved) -> Tensor:
        queries, bias, gate = self.reads(queries, retrieved)
        found, gate = memory_attention(queries, retrieved, bias), gate.to(local.dtype)
        anything = retrieved.chunks.ge(0).any(dim=-1, keepdim=True)  # B x H x T x 1
        return torch.where(anything, (1 - gate) * local + gate * found, local)

    def _split_heads(self, x: Tensor) -> Tensor:
        head_dim = self.q_proj.out_features // self.num_heads
        return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)  # B x H (or H') x T x D


def _drop_gate(module: JointAttention, state_dict, prefix: str, *unused) -> None:
    # a checkpoint trained with memory may be evaluated without: its gate has nothing to weigh
    for name in [name for name in state_dict if name.startswith(prefix)]:
        if name.removeprefix(prefix).split(".")[0] in ("memory_bias", "place_reader"):
            del state_dict[name]


def smear(x: Tensor, last: Optional[Tensor] = None) -> Tensor:
    """The first half of the channels of every token is that of the token before it.

    Args:
        x: B x T x C
        last: B x 1 x C, the token before the first (default: zeros)
    """
    half = x.size(-1) // 2
    before = torch.zeros_like(x[:, :1]) if last is None else last
    previous = torch.cat([before, x], dim=1)[:, : x.size(1), :half]  # also of no tokens
    return torch.cat([previous, x[:, :, half:]], dim=-1)
