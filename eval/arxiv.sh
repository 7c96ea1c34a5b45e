#!/usr/bin/env bash
# Perplexity on ArXiv papers (table 2 of the paper): LaTeX sources, or the Pile's validation split.
#
#   python -m preprocess.extract_arxiv --source pile/val.jsonl.zst --dest arxiv
#   python -m preprocess.prepare_corpus --source arxiv --dest data/arxiv --vocabulary runs/books/longmem
#   RUN_DIR=runs/books DATA_DIR=data/arxiv bash eval/arxiv.sh
#
# Paper, perplexity per token: GPT-2* 11.05, LongMem 10.05 (0.91 of it). Expect from tiny models that were
# trained on LaTeX (docs/results): 0.70, and 0.69 with MEMORY_OPTIONS="--memory-size 16384". Settings:
# those of eval/books.sh, memory options in MEMORY_OPTIONS. Arguments go to eval/evaluate.py, for all models.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
BENCHMARK=arxiv exec bash "$here/books.sh" "$@"
