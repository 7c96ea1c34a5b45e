#!/usr/bin/env bash
# Speed and peak memory at 4k and 8k tokens of context (table 6 of the paper): LongMem, which holds all but
# 1,024 of them in memory, against the backbone that reads all of them in its window. Random weights.
#
#   bash eval/efficiency.sh                       # the paper's size; --preset small for a smaller one
#
# Paper, on one GPU: 4k: GPT-2* 14,666 tokens/s and 20.7 GB, LongMem 22,638 and 13.3 GB; 8k: 8,417 and
# 54.2 GB, 21,343 and 13.4 GB. Compare ratios: 1.54 and 2.54 times the tokens/s, 0.64 and 0.25 of the
# memory. Runs on a GPU if there is one. RESULTS_DIR gets the result lines and a plot; started again after a
# kill it goes on there. Arguments go to eval/efficiency.py.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH=$here/..${PYTHONPATH:+:$PYTHONPATH}
export PYTHONWARNINGS=${PYTHONWARNINGS-ignore} # fairseq 0.12 and hydra: a page of them at every start

results=${RESULTS_DIR:-runs/efficiency}/efficiency
python -m eval.efficiency --preset gpt2_medium --contexts 4096,8192 --compute-dtype bfloat16 \
  --results "$results.jsonl" "$@"
python -m eval.report "$results.jsonl" --plot "$results.png"
