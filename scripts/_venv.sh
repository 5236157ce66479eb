# Sourced by the other scripts: make .venv with the pinned versions once, and put it first on the PATH.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="${PYTHON:-python3}"
VENV="${MEDUNET_VENV:-.venv}"
stamp="$VENV/.medunet-$(cat pyproject.toml constraints.txt | cksum | tr ' ' '-')"
if [ ! -e "$stamp" ]; then
    echo "making $VENV with the pinned versions (once; some minutes)" >&2
    "$PYTHON" -m venv "$VENV"
    # torch first: the exact pin takes the build that the package index offers for this machine
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' constraints.txt)"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
    touch "$stamp"
fi
PATH="$(cd "$VENV" && pwd)/bin:$PATH"
export PATH
