#!/usr/bin/env bash
# Sourced by the benchmarks. RUN_DIR holds a folder for each model (checkpoint, dictionary, tokenizer), as
# train_scripts/quickstart.sh and the converters of preprocess/ leave them. PLAIN_MODELS and MEMORY_MODELS
# name them: those without and those with a memory, which alone get the options in MEMORY_OPTIONS; a
# script's arguments go to all. The window is that of each checkpoint, or TOKENS_PER_SAMPLE; WIDE_WINDOWS
# adds the backbone with each of these longer ones, where its positions allow it. Result lines go to
# RESULTS_DIR, with the finished items of a killed run: started again it goes on there.
# shellcheck disable=SC2034  # used by the scripts that source this one
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH=$here/..${PYTHONPATH:+:$PYTHONPATH} # of eval and preprocess
RUN_DIR=${RUN_DIR:?folder with a folder for each model}
RESULTS_DIR=${RESULTS_DIR:-$RUN_DIR/results}
window=(${TOKENS_PER_SAMPLE:+--tokens-per-sample "$TOKENS_PER_SAMPLE"})
read -ra wide_windows <<<"${WIDE_WINDOWS-}"
read -ra plain_models <<<"${PLAIN_MODELS-backbone sidenet}"
read -ra memory_models <<<"${MEMORY_MODELS-memtrm longmem}"
read -ra memory_options <<<"${MEMORY_OPTIONS-}"
plain_options=() # of the models without a memory
export PYTHONWARNINGS=${PYTHONWARNINGS-ignore} # fairseq 0.12 and hydra: a page of them at every start

checkpoint_of() { # MODEL: its checkpoint
  local name
  for name in checkpoint_last.pt checkpoint.pt model.safetensors; do
    if [[ -f "$RUN_DIR/$1/$name" ]]; then
      echo "$RUN_DIR/$1/$name"
      return
    fi
  done
  echo "$(basename "$0"): error: $RUN_DIR/$1 holds no checkpoint_last.pt, checkpoint.pt or" \
    "model.safetensors: give RUN_DIR, PLAIN_MODELS and MEMORY_MODELS" >&2
  return 2
}

run_model() { # RESULTS PROGRAM MODEL NAME [ARGUMENT ...]: one benchmark of one model
  local results=$1 program=$2 model=$3 name=$4 checkpoint
  shift 4
  checkpoint=$(checkpoint_of "$model")
  python -m "eval.$program" --path "$checkpoint" --name "$name" --results "$RESULTS_DIR/$results.jsonl" \
    "${window[@]}" "$@"
}

run_plain_models() { # RESULTS PROGRAM [ARGUMENT ...]: one benchmark of those without a memory
  local results=$1 program=$2 model wide
  shift 2
  for model in "${plain_models[@]}"; do
    run_model "$results" "$program" "$model" "$model" "${plain_options[@]}" "$@"
  done
  for wide in "${wide_windows[@]}"; do
    local window=(--tokens-per-sample "$wide")
    run_model "$results" "$program" backbone "backbone, window $wide" "${plain_options[@]}" "$@"
  done
}

run_models() { # RESULTS PROGRAM [ARGUMENT ...]: one benchmark of all models, the plain ones first
  local results=$1 program=$2 model
  run_plain_models "$@"
  shift 2
  for model in "${memory_models[@]}"; do
    run_model "$results" "$program" "$model" "$model" "${memory_options[@]}" "$@"
  done
}

run_contexts() { # BENCHMARK [ARGUMENT ...]: contexts beyond the window; results and program have its name
  local benchmark=$1 model excerpts
  shift
  read -ra plain_options <<<"${PLAIN_OPTIONS---pointer none}"
  run_plain_models "$benchmark" "$benchmark" "$@"
  set -- --memory "${MEMORY:-own,empty,other}" "${memory_options[@]}" "$@"
  for model in "${memory_models[@]}"; do
    run_model "$benchmark" "$benchmark" "$model" "$model with memory" "$@"
    if ((${EXCERPTS:=512})); then
      excerpts=(--excerpts "$EXCERPTS")
      run_model "$benchmark" "$benchmark" "$model" "$model with excerpts" "${excerpts[@]}" "$@"
      [[ "$model" == backbone ]] || continue # a SideNet reads keys and values, not words alone
      excerpts+=(--words-only)
      run_model "$benchmark" "$benchmark" "$model" "$model, words alone" "${excerpts[@]}" "$@"
    fi
  done
  report "$benchmark"
}

report() { # RESULTS: table and plot
  python -m eval.report "$RESULTS_DIR/$1.jsonl" --plot "$RESULTS_DIR/$1.png"
}
