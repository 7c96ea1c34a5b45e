#!/usr/bin/env python3
"""Compare our models with outputs of the paper authors' released code.

Example:
    python -m eval.parity ../shared/parity/original_tiny

FIXTURE_DIR holds backbone.pt and longmem.pt in the released layout, dict.txt, and expected.pt: the
segments `tokens` S x B x T, `backbone_logits` and `longmem_logits` S x B x T x V, and
`retrieved_chunks`, one entry a segment, None or H x (T * B, time-major) x R. The segments are read in
order with an empty memory before the first. Exit 0 if all logits are within 1e-4 and 99.9% of the
queries retrieve the same set of chunks, exit 1 otherwise.

S segments, B streams, T tokens, V vocabulary, H heads, R chunks retrieved per query.
"""

import sys
import tempfile
from pathlib import Path
from typing import Dict, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from eval.common.stream_scoring import load_model
from longmem_fairseq.commands.convert_released import convert_released, load_safely
from longmem_fairseq.utils.cli import documented_parser, run

MAX_LOGIT_DIFFERENCE = 1e-4
MIN_EQUAL_CHUNKS = 0.999
LOGITS = ("backbone_logits", "longmem_logits")


class Parity(NamedTuple):
    """Largest differences of a logit, and the share of queries with equal sets of chunks."""

    backbone: float
    longmem: float
    chunks: float

    @property
    def passed(self) -> bool:
        """Whether all three are within the limits above."""
        # one by one: max() may drop a NaN
        within = [d <= MAX_LOGIT_DIFFERENCE for d in (self.backbone, self.longmem)]
        return all(within) and self.chunks >= MIN_EQUAL_CHUNKS

    def __str__(self) -> str:
        return (
            f"backbone max|dlogit| = {self.backbone:.2e}, longmem max|dlogit| = {self.longmem:.2e}, "
            f"retrieved chunks equal = {100 * self.chunks:.2f}%"
        )


def measure(fixture: Path) -> Parity:
    """Converts a fixture and runs it through our models.

    Raises:
        FileNotFoundError, ValueError: its files do not have the form above
    """
    path = fixture / "expected.pt"
    expected = read_expected(path)
    tokens = expected["tokens"]
    with tempfile.TemporaryDirectory() as scratch:
        dest = Path(scratch) / "converted"
        names = ("backbone.pt", "longmem.pt", "dict.txt")
        convert_released(*(fixture / name for name in names), dest)
        backbone, longmem = (
            load_model(str(dest / name / "checkpoint.pt"), str(dest / name), tokens.size(-1))[0]
            for name in ("backbone", "longmem")
        )
    vocab = backbone.decoder.embed_tokens.num_embeddings
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocab:
        raise ValueError(f"{path} holds other tokens than those from 0 to {vocab - 1}")
    differences = {name: [] for name in LOGITS}
    equal = queries = 0
    for number, segment in enumerate(tokens):
        new_document = torch.full((segment.size(0),), number == 0)
        for model, name in zip((backbone, longmem), LOGITS, strict=True):
            with torch.no_grad():
                logits, extra = model(segment, new_document=new_document)
            theirs = expected[name][number]
            if theirs.shape != logits.shape:
                raise ValueError(
                    f"{path}: {name} of a segment are {tuple(theirs.shape)}, expected "
                    f"{tuple(logits.shape)}"
                )
            differences[name].append((logits - theirs).abs().max())
        compared = compare_chunks(extra["retrieved_chunks"], expected["retrieved_chunks"][number])
        equal, queries = equal + compared[0], queries + compared[1]
    largest = [torch.stack(of_segments).max().item() for of_segments in differences.values()]
    return Parity(*largest, chunks=equal / queries if queries else 1.0)


def read_expected(path: Path) -> Dict:
    """The content of expected.pt, see the module's documentation.

    Raises:
        FileNotFoundError, ValueError: there is none, or it has another form
    """
    expected = load_safely(path)
    tokens, chunks = expected.get("tokens"), expected.get("retrieved_chunks")
    if not (
        is_tensor(tokens, 3)
        and tokens.dtype == torch.long
        and all(is_tensor(expected.get(name), 4) for name in LOGITS)
        and all(expected[name].shape[:3] == tokens.shape for name in LOGITS)
        and isinstance(chunks, list)
        and len(chunks) == len(tokens)
        and all(entry is None or is_tensor(entry, 3) for entry in chunks)
    ):
        raise ValueError(
            f"{path} is not the expected.pt of a fixture: tokens (S x B x T), backbone_logits and "
            "longmem_logits (S x B x T x V), and retrieved_chunks (S entries)"
        )
    return expected


def is_tensor(value: object, dim: int) -> bool:
    """Whether *value* is a tensor of so many dimensions with at least one number."""
    return isinstance(value, Tensor) and value.dim() == dim and value.numel() > 0


def compare_chunks(ours: Optional[Tensor], expected: Optional[Tensor]) -> Tuple[int, int]:
    """The number of queries that retrieve the same set of chunks, and of all queries.

    Nothing was evicted, so the slot of a chunk is its number.

    Args:
        ours: B x H x T x R
        expected: H x (T * B) x R

    Raises:
        ValueError: they are of other sizes
    """
    if ours is None or expected is None:
        some = expected if ours is None else ours
        return 0, 0 if some is None else some[..., 0].numel()
    ours = ours.permute(1, 2, 0, 3).flatten(1, 2)  # H x (T * B) x R
    if ours.shape != expected.shape:
        raise ValueError(
            f"retrieved_chunks of a segment are {tuple(expected.shape)}, expected {tuple(ours.shape)}"
        )
    same = (ours.sort(dim=-1).values == expected.sort(dim=-1).values).all(dim=-1)
    return int(same.sum()), same.numel()


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Runs the script; see the module's documentation."""
    parser = documented_parser(__doc__)
    parser.add_argument("fixture", metavar="FIXTURE_DIR", type=Path, help="see above")
    parity = measure(parser.parse_args(argv).fixture)
    print(parity)
    if not parity.passed:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
