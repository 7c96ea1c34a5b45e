#!/usr/bin/env bash
# ruff (lint and format) and shellcheck over the whole checkout, as pip install -e '.[dev]' installs them.
# Expect "All checks passed!".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ruff check .
ruff format --check .
find . .ci/run -path './.*' -prune -o -path ./runs -prune -o \
  \( -name '*.sh' -o -path .ci/run \) -print0 | xargs -0 shellcheck --external-sources
