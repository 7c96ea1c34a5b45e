#!/usr/bin/env bash
# Fuzzes every format that is read, one after another: all of them, or those that are named.
#
#   pip install -e '.[fuzz]'                            # in the environment of the tests
#   bash tests/fuzz.sh                                  # 10 minutes each: some 8 hours
#   SECONDS_PER_FORMAT=60 bash tests/fuzz.sh memory checkpoint
#
# Expect "N formats, no findings". A finding is printed, kept in $FINDINGS, and makes it end with 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${SECONDS_PER_FORMAT:=600}" "${FINDINGS:=runs/fuzz}"
export PYTHONPATH=. OMP_NUM_THREADS=1

if ! python -c 'import atheris' 2>/dev/null; then
  echo "fuzzing needs atheris: pip install -e '.[fuzz]'" >&2
  exit 2
fi
if (($# == 0)); then
  mapfile -t formats < <(python -c 'import logging; logging.disable()
from tests.fuzz.targets import TARGETS; print(*TARGETS, sep="\n")')
else
  formats=("$@")
fi
((${#formats[@]})) || exit 1
mkdir -p "$FINDINGS"
failed=()
for format in "${formats[@]}"; do
  log=$FINDINGS/$format.log
  if python tests/fuzz/fuzz_format.py "$format" --seconds "$SECONDS_PER_FORMAT" --findings "$FINDINGS" \
    >"$log" 2>&1; then
    echo "$format: $(grep -o 'number_of_executed_units: .*' "$log" | tr -s ' ')"
  else
    echo "$format: a finding, see $log"
    tail -n 15 "$log"
    failed+=("$format")
  fi
done
if ((${#failed[@]})); then
  echo "${#formats[@]} formats, findings in ${failed[*]}"
  exit 1
fi
echo "${#formats[@]} formats, no findings"
