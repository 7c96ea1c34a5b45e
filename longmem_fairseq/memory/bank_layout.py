"""The sizes of a memory bank, and all that follows from them alone.

B streams, N banks, T tokens, H heads of the store, H* searches per query (H, or 1), S slots of one
chunk each, c chunk_size in tokens, D head_dim, E dimensions of a search key.
"""

from dataclasses import asdict, dataclass
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
from torch import Tensor

from longmem_fairseq.memory.chunk_store import DTYPES
from longmem_fairseq.utils.argument_error import ArgumentError

SCOPES = ("stream", "batch")
SEARCHES = ("attention", "hidden")
# chunks can go from one bank to another where these are the same
CONTENTS = ("num_heads", "head_dim", "search", "search_dim")
# a file is read into banks where these are the same, too
SIZES_OF_FILE = (*CONTENTS, "memory_size", "chunk_size", "scope", "dtype")


@dataclass(frozen=True)
class BankLayout:
    """Sizes of a bank. Two banks of the same layout can hold the same things.

    Args:
        num_streams: B
        num_heads: H
        head_dim: D
        memory_size: stored tokens per stream (or in all, with scope ``batch``), a multiple of
            *chunk_size*
        chunk_size: tokens per chunk
        k: tokens retrieved per query, a multiple of *chunk_size*
        scope: ``stream``: every stream has its own bank; ``batch``: all streams share one, as in the
            released LongMem code
        dtype: of the stored keys and values, a key of ``chunk_store.DTYPES`` (search keys: float32)
        search: ``attention``: a chunk is found by the mean of its attention keys, per head (section
            3.2, "token-to-chunk retrieval", of arXiv 2306.07174); ``hidden``: by a search key that is
            given with every token, one for all heads, and the tokens read are those that came *after*
        search_dim: E of search ``hidden``, 0 for ``attention``
        fingerprint: of the backbone that computed the keys and values, hexadecimal, and its layer

    Raises:
        ArgumentError: a size or a name does not fit
    """

    num_streams: int
    num_heads: int
    head_dim: int
    memory_size: int
    chunk_size: int = 4
    k: int = 64
    scope: str = "stream"
    dtype: str = "float32"
    search: str = "attention"
    search_dim: int = 0
    fingerprint: str = ""

    def __post_init__(self):
        check_sizes(self.memory_size, self.chunk_size, self.k)
        for name, known in (("scope", SCOPES), ("dtype", DTYPES), ("search", SEARCHES)):
            if getattr(self, name) not in known:
                text = f"{{{name}}} ({{}}) must be one of {{}}"
                raise ArgumentError(text, getattr(self, name), ", ".join(known))
        if (self.search_dim > 0) != (self.search == "hidden"):
            text = "{search_dim} ({}) does not go with {search} {}"
            raise ArgumentError(text, self.search_dim, self.search)

    @property
    def num_banks(self) -> int:
        """N: one for each stream, or one for all."""
        return self.num_streams if self.scope == "stream" else 1

    @property
    def num_slots(self) -> int:
        """S, of every bank."""
        return self.memory_size // self.chunk_size

    @property
    def chunks_per_query(self) -> int:
        """R, the chunks that a query retrieves."""
        return self.k // self.chunk_size

    @property
    def reads_successors(self) -> bool:
        """Whether a slot has the search keys of some tokens, and all else of those that came next."""
        return self.search == "hidden"

    @property
    def search_heads(self) -> int:
        """H*, the searches that a query takes."""
        return self.num_heads if self.search == "attention" else 1

    @property
    def key_dim(self) -> int:
        """Dimensions of a search key: E, or D."""
        return self.search_dim or self.head_dim

    def tensors(self, num_slots: int) -> Dict[str, Tuple[Tuple[int, ...], torch.dtype]]:
        """Shape and type of everything that a bank consists of, with room for so many slots."""
        slots = (self.num_banks, self.num_heads, num_slots)
        chunk, dtype = (self.chunk_size, self.head_dim), DTYPES[self.dtype]
        waiting = torch.float32 if dtype == torch.int8 else dtype
        tensors = {
            "chunk_keys": (
                (self.num_banks, self.search_heads, num_slots, self.key_dim),
                torch.float32,
            ),
            "keys": ((*slots, *chunk), dtype),
            "values": ((*slots, *chunk), dtype),
            "pending_keys": ((*slots[:2], *chunk), waiting),
            "pending_values": ((*slots[:2], *chunk), waiting),
            "pending_search": ((self.num_banks, self.chunk_size, self.search_dim), torch.float32),
            "last_search": ((self.num_streams, self.search_dim), torch.float32),
        }
        if dtype == torch.int8:
            tensors["scales"] = ((*slots, 2), torch.float32)
        return tensors

    def bank_of(self, row: int) -> int:
        """The bank that a stream writes to."""
        return row if self.scope == "stream" else 0

    def held(self, num_written: int, num_pending: int) -> range:
        """The tokens that a bank stores, or that wait, numbered from its last reset.

        Args:
            num_written: chunks since the last reset, evicted ones too
            num_pending: tokens that wait for their chunk to be full
        """
        oldest = num_written - min(num_written, self.num_slots)
        return range(oldest * self.chunk_size, num_written * self.chunk_size + num_pending)

    def chunk_in(self, slots: Tensor, num_written: int) -> Tensor:
        """Numbers, since the last reset, of the chunks in these slots: chunk n is in slot n % S."""
        newest = num_written - 1
        return newest - (newest - slots) % self.num_slots

    def tokens_in(self, slots: Tensor, num_written: Sequence[int]) -> Tensor:
        """Numbers, since the last reset, of the tokens in b x T x R slots, b x T x K; -1 where there is
        no chunk (-1).

        Args:
            num_written: chunks that the bank of each of the b rows was given
        """
        chunks = torch.stack(
            [self.chunk_in(row, count) for row, count in zip(slots, num_written, strict=True)]
        )
        tokens = chunks.unsqueeze(-1) * self.chunk_size + torch.arange(self.chunk_size)
        return tokens.masked_fill(slots.unsqueeze(-1) < 0, -1).flatten(2)

    def header(self) -> Dict[str, Any]:
        """The sizes, for JSON."""
        return asdict(self)

    def check_same(self, header: Dict[str, Any], names: Sequence[str]) -> None:
        """Raises ValueError where a bank of another *header* has other sizes of these *names*."""
        for name in names:
            if header[name] != getattr(self, name):
                raise ValueError(
                    f"a memory with {name.replace('_', ' ')} {header[name]} does not fit one with "
                    f"{getattr(self, name)}"
                )

    def check_segment(
        self,
        keys: Tensor,
        values: Tensor,
        valid: Optional[Tensor],
        token_ids: Optional[Tensor],
        search_keys: Optional[Tensor],
    ) -> None:
        """Raises ValueError where these are not a segment for :meth:`MemoryBank.write`."""
        self.check_rows("keys", keys, self.num_heads, self.head_dim)
        streams, tokens = keys.size(0), keys.size(2)
        for name, tensor, shape in (
            ("values", values, keys.shape),
            ("valid", valid, (streams, tokens)),
            ("token_ids", token_ids, (streams, tokens)),
            ("search_keys", search_keys, (streams, tokens, self.search_dim)),
        ):
            if tensor is not None and tensor.shape != shape:
                raise ValueError(
                    f"{name} of shape {tuple(tensor.shape)} do not go with keys of {tuple(keys.shape)}"
                )
        if self.reads_successors and search_keys is None:
            raise ValueError(f"keys of {tuple(keys.shape)} without search_keys: search is hidden")

    def check_rows(
        self, name: str, tensor: Tensor, heads: int, dim: int, any_number: bool = False
    ) -> None:
        """Raises ValueError unless *tensor* is b x *heads* x T x *dim*, b at most B or any number."""
        too_many = tensor.size(0) > self.num_streams and not any_number
        if too_many or (tensor.size(1), tensor.size(3)) != (heads, dim):
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)} do not fit a bank of (streams, heads, "
                f"head_dim) {(self.num_streams, heads, dim)}"
            )


def check_sizes(memory_size: int, chunk_size: int, k: int) -> None:
    """Raises ArgumentError for sizes that no bank can have."""
    sizes = {"memory_size": memory_size, "chunk_size": chunk_size, "k": k}
    for name, value in sizes.items():
        if value < 1:
            raise ArgumentError(f"{{{name}}} ({{}}) must be at least 1", value)
    for name in ("memory_size", "k"):
        if sizes[name] % chunk_size != 0:
            text = f"{{{name}}} ({{}}) must be a multiple of {{chunk_size}} ({{}})"
            raise ArgumentError(text, sizes[name], chunk_size)
    if k > memory_size:
        raise ArgumentError("{k} ({}) must not exceed {memory_size} ({})", k, memory_size)


def check_options(path: str, header: Dict[str, Any], options: Dict[str, Any]) -> None:
    """Raises ValueError where a memory file has other sizes, or is of another backbone."""
    for name in SIZES_OF_FILE:
        if options.get(name, header[name]) != header[name]:
            raise ValueError(
                f"{path} holds a memory with {name.replace('_', ' ')} {header[name]}, not "
                f"{options[name]}: give the options that it was saved with"
            )
    check_fingerprint(path, header["fingerprint"], options["fingerprint"])


def check_fingerprint(memory: str, actual: str, expected: str) -> None:
    """Raises ValueError where *memory* is of the backbone *actual*, not *expected*; "" is any."""
    if actual and expected and actual != expected:
        raise ValueError(
            f"{memory} holds keys of the backbone {_short(actual)}, not of {_short(expected)}: encode "
            "the documents again with this backbone"
        )


def _short(fingerprint: str) -> str:
    """Sixteen digits of SHA-256, and the layer, which stands after all 64."""
    return fingerprint[:16] + fingerprint[64:]
