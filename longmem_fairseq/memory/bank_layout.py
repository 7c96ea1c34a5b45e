"""The sizes of a memory bank, in one place.

N banks, H heads of the store, S slots of one chunk each, c chunk_size in tokens, D head_dim,
E dimensions of a search key.
"""

from dataclasses import asdict, dataclass
from typing import Any, Dict, Sequence

from longmem_fairseq.memory.chunk_store import DTYPES

SCOPES = ("stream", "batch")
SEARCHES = ("attention", "hidden")


@dataclass(frozen=True)
class BankLayout:
    """What two banks must have in common to hold the same things.

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
            given with every token, one for all heads, and what came *after* these tokens is read
        search_dim: E of search ``hidden``, 0 for ``attention``
        fingerprint: of the backbone whose keys and values these are, hexadecimal, and its layer

    Raises:
        ValueError: a size or a name does not fit
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
        for option, value, known in (
            ("--memory-scope", self.scope, SCOPES),
            ("--memory-dtype", self.dtype, DTYPES),
            ("--memory-search", self.search, SEARCHES),
        ):
            if value not in known:
                raise ValueError(f"{option} ({value}) must be one of {', '.join(known)}")
        if (self.search_dim > 0) != (self.search == "hidden"):
            raise ValueError(
                f"--search-dim ({self.search_dim}) does not go with --memory-search {self.search}"
            )

    @property
    def num_banks(self) -> int:
        return self.num_streams if self.scope == "stream" else 1

    @property
    def num_slots(self) -> int:
        return self.memory_size // self.chunk_size

    @property
    def reads_successors(self) -> bool:
        """Whether a slot has the search keys of some tokens, and all else of those that came next."""
        return self.search == "hidden"

    @property
    def search_heads(self) -> int:
        """How many searches a query takes."""
        return self.num_heads if self.search == "attention" else 1

    @property
    def key_dim(self) -> int:
        """Dimensions of a search key."""
        return self.search_dim or self.head_dim

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


# tensors of what waits for its chunk to become full, by bank
PENDING = ("pending_keys", "pending_values", "pending_search")
# of banks between which chunks can go
CONTENTS = ("num_heads", "head_dim", "search", "search_dim")


def check_sizes(memory_size: int, chunk_size: int, k: int) -> None:
    """Raises ValueError naming the option, for sizes no bank can have."""
    for option, value in (("--memory-size", memory_size), ("--chunk-size", chunk_size), ("--k", k)):
        if value < 1:
            raise ValueError(f"{option} ({value}) must be at least 1")
    for option, value in (("--memory-size", memory_size), ("--k", k)):
        if value % chunk_size != 0:
            raise ValueError(
                f"{option} ({value}) must be a multiple of --chunk-size ({chunk_size})"
            )
    if k > memory_size:
        raise ValueError(f"--k ({k}) must not exceed --memory-size ({memory_size})")


def check_fingerprint(memory: str, found: str, expected: str) -> None:
    """Raises ValueError where *memory* is of the backbone *found*, not *expected*; "" is any."""
    if found and expected and found != expected:
        raise ValueError(
            f"{memory} holds keys of the backbone {_short(found)}, not of {_short(expected)}: encode "
            "the documents again with this backbone"
        )


def _short(fingerprint: str) -> str:
    """Sixteen digits of SHA-256, and what stands behind all 64."""
    return fingerprint[:16] + fingerprint[64:]
