#!/usr/bin/env bash
# One training under torchrun that is killed (SIGKILL) KILLS times at random moments, and one that is not.
# A kill hits a rank, at random, or torchrun and all ranks, while they start, train or save. Expect, in about
# 7 minutes on 2 cores:
#
#   20 kills, N of them in the middle of a save: all parameters equal bit for bit, no file left half-written
#
# Settings: KILLS, RANKS, UPDATES, SEED, and WORK_DIR for what it writes (default: a temporary folder).
# UPDATES must last for KILLS: between two kills up to 2 seconds are trained.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source train_scripts/environment.sh test

KILLS=${KILLS:-20}
RANKS=${RANKS:-2}
UPDATES=${UPDATES:-600}
RANDOM=${SEED:-1}
if [[ -z "${WORK_DIR:-}" ]]; then
  WORK_DIR=$(mktemp -d)
  trap 'rm -rf "$WORK_DIR"' EXIT
fi
export OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore

mkdir -p "$WORK_DIR/made"
python -c 'import sys, pathlib; from tests.helpers.training_runs import make_runs
make_runs(pathlib.Path(sys.argv[1]), pathlib.Path("."))' "$WORK_DIR/made" >"$WORK_DIR/made.log" 2>&1

data=(--task longmem_language_modeling --tokens-per-sample 8 --batch-size 2 --stream-span 9 --num-workers 0)
model=(--arch longmem --pretrained-model-path "$WORK_DIR/made/backbone.pt" --memory-size 32 --chunk-size 4 --k 8
  --retrieval-layer-index 1 --dropout 0.1)
optimization=(--criterion longmem_cross_entropy --optimizer adam --lr 3e-2 --clip-norm 1 --disable-validation
  --lr-scheduler polynomial_decay --total-num-update $((UPDATES + 1)) --max-update "$UPDATES")
output=(--log-format json --log-interval 1 --save-interval-updates 3 --keep-interval-updates 2 --no-epoch-checkpoints)

train() { # in the folder $1, by the process that calls it
  exec timeout --signal KILL 600 torchrun --standalone --nproc-per-node "$RANKS" --no-python fairseq-train \
    "$WORK_DIR/made/data1:$WORK_DIR/made/data2" --user-dir longmem_fairseq --cpu "${data[@]}" "${model[@]}" \
    "${optimization[@]}" "${output[@]}" --save-dir "$WORK_DIR/$1"
}

fail() {
  echo "soak.sh: error: $1; see $2" >&2
  tail -n 20 "$2" >&2
  trap - EXIT
  exit 1
}

seconds() { # a random number up to $1
  awk -v most="$1" -v share="$RANDOM" 'BEGIN { print most * share / 32768 }'
}

(train whole) >"$WORK_DIR/whole.log" 2>&1 || fail "the training failed" "$WORK_DIR/whole.log"

saving=0
for ((kill = 1; kill <= KILLS; kill++)); do
  log=$WORK_DIR/killed.$kill.log
  : >"$log"
  train killed >"$log" 2>&1 &
  launcher=$!
  moment=$((RANDOM % 4))
  if ((moment == 0)); then # while it starts
    sleep "$(seconds 8)"
  else
    until grep -q train_inner "$log" || ! kill -0 $launcher 2>/dev/null; do sleep 0.1; done
    sleep "$(seconds 2)"
  fi
  torchrun=$(pgrep --parent $launcher || true)
  mapfile -t ranks < <(pgrep --parent "${torchrun:-$launcher}" || true)
  if ((moment == 1)); then # while it saves
    until compgen -G "$WORK_DIR/killed/*.tmp" >/dev/null || ! kill -0 $launcher 2>/dev/null; do :; done
  fi
  if ((RANDOM % 2 == 0 && ${#ranks[@]} > 0)); then
    kill -KILL "${ranks[RANDOM % ${#ranks[@]}]}" || true
  else
    kill -KILL $launcher ${torchrun:+"$torchrun"} "${ranks[@]}" || true
  fi
  wait $launcher 2>>"$log" && fail "the training ended before it was killed: raise UPDATES" "$log"
  while pgrep --full -- "--save-dir $WORK_DIR/killed" >/dev/null; do sleep 0.1; done
  reached=$(grep -o '"num_updates": "[0-9]*"' "$log" | tail -n 1 | tr -dc 0-9 || true)
  half=$(find "$WORK_DIR/killed" \( -name '*.tmp' -o -name '*.part' \) 2>/dev/null | head -n 1)
  if [[ -n "$half" ]]; then saving=$((saving + 1)); fi
  echo "kill $kill: ${#ranks[@]} ranks, after update ${reached:-none}${half:+, left $(basename "$half")}"
done
(train killed) >"$WORK_DIR/killed.log" 2>&1 || fail "the training failed" "$WORK_DIR/killed.log"

python - "$WORK_DIR/killed" "$WORK_DIR/whole" <<'END' || fail "the two trainings differ" "$WORK_DIR/killed.log"
import sys
from pathlib import Path
import torch
from longmem_fairseq.memory.memory_file import read_memory_file
from tests.helpers.training_runs import assert_same_state, named

killed, whole = map(Path, sys.argv[1:])
states = [torch.load(folder / "checkpoint_last.pt") for folder in (killed, whole)]
assert_same_state(*states)  # parameters, optimizer, position, sums of losses
expected = {"checkpoint_last.pt"}
for path in killed.glob("checkpoint_*.pt"):
    expected |= {path.name, *(named(path) or [])}  # and its memory, a file per rank
found = {path.name for path in killed.iterdir()}
assert found == expected, found ^ expected
for path in killed.glob("memory_*"):
    read_memory_file(str(path))  # compares its checksums
END
echo "$KILLS kills, $saving of them in the middle of a save: all parameters equal bit for bit, no file left half-written"
