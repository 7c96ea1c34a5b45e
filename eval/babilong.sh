#!/usr/bin/env bash
# BABILong (arXiv 2406.10149): reasoning over facts that are hidden in books of up to a million tokens.
#
#   RUN_DIR=runs/smollm2 TOKENS_PER_SAMPLE=1024 WIDE_WINDOWS=8192 BABI=tasks_1-20_v1-2/en-10k BOOKS=pg19/test \
#     bash eval/babilong.sh
#
# Not in the paper. Models are as for eval/ruler.sh (PLAIN_MODELS, PLAIN_OPTIONS, MEMORY_MODELS, MEMORY, EXCERPTS).
# The samples are made in DATA (RESULTS_DIR/babilong_data) if it is not there: LENGTHS (4k), TASKS (qa1 to qa5),
# SAMPLES (100), of the questions in BABI and the texts in BOOKS. Further settings: those of
# eval/benchmark.sh. Arguments go to eval/babilong.py, for all models.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PLAIN_MODELS=${PLAIN_MODELS-backbone}
MEMORY_MODELS=${MEMORY_MODELS-backbone}
MEMORY_OPTIONS=${MEMORY_OPTIONS---memory-size 1048576}
# shellcheck source=eval/benchmark.sh
source "$here/benchmark.sh"

LENGTHS=${LENGTHS:-4k}
TASKS=${TASKS:-qa1,qa2,qa3,qa4,qa5}
DATA=${DATA:-$RESULTS_DIR/babilong_data}
if [[ ! -d "$DATA" ]]; then
  python -m preprocess.make_babilong --model "$RUN_DIR/backbone" --dest "$DATA" --lengths "$LENGTHS" \
    --tasks "$TASKS" --samples "${SAMPLES:-100}" --babi "${BABI:?folder of the files of bAbI}" \
    --books "${BOOKS:?folder of texts}"
fi
run_contexts babilong --data "$DATA" --lengths "$LENGTHS" --tasks "$TASKS" "$@"
