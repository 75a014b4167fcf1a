#!/bin/sh
# scripts/setup.sh PYTHON: make .venv with the versions of constraints.txt and this checkout in it (editable).
set -eu
cd "$(dirname "$0")/.."
python=$1

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
    echo "setup: '$python' is $("$python" --version 2>&1), but Python 3.11, 3.12 or 3.13 is needed; try: make PYTHON=python3.12 ..." >&2
    exit 2
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
touch .venv/ready
