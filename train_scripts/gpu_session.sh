#!/usr/bin/env bash
# Makes the most of an hour of GPU, in one resumable command: tests marked gpu, benchmarks, training of a SideNet
# with a pointer on a real backbone, and its evaluation. Results are small files in RESULTS_DIR.
#
#   DATA_DIRS="data/books data/latex" RUN_DIR=runs/gpu TRAIN_MINUTES=30 bash train_scripts/gpu_session.sh
#
# DATA_DIRS: folders made by preprocess/prepare_corpus.py --vocabulary MODEL_DIR; the first is trained on, and the
# test split of each is evaluated. MODEL_DIR: the backbone (get_backbone.sh). Settings: docs/running.md.
# Steps that are done are skipped. SIGTERM ends the step under way, a training with a checkpoint; the same
# command goes on from there. Expect "all steps are done", or the names of those that failed. A rehearsal:
#
#   DEVICE=cpu COMPUTE_DTYPE=float32 UPDATES=2 BATCH_SIZE=1 TOKENS_PER_SAMPLE=128 EVALUATED=2 SEEDS=1 \
#     DATA_DIRS=data/short bash train_scripts/gpu_session.sh
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
cd "$root"

RUN_DIR=${RUN_DIR:-runs/gpu}
RESULTS_DIR=${RESULTS_DIR:-$RUN_DIR/results}
MODEL_DIR=${MODEL_DIR:-models/smollm2}
read -ra data_dirs <<<"${DATA_DIRS:?folders made by preprocess/prepare_corpus.py}"
DEVICE=${DEVICE:-cuda}
TRAIN_MINUTES=${TRAIN_MINUTES:-30}
SEEDS=${SEEDS:-1 2}
EVALUATED=${EVALUATED:-} # first documents of each test split (default: all)
export COMPUTE_DTYPE=${COMPUTE_DTYPE:-bfloat16} TOKENS_PER_SAMPLE=${TOKENS_PER_SAMPLE:-1024}
export BATCH_SIZE=${BATCH_SIZE:-16} CHUNK_SIZE=1 STREAM_SPAN=${STREAM_SPAN:-32} LR=${LR:-7e-4}
export UPDATES=${UPDATES:-1000} RETRIEVAL_LAYER_INDEX=${RETRIEVAL_LAYER_INDEX:-21} PYTHONWARNINGS=ignore
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
overlap=(--segment-overlap $((TOKENS_PER_SAMPLE / 8))) # as context: docs/results/2026-11-27-memory-that-pays.md
mkdir -p "$RESULTS_DIR"

device=() quick=()
if [[ "$DEVICE" == cpu ]]; then device=(--cpu) quick=(--quick); fi
limit=()
if [[ -n "$EVALUATED" ]]; then limit=(--limit "$EVALUATED"); fi

group='' # of the processes of the step under way
stop() {
  trap '' TERM INT
  if [[ -n "$group" ]]; then
    kill -TERM -- "-$group" 2>/dev/null || true
    while kill -0 -- "-$group" 2>/dev/null; do sleep 0.2; done # a training saves its checkpoint
  fi
  exit 143
}
trap stop TERM INT

failed=()
once() { # NAME COMMAND ...: its output in RESULTS_DIR/NAME.log; a failure is told, and the rest goes on
  local name=$1 log=$RESULTS_DIR/$1.log
  shift
  if [[ -f "$log" ]]; then return; fi
  printf '%s  %s\n' "$(date +%H:%M:%S)" "$name"
  set -m # a process group of its own
  "$@" >"$log.part" 2>&1 &
  group=$!
  set +m
  if wait "$group"; then
    mv "$log.part" "$log"
  else
    echo "gpu_session.sh: $name failed, see $log.part" >&2
    failed+=("$name")
  fi
  group=''
}

once tests python -m pytest -q -rs -m gpu tests
once benchmark_memory python -m eval.benchmark_memory --device "$DEVICE" "${quick[@]}"
once benchmark_model python -m eval.benchmark_model --device "$DEVICE" "${quick[@]}"

export BACKBONE=$MODEL_DIR/checkpoint.pt DATA_DIR=${data_dirs[0]}
until_time_is_up() { # COMMAND ...: for TRAIN_MINUTES at most; SIGTERM then makes a training save a checkpoint
  local status=0
  timeout --foreground --signal=TERM "${TRAIN_MINUTES}m" "$@" || status=$?
  if ((status == 124)); then echo "stopped after $TRAIN_MINUTES minutes"; else return "$status"; fi
}
train() { # NAME [ARGUMENT ...]: until UPDATES or TRAIN_MINUTES
  local name=$1
  shift
  SAVE_DIR="$RUN_DIR/$name" LAUNCH=until_time_is_up once "train_$name" bash "$here/train_longmem.sh" \
    "${device[@]}" "${overlap[@]}" --save-interval-updates 200 --keep-interval-updates 1 "$@"
}
export -f until_time_is_up
export TRAIN_MINUTES
evaluate() { # NAME CHECKPOINT [ARGUMENT ...]: the test split of every folder
  local name=$1 checkpoint=$2 data
  shift 2
  for data in "${data_dirs[@]}"; do
    once "${name}_$(basename "$data")" python -m eval.evaluate "$data" --path "$checkpoint" --name "$name" \
      --benchmark "$(basename "$data")" --results "$RESULTS_DIR/perplexity.jsonl" --device "$DEVICE" \
      --compute-dtype "$COMPUTE_DTYPE" --batch-size 8 "${limit[@]}" "${overlap[@]}" "$@"
  done
}

hidden=(--memory-search hidden --chunk-size 1 --k 128 --memory-size 16384)
for seed in $SEEDS; do
  train "longmem_seed$seed" "${hidden[@]}" --pointer trained --seed "$seed"
  train "pointer_seed$seed" "${hidden[@]}" --pointer trained --no-sidenet --seed "$seed"
done
train sidenet --no-memory

evaluate backbone "$BACKBONE" --tokens-per-sample "$TOKENS_PER_SAMPLE"
evaluate backbone_full_window "$BACKBONE" --tokens-per-sample 8192 --batch-size 1
evaluate pointer_untrained "$BACKBONE" --tokens-per-sample "$TOKENS_PER_SAMPLE" --pointer constant
evaluate sidenet "$RUN_DIR/sidenet/checkpoint_last.pt"
for seed in $SEEDS; do
  for model in longmem pointer; do
    checkpoint=$RUN_DIR/${model}_seed$seed/checkpoint_last.pt
    evaluate "${model}_seed$seed" "$checkpoint"
    evaluate "${model}_seed${seed}_empty_memory" "$checkpoint" --memory empty
    evaluate "${model}_seed${seed}_other_memory" "$checkpoint" --memory other
  done
  for size in 4096 16384 262144; do
    evaluate "longmem_seed${seed}_memory$size" "$RUN_DIR/longmem_seed$seed/checkpoint_last.pt" --memory-size "$size"
  done
done
rm -f "$RESULTS_DIR/report.log" # of the lines before
once report python -m eval.report "$RESULTS_DIR/perplexity.jsonl" --plot "$RESULTS_DIR/perplexity.png"
if ((${#failed[@]})); then
  echo "gpu_session.sh: failed: ${failed[*]}" >&2
  exit 1
fi
echo "all steps are done: $RESULTS_DIR"
