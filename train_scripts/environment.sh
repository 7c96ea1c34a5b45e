#!/usr/bin/env bash
# Sourced by the other scripts, with the name of an extra of setup.py:
#
#   source train_scripts/environment.sh cpu
#
# Leaves a virtual environment active that holds this checkout (editable) and the extra: the one that is
# active already, else .venv of the checkout, made if need be. Installed packages stay, torch above all.

longmem_environment() {
  local extra=$1 root mark
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  if [[ -z "${VIRTUAL_ENV:-}" ]]; then
    if [[ ! -x "$root/.venv/bin/pip" ]]; then python3 -m venv "$root/.venv" || return; fi
    # shellcheck disable=SC1091  # made in the line above
    source "$root/.venv/bin/activate"
  fi
  export PATH="$VIRTUAL_ENV/bin:$PATH"

  # faiss-cpu must not go on top of faiss-gpu
  if python -I -m pip show --quiet faiss-gpu 2>/dev/null; then
    extra=${extra/#cpu/gpu}
    if [[ "$extra" != gpu && "$extra" != hf ]]; then extra+=-gpu; fi
  fi
  mark=$VIRTUAL_ENV/longmem-fairseq.$extra # of which checkout it was; newer than setup.py: nothing to do
  if [[ "$mark" -nt "$root/setup.py" && "$(<"$mark")" == "$root" ]]; then return; fi

  # fairseq is compiled against torch when it is installed: against the one that is going to be used
  if ! python -I -c 'import torch, numpy, Cython, setuptools, wheel' 2>/dev/null; then
    python -m pip install --quiet -c "$root/constraints.txt" torch numpy cython "setuptools>=64" wheel || return
  fi
  python -m pip install --quiet --no-build-isolation -e "${root}[$extra]" || return
  # fairseq's metadata asks for torchaudio, which only a task for speech uses. PyPI's needs CUDA, and beside a
  # torch without it no model class of transformers can be imported.
  if ! python -I -c "import torchaudio" 2>/dev/null; then
    python -m pip uninstall --quiet --yes torchaudio
  fi
  echo "$root" >"$mark"
}

longmem_environment "${1:?the extra to install, one of cpu, gpu, test, dev}"
