#!/usr/bin/env bash
# Sourced by the scripts that go through several steps, each with its own log. They set RUN_DIR, and define
# log, which prints the line before a step.

fail_with_log() { # STEP LOG: prints the log's end and one line, and ends the script
  tail -n 5 "$2" >&2
  echo "$(basename "$0"): error: $1 failed, see $2" >&2
  exit 2
}

tell_updates() { # LOG: once a minute, while the script runs, how far a training of UPDATES has come
  local begun=$SECONDS told=$SECONDS count left
  while sleep 1 && kill -0 $$ 2>/dev/null; do
    if ((SECONDS - told < 60)); then continue; fi
    told=$SECONDS
    count=$(grep -o 'num_updates=[0-9]*' "$1" | tail -n 1 | cut -d = -f 2 || true)
    if [[ -z "$count" ]]; then continue; fi
    left=$(((SECONDS - begun) * (UPDATES - count) / count / 60))
    echo "          update $count of $UPDATES, about $left minutes left"
  done
}

train() { # NAME SCRIPT [ARGUMENT ...]: trains RUN_DIR/NAME unless it is there, with its log beside it
  local name=$1 script=$2 file=$RUN_DIR/$1.log telling status=0
  shift 2
  if [[ -f "$RUN_DIR/$name/dict.txt" ]]; then return; fi
  log "training $name (log: $file)"
  tell_updates "$file" &
  telling=$!
  SAVE_DIR="$RUN_DIR/$name" bash "$(dirname "${BASH_SOURCE[0]}")/$script" --log-interval 5 "$@" >"$file" 2>&1 \
    || status=$?
  kill "$telling"
  wait "$telling" 2>/dev/null || true
  if ((status)); then fail_with_log "training $name" "$file"; fi
}
