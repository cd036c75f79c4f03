"""What samples/README.md tells a reader to send."""

import json
import re
from typing import Any

from tests.support.host import ROOT

README = ROOT / "samples" / "README.md"
NAMES = sorted(file.stem for file in README.parent.glob("*.py") if file.stem != "__init__")


def section(name: str) -> str:
    """What stands below a sample's headline."""
    (found,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", README.read_text(), re.MULTILINE | re.DOTALL)
    return str(found)


def commands(name: str) -> list[str]:
    """The `curl` lines of a sample, in their order."""
    found = re.findall(r"^curl .*$", section(name), re.MULTILINE)
    assert found
    return [str(command) for command in found]


def bodies(name: str) -> list[dict[str, Any]]:
    """The requests of a sample, without the flags that choose a mode."""
    given = [json.loads(re.findall(r"-d '(.*)'$", command)[0]) for command in commands(name)]
    return [{key: value for key, value in body.items() if key not in ("stream", "background")} for body in given]
