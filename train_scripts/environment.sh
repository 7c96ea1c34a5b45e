#!/usr/bin/env bash
# Sourced by the other scripts, with the name of an extra of setup.py:
#
#   source train_scripts/environment.sh cpu
#
# Leaves a virtual environment active that holds this checkout (editable) and the extra: the one that
# is active already, else .venv of the checkout, made if need be. Installs only if something is missing.
# A torch that is there already stays; a new one is the version of constraints.txt.

longmem_environment() {
  local extra=$1 root candidate missing python=""
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

  if [[ -z "${VIRTUAL_ENV:-}" ]]; then
    if [[ ! -x "$root/.venv/bin/pip" ]]; then
      for candidate in python3.11 python3.12 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
          python=$candidate
          break
        fi
      done
      if [[ -z "$python" ]]; then
        echo "environment.sh: error: no Python 3.11 or newer found (tried python3.11, python3.12, python3)" >&2
        return 2
      fi
      "$python" -m venv "$root/.venv" || return
    fi
    # shellcheck disable=SC1091  # made two lines above
    source "$root/.venv/bin/activate"
  fi
  export PATH="$VIRTUAL_ENV/bin:$PATH"

  # faiss-cpu must not go on top of faiss-gpu.
  if python -I -m pip show --quiet faiss-gpu 2>/dev/null; then
    extra=${extra/#cpu/gpu}
    if [[ "$extra" != gpu && "$extra" != hf ]]; then extra+=-gpu; fi
  fi

  missing=$(python -I "$root/train_scripts/missing_requirements.py" "$root" "$extra") || return
  if [[ -n "$missing" ]]; then
    echo "Installing longmem-fairseq[$extra] into $VIRTUAL_ENV (missing: ${missing//$'\n'/, })" >&2
    longmem_install "$root" "$extra"
  fi
}

# fairseq is compiled when it is installed, against torch. pip would fetch the newest torch for that
# alone; without build isolation it takes the one that is going to be used.
longmem_install() (
  cd "$1" || return
  torch=$(python -I -c 'from importlib.metadata import version; print(version("torch").partition("+")[0])' 2>/dev/null) || torch=""
  constraints=$(mktemp)
  trap 'rm -f "$constraints"' EXIT
  sed "${torch:+s/^torch==.*/torch==$torch/}" constraints.txt >"$constraints"
  python -m pip install --quiet -c "$constraints" torch numpy cython "setuptools>=64" wheel || return
  python -m pip install --quiet -c "$constraints" --no-build-isolation -e ".[$2]" || return
  # fairseq's metadata asks for torchaudio, of which only a task for speech makes use. The one of PyPI needs
  # CUDA, and beside a torch without it no model class of transformers can be imported.
  if ! python -I -c "import torchaudio" 2>/dev/null; then
    python -m pip uninstall --quiet --yes torchaudio
  fi
)

longmem_environment "${1:?the extra to install, one of cpu, gpu, test, dev}"
