#!/usr/bin/env bash
# Eight clients at once ask one longmem-serve on this machine for a minute: completions, whole and streamed,
# and documents that are added, listed and forgotten. Then a server that is adding documents is killed
# (SIGKILL) ten times, and its memory file read after each.
# Expect: "no error, no mixed memories", and "10 kills: the file was always the old or the new one".
#
#   MODEL=runs/quickstart/longmem tests/serving_soak.sh     (default: a tiny model, made for the purpose)
set -euo pipefail
cd "$(dirname "$0")/.."
SECONDS_OF_LOAD=${SECONDS_OF_LOAD:-60} python -m tests.helpers.serving_soak ${MODEL:+"$MODEL"} "$@"
