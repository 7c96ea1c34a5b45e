#!/usr/bin/env bash
# Questions about many facts of one document (preprocess/make_recall_corpus.py): how many are answered, by
# the distance to the fact's last mention.
#
#   RUN_DIR=runs/quickstart bash eval/recall.sh
#
# Not in the paper. Expect the quickstart's numbers in README.md: beyond the window more than 95% with
# memory, 2.5% (chance) without. Settings: those of eval/books.sh, memory options in
# MEMORY_OPTIONS. Arguments go to eval/evaluate.py, for all models.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export RUN_DIR=${RUN_DIR:?folder with a folder for each model}
export DATA_DIR=${DATA_DIR:-$RUN_DIR/data} CONTROLS=${CONTROLS-empty other}
BENCHMARK=recall exec bash "$here/books.sh" "$@"
