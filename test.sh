#!/usr/bin/env bash
# Set everything up, then run the tests; arguments go to pytest. REAL_DATA=DIR adds the tests on real photos.
set -euo pipefail
if [ -n "${REAL_DATA:-}" ]; then
    REAL_DATA=$(realpath "$REAL_DATA")
    export REAL_DATA
fi
cd "$(dirname "${BASH_SOURCE[0]}")"
. common/setup.sh
exec .venv/bin/python -m pytest "$@"
