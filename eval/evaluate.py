#!/usr/bin/env python3
"""Perplexity per document and by position, and recall by distance, of one checkpoint.

Example:
    python eval/evaluate.py data/books --path runs/longmem/checkpoint_last.pt --name longmem

Reads every document of a split from its first to its last token, --batch-size of them side by side.
Appends one JSON line to --results and prints one line for people. For a corpus with questions
(preprocess/make_recall_corpus.py) it counts how many answers are the model's first choice: *within*
the window, where the fact was last mentioned in the same segment, and *beyond*, where that was more
than --tokens-per-sample tokens ago.
"""

import argparse
import json
import os
from typing import Dict, List

import numpy as np

from longmem_fairseq.cli import run
from stream_scoring import (
    MEMORIES,
    DocumentScores,
    Stopwatch,
    load_model,
    perplexity,
    read_json_lines,
    score_documents,
    use_memory,
)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    overridden = " (default: as in the checkpoint)"
    add("data", help="folder made by preprocess/prepare_corpus.py")
    add("--path", required=True, help="checkpoint")
    add("--name", required=True, help="what to call the model in results")
    add("--split", default="test", help="split to read")
    add("--results", help="file to append the JSON line to")
    add("--tokens-per-sample", type=int, default=1024, help="tokens of a segment")
    add("--batch-size", type=int, default=8, help="documents read side by side")
    add(
        "--memory",
        choices=MEMORIES,
        default="own",
        help="own: the document's past; the controls empty, and other: another document's past",
    )
    add("--no-memory", action="store_true", help="without a memory bank")
    add("--memory-size", type=int, help="tokens of the memory bank" + overridden)
    add("--chunk-size", type=int, help="tokens per chunk" + overridden)
    add("--k", type=int, help="tokens retrieved per query and head" + overridden)
    add("--compute-dtype", help="type of the matrix products" + overridden)
    add("--pretrained-model-path", help="checkpoint of the backbone" + overridden)
    add("--seed", type=int, help="recorded in the results: the training seed")
    return parser


def main() -> None:
    args = get_parser().parse_args()
    if args.memory == "other" and args.batch_size < 2:
        raise ValueError(
            "--memory other needs --batch-size of at least 2: another document to read"
        )
    model, task = load_model(
        args.path,
        args.data,
        args.tokens_per_sample,
        no_memory=args.no_memory,
        memory_size=args.memory_size,
        chunk_size=args.chunk_size,
        k=args.k,
        compute_dtype=args.compute_dtype,
        pretrained_model_path=args.pretrained_model_path,
    )
    use_memory(model, args.memory)
    watch = Stopwatch()
    scored = dict(score_documents(model, task, args.split, args.batch_size))
    documents = [scored[number] for number in sorted(scored)]
    result = {
        "name": args.name,
        "data": args.data,
        "split": args.split,
        "memory": args.memory,
        "seed": args.seed,
        **summarise(documents),
    }
    questions = os.path.join(args.data, f"{args.split}.questions.jsonl")
    if os.path.isfile(questions):
        with open(os.path.join(args.data, "manifest.json"), encoding="utf-8") as manifest:
            result["chance"] = json.load(manifest).get("chance")
        result.update(recall(scored, read_json_lines(questions), args.tokens_per_sample))
    result["seconds"] = round(watch.seconds, 1)
    if args.results:
        with open(args.results, "a", encoding="utf-8") as results:
            results.write(json.dumps(result) + "\n")
    print(describe(result))


def summarise(documents: List[DocumentScores]) -> Dict:
    """Perplexity per token and per word, per document and by position in the document."""
    nll = sum(float(d.nll.sum(dtype=np.float64)) for d in documents)
    tokens = sum(len(d.nll) for d in documents)
    words = sum(d.words for d in documents)
    return {
        "tokens": tokens,
        "words": words,
        "loss": nll / tokens,
        "ppl": perplexity(nll, tokens),
        "word_ppl": perplexity(nll, words),
        "by_position": by_position(documents),
        "documents": [
            {
                "name": d.name,
                "tokens": len(d.nll),
                "ppl": perplexity(float(d.nll.sum(dtype=np.float64)), len(d.nll)),
            }
            for d in documents
        ],
    }


def by_position(documents: List[DocumentScores]) -> List[Dict]:
    """Perplexity of the tokens 0 to 1k, 1k to 2k, 2k to 4k, ... of all documents."""
    buckets = []
    start, stop = 0, 1024
    while any(len(d.nll) > start for d in documents):
        parts = [d.nll[start:stop] for d in documents]
        nll = sum(float(part.sum(dtype=np.float64)) for part in parts)
        tokens = sum(len(part) for part in parts)
        buckets.append(
            {"from": start, "to": stop, "tokens": tokens, "ppl": perplexity(nll, tokens)}
        )
        start, stop = stop, 2 * stop
    return buckets


def recall(scored: Dict[int, DocumentScores], questions: List[Dict], segment: int) -> Dict:
    """Share of the answers that were the first choice, token for token."""
    right = np.zeros(len(questions), dtype=bool)
    visible = np.zeros(len(questions), dtype=bool)
    distance = np.array([q["distance"] for q in questions])
    for i, question in enumerate(questions):
        scores, at = scored[question["document"]], question["position"]
        answer = slice(at, at + question["tokens"])
        right[i] = scores.right[answer].all()
        # target p is predicted by input p of its segment; a mentioned token is input p + 1
        visible[i] = (question["mention"] + 1) // segment == at // segment
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
    line = (
        f"{result['name']} (memory: {result['memory']}): {result['tokens']:,} tokens, "
        f"ppl {result['ppl']:.3f}, per word {result['word_ppl']:.2f}"
    )
    if "recall" in result:
        shares = ", ".join(
            f"{where} the window {100 * share:.1f}%"
            for where, share in result["recall"].items()
            if share is not None
        )
        line += f", recall {shares} (chance {100 * result['chance']:.1f}%)"
    return line


if __name__ == "__main__":
    run(main)
