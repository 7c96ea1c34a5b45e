#!/usr/bin/env python3
"""Perplexity per document, by length and by position, and recall by distance, of one checkpoint.

Example:
    python -m eval.evaluate data/books --path runs/longmem/checkpoint_last.pt --name longmem

Reads every document of a split from its first to its last token, up to --batch-size of similar length
side by side. Appends one JSON line to --results and prints one for people; killed and started again
with the same options, it goes on with the documents that are left. For a corpus with questions
(preprocess/make_recall_corpus.py) it counts the answers that are the model's first choice: *within* the
window, where the fact was last mentioned in the same segment, and *beyond*, where that was more than
--tokens-per-sample tokens ago. eval/perplexities.py has the tables, the plot and the paper's numbers.
"""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Dict, List

import numpy as np
from tqdm import tqdm

from eval.common import model_options
from eval.common.documents import QUESTION, Documents, by_document, group_documents, load_documents
from eval.common.item_log import ItemLog
from eval.common.memory_controls import MEMORIES, control_memory
from eval.common.results import append_result, check_results, read_json_lines
from eval.common.stream_scoring import DocumentScores, load_model, score_group
from eval.common.tables import decimal
from eval.perplexities import by_position, perplexities, positions, recall, summarize
from longmem_fairseq.tasks.config import given_options
from longmem_fairseq.utils.allocator import keep_freed_memory
from longmem_fairseq.utils.cli import check_positive, run, script_parser
from longmem_fairseq.utils.file_hash import file_hash
from longmem_fairseq.utils.text_files import chance_of, read_json


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("data", help="folder made by preprocess/prepare_corpus.py")
    add("--benchmark", default="perplexity", help="name of the corpus in results: books, arxiv")
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
        help="checkpoint, such as an older one, that writes the memory instead of --path",
    )
    add("--seed", type=int, help="recorded in the results: the training seed")
    model_options.add_model_options(parser)
    return parser


def main() -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args()
    check_positive(args, "batch_size", "limit")
    if args.memory == "other" and args.batch_size < 2:
        raise ValueError(
            "--memory other needs --batch-size of at least 2: another document to read"
        )
    check_results("--results", args.results)
    options = given_options(args)
    keep_freed_memory()
    segments = (args.tokens_per_sample, args.device, args.segment_overlap)
    model, task = load_model(args.path, args.data, *segments, **options)
    model_options.check_memory_options(args, model)
    writer = None
    if args.memory_writer:
        where = (args.data, model.decoder.window, args.device, model.decoder.overlap)
        writer, _ = load_model(args.memory_writer, *where, **options)
    control_memory(model, args.memory, writer)
    result = {
        "benchmark": args.benchmark,
        **model_options.describe_model(args, model),
        "split": args.split,
        "memory": args.memory,
        "memory_writer": args.memory_writer,
        "seed": args.seed,
    }
    if model.decoder.memory is not None and model.decoder.gate is not None:
        result["gate"] = model.decoder.gate.tolist()
    path = os.path.join(args.data, f"{args.split}.questions.jsonl")
    questions = read_json_lines(path, QUESTION) if os.path.isfile(path) else []
    manifest = Path(args.data) / "manifest.json"
    chance = chance_of(read_json(manifest), manifest) if questions else None
    records = read_split(args, model, task, questions)
    result.update(summarize(records))
    if getattr(model.decoder, "pointer", None) is not None:
        # of a model without a SideNet that is the backbone, in the same pass
        without = [{**record, **record["without_pointer"]} for record in records]
        result["without_pointer"] = {**perplexities(without), "by_position": by_position(without)}
    questions = [question for question in questions if question["document"] < len(records)]
    if questions:
        result["chance"] = chance
        segment = (model.decoder.window, model.decoder.overlap)
        result.update(recall(records, questions, *segment))
    result["seconds"] = round(sum(record["seconds"] for record in records), 1)
    append_result(args.results, result)
    print(describe(result))


def read_split(args: argparse.Namespace, model, task, questions: List[Dict]) -> List[Dict]:
    """The record of every document, in order. A killed run goes on with the documents that are left."""
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
    questions_of = by_document(questions, documents.sizes, files.get("questions"))
    hashes = {name: file_hash(path) for name, path in files.items()}
    log = ItemLog(args.results, model_options.settings(args, model, args.benchmark, hashes))
    records: Dict[int, Dict] = {}

    def scored(group: List[int]) -> Dict:
        scores = dict(score_group(model, task, Documents(documents, group), descriptions, bar))
        return {"documents": {str(i): record_of(scores[i], questions_of[i]) for i in group}}

    with tqdm(total=int(sizes.sum()), unit="tok", unit_scale=True) as bar:
        for number, group in enumerate(groups):
            if str(number) in log.done:
                bar.update(int(sizes[group].sum()))
            done = log.measured(str(number), partial(scored, group))
            for i, record in done["documents"].items():
                records[int(i)] = {**record, "seconds": done["seconds"] / len(group)}
    return [records[i] for i in range(len(sizes))]


def record_of(scores: DocumentScores, questions: List[Dict]) -> Dict:
    """Sums of a document's negative log-likelihoods, and which of its answers were right."""
    answers = [slice(q["position"], q["position"] + q["tokens"]) for q in questions]
    return {
        "name": scores.name,
        "tokens": len(scores.nll),
        "words": scores.words,
        **sums(scores.nll),
        "without_pointer": sums(scores.nll_without_pointer),
        "answers": [bool(scores.right[answer].all()) for answer in answers],
    }


def sums(nll: np.ndarray) -> Dict:
    """Of a document's tokens, and of those at each of :func:`positions` with their number."""
    parts = [nll[tokens] for tokens in positions(len(nll))]
    summed = [[len(part), float(part.sum(dtype=np.float64))] for part in parts]
    return {"nll": float(nll.sum(dtype=np.float64)), "by_position": summed}


def describe(result: Dict) -> str:
    """The line for people."""
    line = (
        f"{result['name']} (memory: {result['memory']}): {result['tokens']:,} tokens, "
        f"ppl {decimal(result['ppl'], 3)}, per word {decimal(result['word_ppl'], 2)}"
    )
    if "without_pointer" in result:
        line += f", without its pointer {decimal(result['without_pointer']['ppl'], 3)}"
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
