#!/bin/sh
# Prints the path of a Python 3.13 interpreter. When there is none: one sentence on standard error, status 1.
#
# Every candidate is run before it is believed: a pyenv shim exists for versions that are not selected,
# and a virtual environment outlives the interpreter that it was made from.

try() {
    found=$("$1" -c 'import sys; sys.exit(1) if sys.version_info[:2] != (3, 13) else print(sys.executable)' 2>/dev/null) || return 0
    if [ -n "$found" ]; then
        printf '%s\n' "$found"
        exit 0
    fi
}

try .venv/bin/python
for name in python3.13 python3 python; do
    try "$name"
done

for root in "$(pyenv root 2>/dev/null)" "${PYENV_ROOT:-}" "${HOME:-}/.pyenv"; do
    for candidate in "$root"/versions/3.13*/bin/python; do
        [ -x "$candidate" ] && try "$candidate"
    done
done

candidate=$(uv python find 3.13 2>/dev/null) && try "$candidate"

echo 'Python 3.13 was not found: install it, for example with "pyenv install 3.13" or "uv python install 3.13", and run make again.' >&2
exit 1
