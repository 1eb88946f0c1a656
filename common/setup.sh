# Sourced by demo.sh and test.sh in the project's folder: makes .venv, or makes it again when the requirements changed;
# with versions=lowest .venv-lowest, of the lower bounds of pyproject.toml; with versions=newest .venv-newest, of what the
# registry has when it is made. Needs python3 (3.11 or newer) with venv.

bounds=$(sed -n '/^dependencies/,/^\[tool/p' pyproject.toml | grep -oE '[A-Za-z0-9_-]+>=[0-9.]+')
case ${versions:-} in
    lowest) venv=.venv-lowest wanted=${bounds//>=/==} ;;
    newest) venv=.venv-newest wanted=$(sed 's/>=.*//' <<< "$bounds") ;;
    *) venv=.venv wanted=$(cat requirements.txt tests/requirements.txt) ;;
esac
if [ "$wanted" != "$(cat $venv/requirements.installed 2>/dev/null)" ] || ! $venv/bin/python -c '' 2>/dev/null; then
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "error: python3 is missing or older than 3.11: install a newer one" >&2
        exit 2
    fi
    echo "Setting up $venv (about 5 GB with torch, once)"
    python3 -m venv --clear $venv
    printf '%s' "$wanted" > $venv/requirements.txt
    $venv/bin/python -m pip install --quiet --disable-pip-version-check -r $venv/requirements.txt
    mv $venv/requirements.txt $venv/requirements.installed
fi
