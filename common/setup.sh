# Sourced by demo.sh and test.sh in the project's folder: makes .venv, or makes it again when the requirements changed.
# Needs python3 (3.11 or newer) with venv.

wanted=$(cat requirements.txt tests/requirements.txt)
if [ "$wanted" != "$(cat .venv/requirements.installed 2>/dev/null)" ] || ! .venv/bin/python -c '' 2>/dev/null; then
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "error: python3 is missing or older than 3.11: install a newer one" >&2
        exit 2
    fi
    echo "Setting up .venv (about 5 GB with torch, once)"
    python3 -m venv --clear .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
    printf '%s' "$wanted" > .venv/requirements.installed
fi
