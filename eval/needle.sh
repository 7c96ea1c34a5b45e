#!/usr/bin/env bash
# A needle in a haystack of up to a million tokens: which facts are found, by length and depth.
#
#   RUN_DIR=runs/quickstart bash eval/needle.sh
#   RUN_DIR=runs/gpt2 FORMAT=passkey bash eval/needle.sh
#
# FORMAT=recall speaks the language of the quickstart's corpus, for its models; passkey is English. Not in
# the paper. Expect chance (2.5% in recall) from models without memory. On one core the quickstart's
# LongMem takes about 17 minutes for the 11 x 11 x 10 needles, and 3 GiB of memory.
# Settings: those of eval/benchmark.sh (memory options in MEMORY_OPTIONS), and below. Arguments go to
# eval/needle.py, for all models.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
MEMORY_OPTIONS=${MEMORY_OPTIONS---memory-size 1048576}
# shellcheck source=eval/benchmark.sh
source "$here/benchmark.sh"

FORMAT=${FORMAT:-recall}
DATA=${DATA:-$RESULTS_DIR/haystack_$FORMAT.json}
if [[ ! -f "$DATA" ]]; then
  python -m preprocess.make_haystack --format "$FORMAT" --dest "$DATA"
fi
grid=(--data "$DATA" --depths 11 --trials 10)
run_models needle needle "${grid[@]}" "$@"
report needle
