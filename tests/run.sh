#!/usr/bin/env bash
# Installs what the tests need (once), checks style and runs the tests; further arguments go to pytest.
# Expect "N passed" in under 10 minutes on 2 cores, installation included. Skipped tests print why.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source train_scripts/environment.sh dev

bash tests/lint.sh
python -m pytest -q -rs -n auto --dist loadfile "$@"
