#!/usr/bin/env bash
# Sourced by the other scripts: sets COMPUTE_DTYPE, unless it is set, to bfloat16 where the machine
# multiplies in it (a CUDA GPU, or a CPU that has the instructions), else to float32.
if [[ -z "${COMPUTE_DTYPE:-}" ]]; then
  COMPUTE_DTYPE=float32
  if grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null || nvidia-smi -L >/dev/null 2>&1; then
    COMPUTE_DTYPE=bfloat16
  fi
fi
