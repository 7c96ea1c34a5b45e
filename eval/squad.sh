#!/usr/bin/env bash
# SQuAD v1.1 by open generation (table 5 of the paper): 3 demonstrations in context, 200 in memory.
#
#   RUN_DIR=runs/books DATA=dev-v1.1.json TRAIN=train-v1.1.json bash eval/squad.sh
#
# Paper, exact match / F1: GPT-2* 22.28 / 30.78, LongMem 26.77 / 35.70. Expect from tiny models trained on
# books: 0 and below 5. Settings: those of eval/benchmark.sh (memory options in MEMORY_OPTIONS), and
# below. Arguments go to eval/squad.py, for all models.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=eval/benchmark.sh
source "$here/benchmark.sh"

DATA=${DATA:?questions to answer, .json}
TRAIN=${TRAIN:?questions to demonstrate with, .json}
questions=(--data "$DATA" --train "$TRAIN" --shots 3 --seeds 1)
plain_options=(--memory-demonstrations 0)
memory_options=(--memory-demonstrations "0,200" "${memory_options[@]}")
run_models squad squad "${questions[@]}" "$@"
report squad
