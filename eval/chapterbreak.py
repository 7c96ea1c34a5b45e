#!/usr/bin/env python3
"""ChapterBreak: which of six beginnings opens the next chapter?

Example:
    python -m eval.chapterbreak --data chapterbreak_ctx_8192.json --split ao3 \
        --path runs/longmem/checkpoint_last.pt --name longmem

--data is the JSON of SimengSun/ChapterBreak, or one made by preprocess/make_chapterbreak.py. The
context is cut from the left to --contexts tokens; the window holds its end and --suffix tokens of a
beginning, the memory holds the rest. The model chooses the beginning with the highest likelihood, all
six cut to the length of the shortest; shortened_items, in the results, counts the items where that is
less than --suffix. Appends a JSON line to --results for every length of context, and prints one for
people. Chance is 1/6.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Dict, List, NamedTuple

import torch
from tqdm import tqdm

from eval.common import model_options
from eval.common.item_log import ItemLog
from eval.common.model_options import numbers
from eval.common.prompt_reader import PromptReader
from eval.common.tables import PAPER_LONGMEM, markdown, percent
from longmem_fairseq.utils.cli import check_positive, run, script_parser
from longmem_fairseq.utils.file_hash import file_hash
from longmem_fairseq.utils.text_files import parse_json

# fields that the table shows beside a line's label
SHOWN = ("split", "context", "suffix", "items")
# ao3, accuracy (%) by tokens of context; GPT-3 is the best of those not trained for long contexts
PAPER_AO3 = {
    PAPER_LONGMEM: {4096: 37.7, 6144: 39.4, 8192: 40.5},
    "paper: GPT-3": {8192: 28.0},
}


class Item(NamedTuple):
    """A break between chapters; the first of the *suffixes* is the one that follows."""

    name: str
    context: str
    suffixes: List[str]


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="file of items, .json")
    add("--split", default="ao3", help="which works of the file: ao3 or pg19")
    add("--contexts", default="4096,6144,8192", help="tokens of context: one run for each number")
    add("--suffix", type=int, default=128, help="tokens of a beginning that are looked at")
    add("--limit", type=int, help="first items (default: all)")
    model_options.add_model_options(parser)
    return parser


def read_items(path: Path, split: str) -> List[Item]:
    """All items of a split, work by work.

    Raises:
        FileNotFoundError: there is no such file
        ValueError: it is not of this form, or an item has no context, no true beginning, or no others
    """
    if not path.is_file():
        raise FileNotFoundError(f"--data ({path}): no such file")
    try:
        works = parse_json(path.read_bytes())
    except ValueError:
        raise ValueError(f"--data ({path}) is not JSON") from None
    if not isinstance(works, dict) or not isinstance(works.get(split), dict):
        known = ", ".join(works) if isinstance(works, dict) else "none"
        raise ValueError(f"--split ({split}) is not in {path}, whose splits are: {known}")
    items = []
    for work, breaks in works[split].items():
        if not isinstance(breaks, list):
            raise ValueError(f"{path}, {split}, work {work}: expected a list of items")
        for number, item in enumerate(breaks):
            where = f"{path}, {split}, work {work}, item {number}"
            try:
                suffixes = [item["pos"], *item["negs"]]
                context = item["ctx"]
                fits = all(isinstance(text, str) for text in [context, *suffixes])
            except (TypeError, KeyError):
                fits = False
            if not fits or len(suffixes) < 2:
                raise ValueError(f"{where}: expected texts ctx, pos and several negs")
            if not all(text.strip() for text in [context, *suffixes]):
                raise ValueError(f"{where}: an empty context or beginning")
            items.append(Item(f"{work}/{number}", context, suffixes))
    if not items:
        raise ValueError(f"--data ({path}) holds no items of {split}")
    return items


def rank(reader: PromptReader, item: Item, context: int, most: int) -> Dict:
    """The log-likelihoods of an item's beginnings after *context* tokens.

    Args:
        most: tokens of a beginning
    """
    suffixes = [reader.tokens(text)[:most] for text in item.suffixes]
    # a longer text is less likely: all are cut to the length of the shortest
    length = min(len(tokens) for tokens in suffixes)
    before = torch.cat([reader.start, reader.tokens(item.context)])[-context:]
    local = reader.window - most + 1  # the window's last input is a beginning's last but one token
    reader.forget()
    reader.memorize(before[:-local])
    scored = reader.score(before[-local:], [tokens[:length] for tokens in suffixes])
    likelihoods = [float(s.log_probabilities.double().sum()) for s in scored]
    return {
        "log_likelihoods": likelihoods,
        "context_tokens": len(before),
        "suffix_tokens": length * len(suffixes),
    }


def evaluate(
    reader: PromptReader,
    items: List[Item],
    context: int,
    log: ItemLog,
    args: argparse.Namespace,
) -> Dict:
    """Accuracy over all items; those that *log* has are not done again."""
    right, shortened = 0, 0
    totals = {"context_tokens": 0, "suffix_tokens": 0, "seconds": 0.0}
    for item in tqdm(items, f"context {context}", unit=" items"):
        done = log.measured(item.name, partial(rank, reader, item, context, args.suffix))
        first, *others = done["log_likelihoods"]
        right += first > max(others)
        shortened += done["suffix_tokens"] < args.suffix * len(item.suffixes)
        for name in totals:
            totals[name] += done[name]
    totals["seconds"] = round(totals["seconds"], 1)
    chance = sum(1 / len(item.suffixes) for item in items) / len(items)
    counts = {"items": len(items), "shortened_items": shortened}
    return {**counts, "accuracy": right / len(items), "chance": chance, **totals}


def main() -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args()
    check_positive(args, "suffix", "limit")
    contexts = numbers("--contexts", args.contexts, least=1)
    items = read_items(args.data, args.split)[: args.limit]
    lm = model_options.load(args)
    reader = PromptReader(lm)
    if reader.window < args.suffix:
        raise ValueError(
            f"--tokens-per-sample ({reader.window}) must be at least --suffix ({args.suffix})"
        )
    for context in contexts:
        setting = {"split": args.split, "context": context, "suffix": args.suffix}
        key = model_options.settings(args, lm.model, "chapterbreak", {"data": file_hash(args.data)})
        key["options"]["contexts"] = context
        measured = evaluate(reader, items, context, ItemLog(args.results, key), args)
        model_options.append_measured(args, lm.model, "chapterbreak", measured, setting)
        print(
            f"{args.name}: {args.split}, context {context}: accuracy {100 * measured['accuracy']:.1f}% "
            f"(chance {100 * measured['chance']:.1f}%)"
        )


def table(lines: List[Dict]) -> List[str]:
    """Accuracy (%) by tokens of context."""
    contexts = sorted({line["setting"]["context"] for line in lines})
    rows = [["model", "split", "suffix", "items", *(f"{context:,} tokens" for context in contexts)]]
    accuracies: Dict[tuple, Dict[int, float]] = {}
    for line in lines:
        setting = line["setting"]
        key = (line["label"], setting["split"], setting["suffix"], line["items"])
        accuracies.setdefault(key, {})[setting["context"]] = line["accuracy"]
    for (name, split, suffix, items), by_context in accuracies.items():
        cells = [percent(by_context.get(context)) for context in contexts]
        rows.append([name, split, f"{suffix:,}", f"{items:,}", *cells])
    chances = dict.fromkeys((line["setting"]["split"], percent(line["chance"])) for line in lines)
    for split, chance in chances:
        rows.append(["chance", split, "", "", *[chance] * len(contexts)])
    for name, by_context in PAPER_AO3.items():
        cells = [f"{by_context[c]:.1f}%" if c in by_context else "" for c in contexts]
        rows.append([name, "ao3", "", "", *cells])
    return markdown(rows)


def plot(lines: List[Dict], path: Path) -> None:
    """Accuracy by tokens of context."""
    from eval.common.plots import line_plot  # matplotlib, which takes a while

    series: Dict[str, Dict[int, float]] = {}
    for line in lines:
        setting = line["setting"]
        data = f"{setting['split']}, {line['items']} items"
        label = f"{line['label']} ({data}, suffix {setting['suffix']})"
        series.setdefault(label, {})[setting["context"]] = 100 * line["accuracy"]
        series.setdefault(f"chance ({data})", {})[setting["context"]] = 100 * line["chance"]
    line_plot(series, ("tokens of context", "accuracy (%)"), path)


if __name__ == "__main__":
    run(main)
