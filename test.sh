#!/usr/bin/env bash
# Set everything up, then run the tests; arguments go to pytest. REAL_DATA=DIR adds the tests on real photos. With --lowest
# or --newest before all else they run with the oldest packages that pyproject.toml allows, or with the newest. -m slow chooses
# the few that take longest, which do not run otherwise.
set -euo pipefail
if [ -n "${REAL_DATA:-}" ]; then
    REAL_DATA=$(realpath "$REAL_DATA")
    export REAL_DATA
fi
cd "$(dirname "${BASH_SOURCE[0]}")"
versions=
case ${1:-} in --lowest | --newest) versions=${1#--} && shift ;; esac
. common/setup.sh
# A process a core, each with one thread. The tests of a file share what takes long to make: they stay together.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec $venv/bin/python -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
