#!/usr/bin/env bash
# Speed and peak memory at 4k and 8k tokens of context (table 6 of the paper): LongMem, which holds all but
# 1,024 of them in memory, against the backbone that reads all of them in its window. Random weights.
#
#   bash eval/efficiency.sh                       # the paper's size; PRESET=small for a smaller one
#
# Paper, on one GPU: 4k: GPT-2* 14,666 tokens/s and 20.7 GB, LongMem 22,638 and 13.3 GB; 8k: 8,417 and
# 54.2 GB, 21,343 and 13.4 GB. Compare ratios: 1.54 and 2.54 times the tokens/s, 0.64 and 0.25 of the
# memory. RESULTS_DIR gets a JSON file and a plot for each length. Arguments go to eval/benchmark_model.py.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

RESULTS_DIR=${RESULTS_DIR:-runs/efficiency}
declare -A paper=(
  [4096]="GPT-2* 14,666 tokens/s, 20.7 GB; LongMem 22,638 tokens/s, 13.3 GB"
  [8192]="GPT-2* 8,417 tokens/s, 54.2 GB; LongMem 21,343 tokens/s, 13.4 GB"
)
mkdir -p "$RESULTS_DIR"
for context in 4096 8192; do
  python "$here/benchmark_model.py" --preset "${PRESET:-gpt2_medium}" --mode evaluation \
    --compute-dtype "${COMPUTE_DTYPE:-bfloat16}" --memory-size "$((context - 1024))" \
    --batch-size 1 --window-contexts "$context" \
    --json "$RESULTS_DIR/efficiency_$context.json" --plot "$RESULTS_DIR/efficiency_$context.png" "$@"
  echo "paper, $context tokens: ${paper[$context]}"
done
