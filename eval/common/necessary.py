"""Operations and bytes that a step of a model needs, whatever the implementation.

B streams, T tokens, C embed_dim, H heads, H' key/value heads, D head_dim, L backbone layers, S SideNet
layers, V vocabulary, M memory_size, c chunk_size, K retrieved tokens.
"""

from typing import Dict, NamedTuple

from longmem_fairseq.models.decoder_config import DecoderConfig, key_value_sizes

SEARCH, READ = "search", "gather and memory attention"  # the stages of reading memory


class Sizes(NamedTuple):
    """Sizes that decide how much there is to compute; 0 sidenet_layers for the backbone alone, 0 chunks
    and retrieved tokens without memory.

    block_weights: of the matrices of a block
    heads_dim, kv_dim: H D and H' D
    search_dim: numbers of a query that are compared with a chunk's, over all searches of a token
    """

    streams: int
    tokens: int
    embed_dim: int
    layers: int
    vocabulary: int
    block_weights: int
    heads_dim: int
    kv_dim: int
    sidenet_layers: int = 0
    chunks: int = 0
    retrieved: int = 0
    search_dim: int = 0


def block_sizes(cfg: DecoderConfig) -> Dict[str, int]:
    """The sizes of a block of a decoder; fields of :class:`Sizes`."""
    kv_heads, head_dim = key_value_sizes(cfg)
    heads_dim, kv_dim = cfg.num_attention_heads * head_dim, kv_heads * head_dim
    matrices = 3 if cfg.gated_mlp else 2
    mlp = matrices * cfg.embed_dim * (cfg.ffn_dim or 4 * cfg.embed_dim)
    attention = cfg.embed_dim * (2 * heads_dim + 2 * kv_dim)
    return {"block_weights": attention + mlp, "heads_dim": heads_dim, "kv_dim": kv_dim}


def necessary_flops(sizes: Sizes, training: bool = False) -> Dict[str, float]:
    """Floating-point operations that one segment needs, by stage; a multiply-add is two.

    With N = M / c chunks, W weights of a block and E numbers that a search compares::

        block            B T (2 W + 2 T H D)    all matrices; scores and weighted values of T / 2 keys
                                                (causal)
        backbone         L block
        SideNet layers   S block
        head             2 B T C V
        search           2 B T N E              every chunk key with every query (exact search)
        memory attention 4 B T K H D            scores and weighted values
        loss             2 B T C V              in training: the head is frozen, gradient of its input
        backward         2 S block              gradients of inputs and weights
                         + 4 B T K H D          retrieved tensors are constant: of the queries alone
    """
    queries = sizes.streams * sizes.tokens
    block = queries * (2 * sizes.block_weights + 2 * sizes.tokens * sizes.heads_dim)
    flops = {
        "backbone": sizes.layers * block,
        "SideNet layers": sizes.sidenet_layers * block,
        "head": 2 * queries * sizes.embed_dim * sizes.vocabulary,
        SEARCH: 2 * queries * sizes.chunks * sizes.search_dim,
        READ: 4 * queries * sizes.retrieved * sizes.heads_dim,
    }
    if training:
        flops["loss"] = flops["head"]
        flops["backward"] = 2 * flops["SideNet layers"] + flops[READ]
    return flops


def necessary_bytes(sizes: Sizes, itemsize: int, trainable: int) -> Dict[str, float]:
    """Bytes to be read and written by the stages that hardly compute.

    Keys and values take *itemsize* bytes a number: retrieved ones are read, those of the segment
    copied. Adam reads gradient, weight and two moments, and writes all but the gradient.
    """
    tokens = sizes.streams * sizes.tokens
    return {
        READ: sizes.retrieved * 2 * tokens * sizes.heads_dim * itemsize,
        "write": 2 * 2 * tokens * sizes.kv_dim * itemsize,
        "optimizer": 7 * 4 * trainable,
    }
