#!/usr/bin/env python3
"""Export a trained SideNet: safetensors, config.json, dictionary, tokenizer and a model card.

Example:
    python eval/export_longmem.py runs/longmem/checkpoint_last.pt --dest exported --backbone gpt2 \
        --results runs/results.jsonl

Whatever takes a checkpoint takes exported/model.safetensors, with --pretrained-model-path for the
backbone, which is not part of it. The card's table has the lines that eval/evaluate.py wrote.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from fairseq import checkpoint_utils

from longmem_fairseq.cli import run
from longmem_fairseq.exported import WEIGHTS_FILE, write_exported
from results import read_json_lines

VOCABULARY = (
    *("dict.txt", "sentencepiece.model", "encoder.json", "vocab.bpe"),
    *("tokenizer.json", "ids.json"),
)
SHOWN = (
    *("layer_reduction_factor", "retrieval_layer_index", "sidenet_init", "memory_size"),
    *("chunk_size", "k", "memory_heads", "memory_distance", "compute_dtype", "backbone_dtype"),
)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="of a longmem, in its folder with dict.txt and tokenizer")
    add("--dest", type=Path, required=True, help="new or empty folder to write")
    add("--backbone", default="", help="what the card calls the backbone")
    add("--results", type=Path, help="JSON lines of eval/evaluate.py, for the card")
    return parser


def model_card(config: Dict[str, Any], backbone: str, results: Optional[Path]) -> List[str]:
    """Markdown, of what the run itself says."""
    lines = [
        "# LongMem SideNet",
        "",
        f"A SideNet and its memory gate ({config['num_updates']:,} updates) for the frozen backbone "
        f"{backbone or 'with the fingerprint below'}, which is not part of this folder. Use it with "
        "[longmem-fairseq](https://arxiv.org/abs/2306.07174): `--path model.safetensors "
        "--pretrained-model-path BACKBONE`.",
        "",
        "| option | value |",
        "| --- | --- |",
        f"| tokens of a segment | {config['task']['tokens_per_sample']} |",
        *(f"| {name} | {config['model'][name]} |" for name in SHOWN if name in config["model"]),
        f"| backbone, SHA-256 of its weights | `{config['backbone_fingerprint']}` |",
    ]
    if results is not None:
        lines += ["", "Measured with `eval/evaluate.py`:", ""]
        lines += ["| model | tokens | perplexity | per word |", "| --- | ---: | ---: | ---: |"]
        for line in read_json_lines(str(results)):
            numbers = f"{line['tokens']:,} | {line['ppl']:.3f} | {line['word_ppl']:.3f}"
            lines.append(f"| {line['name']} | {numbers} |")
    return lines


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = get_parser().parse_args(argv)
    if args.dest.exists() and (not args.dest.is_dir() or any(args.dest.iterdir())):
        raise ValueError(f"--dest ({args.dest}) is not empty: give a new or empty folder")
    state = checkpoint_utils.load_checkpoint_to_cpu(str(args.checkpoint))
    name = str(state["cfg"]["model"]["_name"])
    if name != "longmem":
        raise ValueError(
            f"{args.checkpoint} holds a model of architecture {name}, expected longmem"
        )
    args.dest.mkdir(parents=True, exist_ok=True)
    config = write_exported(args.dest, state)
    for file in VOCABULARY:
        if (args.checkpoint.parent / file).is_file():
            shutil.copyfile(args.checkpoint.parent / file, args.dest / file)
    card = model_card(config, args.backbone, args.results)
    (args.dest / "README.md").write_text("\n".join(card) + "\n", encoding="utf-8")
    print(args.dest / WEIGHTS_FILE)


if __name__ == "__main__":
    run(main)
