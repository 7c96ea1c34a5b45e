#!/usr/bin/env bash
# ChapterBreak (table 3 of the paper): which of six beginnings opens the next chapter?
#
#   RUN_DIR=runs/books DATA=chapterbreak_ctx_8192.json bash eval/chapterbreak.sh
#
# DATA comes from https://github.com/SimengSun/ChapterBreak (ao3; --split pg19), or from books of yours:
#   python -m preprocess.make_chapterbreak --source books --dest chapterbreak.json
#   RUN_DIR=runs/books DATA=chapterbreak.json bash eval/chapterbreak.sh --split pg19
#
# Paper, AO3, 4k / 6k / 8k tokens of context: LongMem 37.7% / 39.4% / 40.5%; GPT-3 28% (8k). Chance is
# 16.7%. Expect from tiny models (docs/reproducing.md) 19.0 to 19.7% without memory, 21.3 to 22.4% with.
# Settings: those of eval/benchmark.sh (memory options in MEMORY_OPTIONS), and below. Arguments go to
# eval/chapterbreak.py, for all models.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=eval/benchmark.sh
source "$here/benchmark.sh"

DATA=${DATA:?file of items, .json}
items=(--data "$DATA" --split ao3 --contexts "4096,6144,8192")
run_models chapterbreak chapterbreak "${items[@]}" "$@"
report chapterbreak
