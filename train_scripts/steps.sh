#!/usr/bin/env bash
# Sourced by the scripts that go through several steps, each with its own log. They set RUN_DIR, and define
# log, which prints the line before a step.

fail_with_log() { # STEP LOG: prints the log's end and one line, and ends the script
  tail -n 5 "$2" >&2
  echo "$(basename "$0"): error: $1 failed, see $2" >&2
  exit 2
}

train() { # NAME SCRIPT [ARGUMENT ...]: trains RUN_DIR/NAME unless it is there, with its log beside it
  local name=$1 script=$2
  shift 2
  if [[ -f "$RUN_DIR/$name/dict.txt" ]]; then return; fi
  log "training $name (log: $RUN_DIR/$name.log)"
  SAVE_DIR="$RUN_DIR/$name" bash "$(dirname "${BASH_SOURCE[0]}")/$script" "$@" >"$RUN_DIR/$name.log" 2>&1 \
    || fail_with_log "training $name" "$RUN_DIR/$name.log"
}
