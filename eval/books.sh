#!/usr/bin/env bash
# Perplexity on books, by their length (table 2 of the paper): PG-22, PG-19, or any.
#
#   python -m preprocess.extract_gutenberg --source gutenberg --metadata pg_catalog.csv \
#     --from-year 2020 --to-year 2022 --dest pg22
#   python -m preprocess.prepare_corpus --source pg22 --dest data/pg22 --vocabulary runs/books/longmem
#   RUN_DIR=runs/books DATA_DIR=data/pg22 MEMORY_OPTIONS="--memory-size 16384" bash eval/books.sh
#
# Paper, PG-22, perplexity per token, 5-10k / 10-100k / 100-500k / 500k-1M / >1M tokens: GPT-2* 22.78 /
# 24.39 / 24.12 / 24.97 / 18.07, LongMem 21.29 / 23.01 / 22.55 / 23.35 / 16.71 (0.925 to 0.943 of it).
# Expect from tiny models (docs/results): LongMem at 0.88 of the backbone on the PG-19 test set, and 1.01
# when it reads an empty memory (CONTROLS=empty).
# Settings: those of eval/benchmark.sh (memory options in MEMORY_OPTIONS), and below. Arguments go to
# eval/evaluate.py, for all models.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=eval/benchmark.sh
source "$here/benchmark.sh"

DATA_DIR=${DATA_DIR:?folder made by preprocess/prepare_corpus.py}
BENCHMARK=${BENCHMARK:-books} # the name in results; eval/arxiv.sh sets another
read -ra controls <<<"${CONTROLS-}" # of the models with memory: empty, other

corpus=("$DATA_DIR" --benchmark "$BENCHMARK" --batch-size 8)
run_plain_models "$BENCHMARK" evaluate "${corpus[@]}" "$@"
for model in "${memory_models[@]}"; do
  run_model "$BENCHMARK" evaluate "$model" "$model" "${corpus[@]}" "${memory_options[@]}" "$@"
  for control in "${controls[@]}"; do
    run_model "$BENCHMARK" evaluate "$model" "${model}_${control}_memory" "${corpus[@]}" \
      "${memory_options[@]}" --memory "$control" "$@"
  done
done
report "$BENCHMARK"
