#!/usr/bin/env python3
"""Export a trained SideNet: safetensors, config.json, dictionary, tokenizer and a model card.

Example:
    python -m eval.export_longmem runs/longmem/checkpoint_last.pt --dest exported --backbone gpt2 \
        --results runs/results.jsonl

Whatever takes a checkpoint takes exported/model.safetensors, with --pretrained-model-path for the
backbone, which is not part of it. The card's table has the lines that eval/evaluate.py wrote.
"""

import argparse
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from fairseq import checkpoint_utils

from eval.common.results import read_json_lines
from eval.common.tables import decimal
from longmem_fairseq.fairseq_patches import install
from longmem_fairseq.models.exported import WEIGHTS_FILE, write_exported
from longmem_fairseq.tokenizers.folder import copy_vocabulary
from longmem_fairseq.utils.cli import documented_parser, run
from longmem_fairseq.utils.output_folder import check_new, replaced_folder

SHOWN = (
    *("layer_reduction_factor", "retrieval_layer_index", "sidenet_init", "memory_size"),
    *("chunk_size", "k", "memory_heads", "memory_distance", "compute_dtype", "backbone_dtype"),
)


def get_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = documented_parser(__doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, help="of a longmem, in its folder with dict.txt and tokenizer")
    add("--dest", type=Path, required=True, help="new or empty folder to write")
    add("--backbone", default="", help="name of the backbone on the card")
    add("--results", type=Path, help="JSON lines of eval/evaluate.py, for the card")
    return parser


def result_table(path: Path) -> List[str]:
    """Markdown, of the lines of eval/evaluate.py.

    Raises:
        FileNotFoundError, ValueError: there are none
    """
    table = ["| model | tokens | perplexity | per word |", "| --- | ---: | ---: | ---: |"]
    for number, line in enumerate(read_json_lines(path), start=1):
        try:
            ppl, word_ppl = (decimal(line[field], 3) for field in ("ppl", "word_ppl"))
            numbers = f"{line['tokens']:,} | {ppl} | {word_ppl}"
            table.append(f"| {line['name']} | {numbers} |")
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"--results ({path}): result {number} is not one of eval/evaluate.py, which have "
                "name, tokens, ppl and word_ppl"
            ) from None
    return table


def model_card(config: Dict[str, Any], backbone: str, results: List[str]) -> List[str]:
    """Markdown from the configuration of the run; *results* is a table of its results, or empty."""
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
    if results:
        lines += ["", "Measured with `eval/evaluate.py`:", "", *results]
    return lines


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Runs the script; see the module's documentation."""
    args = get_parser().parse_args(argv)
    check_new(args.dest)
    results = [] if args.results is None else result_table(args.results)
    install()
    state = checkpoint_utils.load_checkpoint_to_cpu(str(args.checkpoint))
    name = str(state["cfg"]["model"]["_name"])
    if name != "longmem":
        raise ValueError(
            f"{args.checkpoint} holds a model of architecture {name}, expected longmem"
        )
    with replaced_folder(args.dest) as folder:
        config = write_exported(folder, state)
        copy_vocabulary(args.checkpoint.parent, folder)
        card = model_card(config, args.backbone, results)
        (folder / "README.md").write_text("\n".join(card) + "\n", encoding="utf-8")
    print(args.dest / WEIGHTS_FILE)


if __name__ == "__main__":
    run(main)
