#!/usr/bin/env bash
# In-context learning (table 4 of the paper): SST-2, MR, Subj, SST-5, MPQA with 4 and 20 demonstrations in
# context and up to 2,000 in memory, 6 seeds.
#
#   RUN_DIR=runs/books DATA=data/icl bash eval/icl.sh
#
# DATA holds the folders SST-2, mr, subj, sst-5 and mpqa of the released project's data/icl/original.
# Paper, mean accuracy of the five tasks with 20 in context: GPT-2* 58.7%, LongMem with 2,000 in memory
# 66.7%. Expect from tiny models trained on books: about 0% by the paper's rule (--scoring argmax), because
# they never say a label word, and the most frequent label's share by --scoring rank.
# The paper's chunk size here is 2. Settings: those of eval/benchmark.sh (memory options in
# MEMORY_OPTIONS), and below. Arguments go to eval/icl.py, for all models.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
MEMORY_OPTIONS=${MEMORY_OPTIONS---chunk-size 2 --memory-size 131072}
# shellcheck source=eval/benchmark.sh
source "$here/benchmark.sh"

DATA=${DATA:?folder of the five tasks}
tasks=(--data "$DATA" --tasks "SST-2,MR,Subj,SST-5,MPQA" --shots "4,20" --seeds "1,2,3,4,5,6")
plain_options=(--memory-demonstrations 0)
memory_options=(--memory-demonstrations "0,200,2000" "${memory_options[@]}")
run_models icl icl "${tasks[@]}" "$@"
report icl
