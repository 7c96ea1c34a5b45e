"""Tokens on their way into chunks.

B streams, N banks, H heads of the store, T tokens, c chunk_size in tokens, n chunks, D head_dim,
E dimensions of a search key (0 for search ``attention``).
"""

from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from longmem_fairseq.memory.bank_layout import BankLayout
from longmem_fairseq.memory.token_log import UNKNOWN

# names in memory files; of a bank that is split every file has the same
PENDING = ("pending_keys", "pending_values", "pending_search", "last_search")


class Tokens(NamedTuple):
    """T tokens of one stream or bank, in the order in which they were read.

    keys, values: H x T x D
    search_keys: T x E
    ids: T, on the CPU
    """

    keys: Tensor
    values: Tensor
    search_keys: Tensor
    ids: Tensor

    def part(self, tokens: slice) -> "Tokens":
        """Some of them."""
        keys, values = self.keys[:, tokens], self.values[:, tokens]
        return Tokens(keys, values, self.search_keys[tokens], self.ids[tokens])


def tokens_of_rows(
    keys: Tensor,
    values: Tensor,
    valid: Optional[Tensor],
    token_ids: Optional[Tensor],
    search_keys: Optional[Tensor],
) -> List[Tokens]:
    """The tokens of each row of a segment that are valid; see :meth:`MemoryBank.write`."""
    streams, tokens = keys.size(0), keys.size(2)
    if search_keys is None:
        search_keys = keys.new_empty(streams, tokens, 0)
    if valid is None:
        valid = torch.ones(streams, tokens, dtype=torch.bool)
    if token_ids is None:
        token_ids = torch.full((streams, tokens), UNKNOWN)
    # at once: every copy from a GPU waits for all that it has to do
    valid, token_ids = valid.cpu(), token_ids.cpu()
    rows = []
    for row, count in enumerate(valid.sum(dim=1).tolist()):
        places = slice(None)
        if count < tokens:
            places = valid[row].nonzero().flatten().to(keys.device)
        segment = (keys[row][:, places], values[row][:, places], search_keys[row][places])
        rows.append(Tokens(*segment, token_ids[row][valid[row]]))
    return rows


class PendingTokens:
    """The tokens that wait for their chunk to be full.

    With search ``hidden`` also the search key of each stream's last token, which belongs to its
    successor: tokens are stored with their predecessor's, so the first of a document never is.

    Args:
        layout: of the bank
        device: of the tensors
    """

    def __init__(self, layout: BankLayout, device: torch.device):
        self.layout = layout
        tensors = {
            name: torch.zeros(shape, dtype=dtype, device=device)
            for name, (shape, dtype) in layout.tensors(0).items()
            if name in PENDING
        }
        self.keys, self.values, self.search_keys, self.last_search = (tensors[n] for n in PENDING)
        self.num_tokens = [0] * layout.num_banks
        self.in_document = [False] * layout.num_streams  # whether last_search has a successor

    def state_dict(self) -> Dict[str, Tensor]:
        """The tensors, by the names that they have in memory files."""
        tensors = (self.keys, self.values, self.search_keys, self.last_search)
        return dict(zip(PENDING, tensors, strict=True))

    def num_stored(self, row: int, num_tokens: int) -> int:
        """How many of the next tokens of a stream come into its bank: all but a document's first."""
        return num_tokens - (num_tokens > 0 and self._begins_document(row))

    def _begins_document(self, row: int) -> bool:
        """Whether the next token of a stream has no predecessor, and so nothing that finds it."""
        return self.layout.reads_successors and not self.in_document[row]

    def follow(self, row: int, tokens: Tokens) -> Tokens:
        """The tokens of a stream whose predecessor is known, with *its* search key (``hidden``)."""
        if len(tokens.ids) == 0:
            return tokens
        last, search_keys = self.last_search[row].clone(), tokens.search_keys.to(self.last_search)
        shifted = tokens._replace(search_keys=torch.cat([last.unsqueeze(0), search_keys[:-1]]))
        first = int(self._begins_document(row))
        self.last_search[row], self.in_document[row] = search_keys[-1], True
        return shifted.part(slice(first, None))

    def fill(self, bank: int, tokens: Tokens) -> Optional[Tuple[Tensor, Tensor, Tensor]]:
        """Takes the next tokens of a bank, of any type and device, and gives the chunks that are full.

        Returns:
            keys and values H x n x c x D, and search keys n x c x E; None where no chunk is full
        """
        pending = (self.keys[bank], self.values[bank], self.search_keys[bank])
        left, size = self.num_tokens[bank], self.layout.chunk_size
        all_tokens = [
            torch.cat([waiting[..., :left, :], new.to(waiting)], dim=-2)
            for waiting, new in zip(pending, tokens[:3], strict=True)
        ]
        num_chunks, left = divmod(all_tokens[0].size(1), size)
        whole = num_chunks * size
        for waiting, some in zip(pending, all_tokens, strict=True):
            waiting[..., :left, :] = some[..., whole:, :]
        self.num_tokens[bank] = left
        if num_chunks == 0:
            return None
        keys, values, search_keys = (
            some[..., :whole, :].unflatten(-2, (num_chunks, size)) for some in all_tokens
        )
        return keys, values, search_keys

    def waiting(self, bank: int, tokens: slice) -> Tuple[Tensor, Tensor, Tensor]:
        """Keys and values H x T x D and search keys T x E of some of those that wait."""
        return (
            self.keys[bank, :, tokens],
            self.values[bank, :, tokens],
            self.search_keys[bank, tokens],
        )

    def copy_bank(self, bank: int, other: "PendingTokens", other_bank: int) -> None:
        """Makes a bank, of scope ``stream``, and its stream like a bank of another one."""
        self.keys[bank], self.values[bank] = other.keys[other_bank], other.values[other_bank]
        self.search_keys[bank] = other.search_keys[other_bank]
        self.num_tokens[bank] = other.num_tokens[other_bank]
        # the last stream to write is the last one
        row = other_bank if other.layout.scope == "stream" else other.layout.num_streams - 1
        self.last_search[bank] = other.last_search[row]
        self.in_document[bank] = other.in_document[row]

    def take_over(self, other: "PendingTokens") -> None:
        """The tokens that wait become those of *other*; the last one of each stream stays."""
        self.keys, self.values, self.search_keys = other.keys, other.values, other.search_keys
        self.num_tokens = other.num_tokens
