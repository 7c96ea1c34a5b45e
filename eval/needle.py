#!/usr/bin/env python3
"""A needle in a haystack: a fact at some depth of a long text, asked for at its end.

Example:
    python -m eval.needle --data haystack.json --path runs/longmem/checkpoint_last.pt --name longmem \
        --lengths 1024,16384,262144,1048576 --memory-size 1048576

--data is made by preprocess/make_haystack.py. For every length, depth and trial the memory holds that
many tokens of the haystack with one needle among them, at a sentence's beginning; the window then holds
more of the haystack and the question. The answer is right if every token of it was the most likely one.
Keys and values of the haystack are computed once; a needle changes those of its own segment alone.
Appends a JSON line to --results, for the heat map of eval/report.py, and prints one for people.
"""

import argparse
import statistics
from functools import cached_property, partial
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eval.common import model_options
from eval.common.item_log import ItemLog
from eval.common.model_options import numbers
from eval.common.prompt_reader import PromptReader
from eval.common.tables import markdown, percent
from longmem_fairseq.models.reading import Entries
from longmem_fairseq.tokenizers import Tokenizer
from longmem_fairseq.utils.cli import check_positive, run, script_parser
from longmem_fairseq.utils.file_hash import file_hash
from longmem_fairseq.utils.text_files import chance_of, parse_json

# fields that the table shows beside a line's label
SHOWN = ("format", "lengths")


class Needle(NamedTuple):
    """Tokens of a fact, of the question about it, and of the answer."""

    needle: Tensor
    question: Tensor
    answer: Tensor


class Haystack(NamedTuple):
    """Tokens of the haystack, and the positions at which sentences begin."""

    tokens: Tensor
    sentences: np.ndarray


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="haystack and needles, .json")
    lengths = ",".join(str(2**power) for power in range(10, 21))
    add(
        "--lengths",
        default=lengths,
        help="tokens in the memory: a column of the grid for each number",
    )
    add(
        "--depths",
        type=int,
        default=11,
        help="rows of the grid, from the oldest to the newest token",
    )
    add("--trials", type=int, default=10, help="needles for each cell of the grid")
    model_options.add_model_options(parser)
    return parser


def read_haystack(path: Path) -> Dict:
    """The content of a file of preprocess/make_haystack.py.

    Raises:
        FileNotFoundError: there is no such file
        ValueError: it is another kind of file
    """
    if not path.is_file():
        raise FileNotFoundError(f"--data ({path}): no such file")
    try:
        content = parse_json(path.read_bytes())
        parts = [n[key] for n in content["needles"] for key in Needle._fields]
        parts += [content["haystack"], content["format"]]
        if not all(isinstance(text, str) and text for text in parts) or content["chance"] is None:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"--data ({path}) is not a haystack of preprocess/make_haystack.py"
        ) from None
    if not content["needles"]:
        raise ValueError(f"--data ({path}) has no needles")
    chance_of(content, path)
    return content


def encode_haystack(text: str, tokenizer: Tokenizer) -> Haystack:
    """The haystack's tokens; a sentence begins after a full stop or question mark and a space."""
    ids = tokenizer.encode(text)
    content = text.encode()
    ends = tokenizer.token_ends(ids)
    # a token that begins with the space after the mark begins the sentence
    stops = np.flatnonzero(np.isin(np.frombuffer(content, dtype=np.uint8), list(b".?")))
    firsts = np.searchsorted(ends, stops + 1, side="right")
    follows = np.isin(stops + 1, ends)  # the mark ends a token
    sentences = np.unique(firsts[follows & (firsts < len(ids))])
    return Haystack(torch.from_numpy(tokenizer.to_dictionary[ids]).long(), sentences)


class Hider:
    """Puts a needle into the memory of a reader, at any depth of any length of haystack."""

    def __init__(self, reader: PromptReader, haystack: Haystack, longest: int):
        self.reader, self.haystack, self.longest = reader, haystack, longest

    @cached_property
    def entries(self) -> Optional[Entries]:
        """Of the haystack, computed for the first needle: a finished run costs nothing."""
        if not self.reader.has_memory:
            return None
        return self.reader.entries(self.haystack.tokens[: self.longest])

    def hide(self, needle: Tensor, length: int, depth: float) -> int:
        """Memorizes *length* tokens with *needle* among them; returns the needle's position."""
        start = self._place(len(needle), length, depth)
        if self.entries is None:
            return start
        window = self.reader.window
        first = start // window * window
        last = min(first + window, length)
        tokens = self.haystack.tokens
        segment = torch.cat([tokens[first:start], needle, tokens[start:last]])[: last - first]
        changed = self.reader.entries(segment)
        self.reader.forget()
        before, after = slice(0, first), slice(last, length)
        self.reader.write(self.entries.of_tokens(before), tokens[before])
        self.reader.write(changed, segment)
        self.reader.write(self.entries.of_tokens(after), tokens[after])
        return start

    def _place(self, size: int, length: int, depth: float) -> int:
        """The first sentence from depth on whose segment has room for *size* tokens, else the last."""
        window = self.reader.window
        sentences = self.haystack.sentences[self.haystack.sentences <= length - size]
        places = sentences[sentences % window <= window - size]
        if len(places) == 0:
            raise ValueError(
                f"--lengths ({length}) or --tokens-per-sample ({window}) leave no sentence whose "
                f"segment has room for a needle of {size} tokens"
            )
        first = np.searchsorted(places, depth * (length - size))
        return int(places[min(first, len(places) - 1)])


def ask(reader: PromptReader, haystack: Tensor, needle: Needle, length: int) -> bool:
    """Whether the question, after more of the haystack in the window, is answered token for token."""
    room = reader.window + 1 - len(needle.question) - len(needle.answer)
    context = torch.cat([haystack[length : length + room], needle.question])
    (scored,) = reader.score(context, [needle.answer])
    return bool(torch.equal(scored.choices, needle.answer))


def main() -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args()
    check_positive(args, "depths", "trials")
    lengths = numbers("--lengths", args.lengths, least=1)
    content = read_haystack(args.data)
    if args.trials > len(content["needles"]):
        raise ValueError(
            f"--trials ({args.trials}) must be at most {len(content['needles'])}, the needles of "
            f"{args.data}"
        )
    lm = model_options.load(args)
    reader = PromptReader(lm)
    haystack = encode_haystack(content["haystack"], lm.tokenizer)
    if max(lengths) + reader.window > len(haystack.tokens):
        raise ValueError(
            f"--lengths ({max(lengths)}) and a window need more than {len(haystack.tokens):,} tokens, "
            f"which {args.data} has: make it with more --words"
        )
    reader.check_room(max(lengths))
    needles = [
        Needle(*(reader.tokens(needle[field]) for field in Needle._fields))
        for needle in content["needles"][: args.trials]
    ]
    depths = np.linspace(0, 1, args.depths).tolist() if args.depths > 1 else [0.5]
    key = model_options.settings(args, lm.model, "needle", {"data": file_hash(args.data)})
    log = ItemLog(args.results, key)
    grid, seconds = search(reader, haystack, needles, lengths, depths, log)
    setting = {"format": content["format"], "lengths": lengths, "depths": depths}
    setting["trials"] = args.trials
    measured = {
        "chance": content["chance"],
        "accuracy": float(np.mean(grid)),
        "grid": grid,
        "memorized_tokens": sum(lengths) * len(depths) * args.trials if reader.has_memory else 0,
        "seconds": round(seconds, 1),
    }
    model_options.append_measured(args, lm.model, "needle", measured, setting)
    by_length = ", ".join(
        f"{length:,}: {100 * np.mean(column):.0f}%"
        for length, column in zip(lengths, zip(*grid, strict=True), strict=True)
    )
    print(f"{args.name}: {by_length} (chance {100 * content['chance']:.3g}%)")


def search(
    reader: PromptReader,
    haystack: Haystack,
    needles: List[Needle],
    lengths: List[int],
    depths: List[float],
    log: ItemLog,
):
    """Accuracy for every depth (rows) and length (columns), and the seconds of the whole search."""
    hider = Hider(reader, haystack, max(lengths))
    grid = [[0.0] * len(lengths) for _ in depths]
    total = 0.0
    tokens = sum(lengths) * len(depths) * len(needles)

    def found(length: int, depth: float) -> Dict:
        right = []
        for needle in needles:
            hider.hide(needle.needle, length, depth)
            right.append(ask(reader, haystack.tokens, needle, length))
        return {"right": right}

    with tqdm(total=tokens, unit="tok", unit_scale=True) as bar:
        for column, length in enumerate(lengths):
            for row, depth in enumerate(depths):
                done = log.measured(f"{length} {depth:.4f}", partial(found, length, depth))
                grid[row][column] = sum(done["right"]) / len(needles)
                total += done["seconds"]
                bar.update(length * len(needles))
    return grid, total


def table(lines: List[Dict]) -> List[str]:
    """Needles found (%) by tokens in memory, mean over the depths."""
    columns = sorted({length for line in lines for length in line["setting"]["lengths"]})
    rows = [["model", "format", *(f"{length:,}" for length in columns)]]
    shares_of: Dict[tuple, Dict[int, float]] = {}
    for line in lines:
        by_length = shares_of.setdefault((line["label"], line["setting"]["format"]), {})
        for length, shares in zip(
            line["setting"]["lengths"], zip(*line["grid"], strict=True), strict=True
        ):
            by_length[length] = statistics.mean(shares)
    for (name, form), by_length in shares_of.items():
        rows.append([name, form, *(percent(by_length.get(length)) for length in columns)])
    chances = dict.fromkeys((line["setting"]["format"], line["chance"]) for line in lines)
    for form, chance in chances:
        rows.append(["chance", form, *[f"{100 * chance:.3g}%"] * len(columns)])
    return markdown(rows)


def plot(lines: List[Dict], path: Path) -> None:
    """A heat map for every model: depth by tokens in memory."""
    from eval.common.plots import plt, save  # matplotlib, which takes a while

    figure, panels = plt.subplots(
        len(lines), 1, figsize=(9, 1 + 3.4 * len(lines)), squeeze=False, sharex=False
    )
    for axes, line in zip(panels[:, 0], lines, strict=True):
        lengths, depths = line["setting"]["lengths"], line["setting"]["depths"]
        picture = axes.imshow(
            [[100 * share for share in row] for row in line["grid"]],
            aspect="auto",
            cmap="viridis",
            vmin=0,
            vmax=100,
        )
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=30)
        axes.set_yticks(range(len(depths)), [f"{100 * depth:.0f}%" for depth in depths])
        chance = f"chance {100 * line['chance']:.3g}%"
        axes.set(
            title=f"{line['label']}, {line['setting']['format']} ({chance})",
            xlabel="tokens in memory",
            ylabel="depth of the needle",
        )
        figure.colorbar(picture, ax=axes, label="found (%)")
    save(figure, path)


if __name__ == "__main__":
    run(main)
