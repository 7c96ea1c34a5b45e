#!/usr/bin/env bash
# RULER (arXiv 2404.06654): needles, variables, words and questions in contexts beyond the window.
#
#   RUN_DIR=runs/smollm2 TOKENS_PER_SAMPLE=1024 WIDE_WINDOWS=8192 HAYSTACK=essays SQUAD=dev-v1.1.json \
#     bash eval/ruler.sh
#
# Not in the paper. RUN_DIR/backbone is a converted model, which has a memory without training. As
# PLAIN_MODELS (backbone) with PLAIN_OPTIONS (--pointer none; empty for a model that never had a memory) it
# reads the end of every prompt; as MEMORY_MODELS (backbone) its memory, and as controls an empty one and
# that of another sample (MEMORY); then all of this again with EXCERPTS (512) tokens of memory read again
# before the question (0: not). The samples are made in DATA (RESULTS_DIR/ruler_data) if it is not there:
# LENGTHS (4096), TASKS (all but qa_2), SAMPLES (100), essays out of the texts in HAYSTACK, questions out of
# SQUAD. Further settings: those of eval/benchmark.sh. Arguments go to eval/ruler.py, for all models.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PLAIN_MODELS=${PLAIN_MODELS-backbone}
MEMORY_MODELS=${MEMORY_MODELS-backbone}
MEMORY_OPTIONS=${MEMORY_OPTIONS---memory-size 1048576}
# shellcheck source=eval/benchmark.sh
source "$here/benchmark.sh"

LENGTHS=${LENGTHS:-4096}
DATA=${DATA:-$RESULTS_DIR/ruler_data}
if [[ ! -d "$DATA" ]]; then
  python -m preprocess.make_ruler --model "$RUN_DIR/backbone" --dest "$DATA" --lengths "$LENGTHS" \
    --samples "${SAMPLES:-100}" ${TASKS:+--tasks "$TASKS"} ${HAYSTACK:+--haystack "$HAYSTACK"} \
    ${SQUAD:+--squad "$SQUAD"}
fi
run_contexts ruler --data "$DATA" --lengths "$LENGTHS" ${TASKS:+--tasks "$TASKS"} "$@"
