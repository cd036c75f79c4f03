"""A new API key: the key for its owner, and the entry for the server's settings.

    python -m scripts.new_key NAME

NAME is the principal: 1 to 64 letters, digits, dots, underscores, hyphens or @. A name may have several keys; what one
of them stored, the others can read. The key is shown once and kept nowhere; the entry goes into `RESPONSES_API_KEYS`
beside those that are there, separated by a comma.
"""

import argparse
import hashlib
import re
import secrets
import sys

KEY_BYTES = 32

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@\-]{0,63}", re.ASCII)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts.new_key", description="Make an API key.")
    parser.add_argument("name", help="whose key it is")
    name = parser.parse_args(arguments).name
    if _NAME.fullmatch(name) is None:
        sys.stderr.write("NAME has 1 to 64 letters, digits, dots, underscores, hyphens or @.\n")
        return 2
    key = f"rr-{secrets.token_urlsafe(KEY_BYTES)}"
    entry = f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"
    sys.stdout.write(f"Key of {name}, shown only now:\n  {key}\nEntry for RESPONSES_API_KEYS:\n  {entry}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
