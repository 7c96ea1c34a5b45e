#!/usr/bin/env python3
"""Perplexity per document, by length and by position, and recall by distance, of one checkpoint.

Example:
    python eval/evaluate.py data/books --path runs/longmem/checkpoint_last.pt --name longmem

Reads every document of a split from its first to its last token, up to --batch-size of similar length
side by side. Appends one JSON line to --results and prints one for people; killed and started again
with the same options, it goes on with the documents that are left. For a corpus with questions
(preprocess/make_recall_corpus.py) it counts how many answers are the model's first choice: *within*
the window, where the fact was last mentioned in the same segment, and *beyond*, where that was more
than --tokens-per-sample tokens ago.
"""

import argparse
import os
from pathlib import Path
from typing import Dict, List

import numpy as np
from tqdm import tqdm

import model_options
from item_log import ItemLog
from longmem_fairseq.tasks.config import given_options
from longmem_fairseq.utils.allocator import keep_freed_memory
from longmem_fairseq.utils.cli import check_positive, run
from longmem_fairseq.utils.text_files import chance_of, read_json
from results import (
    Stopwatch,
    append_result,
    check_results,
    decimal,
    file_hash,
    read_json_lines,
)
from stream_scoring import (
    MEMORIES,
    QUESTION,
    Documents,
    DocumentScores,
    by_document,
    group_documents,
    load_documents,
    load_model,
    mean_loss,
    perplexity,
    score_group,
    use_memory,
    write_with,
)

# the paper's, in tokens (section 4.2), and what is shorter
LENGTHS = (0, 5_000, 10_000, 100_000, 500_000, 1_000_000, None)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("data", help="folder made by preprocess/prepare_corpus.py")
    add(
        "--benchmark", default="perplexity", help="what to call the corpus in results: books, arxiv"
    )
    add("--split", default="test", help="split to read")
    add("--limit", type=int, help="first documents (default: all)")
    add("--batch-size", type=int, default=8, help="documents read side by side")
    add(
        "--memory",
        choices=MEMORIES,
        default="own",
        help="own: the document's past; the controls empty, and other: another document's past",
    )
    add(
        "--memory-writer",
        help="checkpoint whose keys and values are memorised instead, an older one",
    )
    add("--seed", type=int, help="recorded in the results: the training seed")
    model_options.add_model_options(parser)
    return parser


def main() -> None:
    args = get_parser().parse_args()
    check_positive(args, "batch_size", "limit")
    if args.memory == "other" and args.batch_size < 2:
        raise ValueError(
            "--memory other needs --batch-size of at least 2: another document to read"
        )
    check_results("--results", args.results)
    options = given_options(args)
    keep_freed_memory()
    model, task = load_model(args.path, args.data, args.tokens_per_sample, args.device, **options)
    model_options.check_memory_options(args, model)
    use_memory(model, args.memory)
    if args.memory_writer:
        where = (args.data, model.decoder.window, args.device)
        write_with(model, load_model(args.memory_writer, *where, **options)[0])
    result = {
        "benchmark": args.benchmark,
        **model_options.describe_model(args, model),
        "split": args.split,
        "memory": args.memory,
        "memory_writer": args.memory_writer,
        "seed": args.seed,
    }
    if model.decoder.memory is not None:
        result["gate"] = model.decoder.gate.tolist()
    path = os.path.join(args.data, f"{args.split}.questions.jsonl")
    questions = read_json_lines(path, QUESTION) if os.path.isfile(path) else []
    manifest = Path(args.data) / "manifest.json"
    chance = chance_of(read_json(manifest), manifest) if questions else None
    records = read_split(args, model, task, questions)
    result.update(summarise(records))
    questions = [question for question in questions if question["document"] < len(records)]
    if questions:
        result["chance"] = chance
        result.update(recall(records, questions, model.decoder.window))
    result["seconds"] = round(sum(record["seconds"] for record in records), 1)
    append_result(args.results, result)
    print(describe(result))


def read_split(args: argparse.Namespace, model, task, questions: List[Dict]) -> List[Dict]:
    """What is kept of every document, in their order; what a killed run has read is not read again."""
    documents, descriptions = load_documents(task, args.split)
    sizes = documents.sizes[: args.limit]
    groups = group_documents(sizes, args.batch_size)
    if args.memory == "other" and model.decoder.memory.options["scope"] == "batch":
        raise ValueError(
            "--memory other needs a memory for each document: give --memory-scope stream"
        )
    if args.memory == "other" and min(len(group) for group in groups) < 2:
        raise ValueError(
            f"--batch-size ({args.batch_size}) leaves one of {len(sizes)} documents alone, without "
            "another whose memory it could read: choose another number"
        )
    names = ("bin", "idx", "documents.jsonl")
    files = {name: f"{os.path.join(args.data, args.split)}.{name}" for name in names}
    if questions:
        files["questions"] = os.path.join(args.data, f"{args.split}.questions.jsonl")
    if args.memory_writer:
        files["memory writer"] = args.memory_writer
    asked = by_document(questions, documents.sizes, files.get("questions"))
    hashes = {name: file_hash(path) for name, path in files.items()}
    log = ItemLog(args.results, model_options.settings(args, model, args.benchmark, hashes))
    records: Dict[int, Dict] = {}
    with tqdm(total=int(sizes.sum()), unit="tok", unit_scale=True) as bar:
        for number, group in enumerate(groups):
            if str(number) in log.done:
                bar.update(int(sizes[group].sum()))
            else:
                watch = Stopwatch()
                scored = dict(
                    score_group(model, task, Documents(documents, group), descriptions, bar)
                )
                found = {str(i): record_of(scored[i], asked[i]) for i in group}
                seconds = watch.seconds / len(group)
                log.add(str(number), {"documents": found, "seconds_each": seconds})
            done = log.done[str(number)]
            for i, record in done["documents"].items():
                records[int(i)] = {**record, "seconds": done["seconds_each"]}
    return [records[i] for i in range(len(sizes))]


def record_of(scores: DocumentScores, questions: List[Dict]) -> Dict:
    """What is kept of a document: sums of negative log-likelihoods, and which answers were right."""
    by_position = []
    start, stop = 0, 1024
    while start < len(scores.nll):
        part = scores.nll[start:stop]
        by_position.append([len(part), float(part.sum(dtype=np.float64))])
        start, stop = stop, 2 * stop
    answers = [slice(q["position"], q["position"] + q["tokens"]) for q in questions]
    return {
        "name": scores.name,
        "tokens": len(scores.nll),
        "words": scores.words,
        "nll": float(scores.nll.sum(dtype=np.float64)),
        "by_position": by_position,
        "answers": [bool(scores.right[answer].all()) for answer in answers],
    }


def summarise(records: List[Dict]) -> Dict:
    """Perplexity per token and per word, per document, by its length, and by position in it."""
    return {
        **perplexities(records),
        "by_length": by_length(records),
        "by_position": by_position(records),
        "documents": [
            {"name": r["name"], "tokens": r["tokens"], "ppl": perplexity(r["nll"], r["tokens"])}
            for r in records
        ],
    }


def perplexities(records: List[Dict]) -> Dict:
    tokens, words, nll = (
        sum(record[key] for record in records) for key in ("tokens", "words", "nll")
    )
    return {
        "tokens": tokens,
        "words": words,
        "loss": mean_loss(nll, tokens),
        "ppl": perplexity(nll, tokens),
        "word_ppl": perplexity(nll, words),
    }


def by_length(records: List[Dict]) -> List[Dict]:
    """Perplexities of the documents in each of the paper's buckets that has any."""
    buckets = []
    for start, stop in zip(LENGTHS, LENGTHS[1:], strict=False):
        chosen = [r for r in records if start <= r["tokens"] < (stop or float("inf"))]
        if chosen:
            bucket = {"from": start, "to": stop, "documents": len(chosen)}
            buckets.append({**bucket, **perplexities(chosen)})
    return buckets


def by_position(records: List[Dict]) -> List[Dict]:
    """Perplexity of the tokens 0 to 1k, 1k to 2k, 2k to 4k, ... of all documents."""
    buckets = []
    start, stop = 0, 1024
    for place in range(max(len(record["by_position"]) for record in records)):
        parts = [r["by_position"][place] for r in records if place < len(r["by_position"])]
        tokens, nll = (sum(column) for column in zip(*parts, strict=True))
        bucket = {"from": start, "to": stop, "tokens": tokens, "ppl": perplexity(nll, tokens)}
        buckets.append(bucket)
        start, stop = stop, 2 * stop
    return buckets


def recall(records: List[Dict], questions: List[Dict], segment: int) -> Dict:
    """Share of the answers that were the first choice, token for token.

    Args:
        questions: of these documents
        segment: tokens of a segment
    """
    answers = {number: iter(record["answers"]) for number, record in enumerate(records)}
    right = np.array([next(answers[question["document"]]) for question in questions], dtype=bool)
    # target p is predicted by input p of its segment; a mentioned token is input p + 1
    visible = np.array(
        [(q["mention"] + 1) // segment == q["position"] // segment for q in questions], dtype=bool
    )
    distance = np.array([q["distance"] for q in questions])
    beyond = distance > segment
    edges = [1, *(2**power for power in range(5, 1 + max(5, int(distance.max()).bit_length())))]
    by_distance = []
    for start, stop in zip(edges, edges[1:], strict=False):
        chosen = (distance >= start) & (distance < stop)
        if chosen.any():
            by_distance.append(
                {
                    "from": start,
                    "to": stop,
                    "questions": int(chosen.sum()),
                    "recall": float(right[chosen].mean()),
                }
            )
    return {
        "questions": {"within": int(visible.sum()), "beyond": int(beyond.sum())},
        "recall": {
            "within": float(right[visible].mean()) if visible.any() else None,
            "beyond": float(right[beyond].mean()) if beyond.any() else None,
        },
        "recall_by_distance": by_distance,
    }


def describe(result: Dict) -> str:
    """The line for people."""
    line = (
        f"{result['name']} (memory: {result['memory']}): {result['tokens']:,} tokens, "
        f"ppl {decimal(result['ppl'], 3)}, per word {decimal(result['word_ppl'], 2)}"
    )
    if "gate" in result:
        line += f", gate {' '.join(f'{gate:.2f}' for gate in result['gate'])}"
    if "recall" in result:
        shares = ", ".join(
            f"{where} the window {100 * share:.1f}%"
            for where, share in result["recall"].items()
            if share is not None
        )
        line += f", recall {shares}"
        if result["chance"] is not None:
            line += f" (chance {100 * result['chance']:.1f}%)"
    return line


if __name__ == "__main__":
    run(main)
