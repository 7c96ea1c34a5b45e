#!/usr/bin/env bash
# Sourced by the scripts whose steps write to a log:
#
#   COMMAND >LOG 2>&1 || fail_with_log "training longmem" LOG

fail_with_log() { # WHAT LOG: prints the log's end and one line, and ends the script
  tail -n 5 "$2" >&2
  echo "$(basename "$0"): error: $1 failed, see $2" >&2
  exit 2
}
