"""App settings: where they come from, `%NAME%` expressions, storage connections.

Precedence, highest first: `--setting`, the environment, `Values` of `local.settings.json` in the app's folder.
Without that file `local.settings.json.example` stands in, so that a fresh checkout runs. The result is exported to
the environment before the app is imported, as the platform does.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from devhost.errors import SettingError

FILE = "local.settings.json"
EXAMPLE = "local.settings.json.example"

_EXPRESSION = re.compile(r"%([^%]+)%")
_DEVELOPMENT = "UseDevelopmentStorage=true"
# Azurite's and the old emulator's published account; there is nothing secret in it.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_PORTS = {"Blob": 10000, "Queue": 10001, "Table": 10002}


@dataclass(frozen=True)
class AppSettings:
    """The settings an app sees, and the file they came from (None: no file)."""

    values: Mapping[str, str]
    source: Path | None

    def get(self, name: str) -> str | None:
        """One setting, or None."""
        return self.values.get(name)

    def resolve(self, text: str) -> str:
        """`text` with every `%NAME%` replaced. SettingError when a name is not set."""

        def value(match: re.Match[str]) -> str:
            found = self.values.get(match[1])
            if found is None:
                raise SettingError(f"%{match[1]}% in {text!r} is not a setting of this app.", setting=match[1])
            return found

        return _EXPRESSION.sub(value, text)

    def disabled(self, function: str) -> bool:
        """Whether `AzureWebJobs.FUNCTION.Disabled` says so; with underscores on systems that refuse dots."""
        names = (f"AzureWebJobs.{function}.Disabled", f"AzureWebJobs_{function}_Disabled")
        return any((self.values.get(name) or "").lower() in {"true", "1"} for name in names)

    def connection(self, name: str) -> str:
        """The connection string of a binding's `connection`. SettingError when there is none."""
        name = name or "AzureWebJobsStorage"
        text = self.values.get(name) or self.values.get(f"AzureWebJobs{name}")
        if not text:
            raise SettingError(f"The storage connection {name!r} is not set.", setting=name)
        return expand(text)


def expand(connection: str) -> str:
    """A connection string that every SDK understands, for the short form of local storage."""
    if connection.strip().rstrip(";").lower() != _DEVELOPMENT.lower():
        return connection
    ends = "".join(f"{kind}Endpoint=http://127.0.0.1:{port}/{_ACCOUNT};" for kind, port in _PORTS.items())
    return f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_KEY};{ends}"


def load(app: Path, given: Mapping[str, str]) -> AppSettings:
    """The settings of the app in folder `app`; `given` wins over everything. SettingError for an unreadable file."""
    source = next((path for path in (app / FILE, app / EXAMPLE) if path.is_file()), None)
    values = _read(source) if source else {}
    return AppSettings({**values, **os.environ, **given}, source)


def _read(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError(f"{path} cannot be read: {error}", path=str(path)) from error
    if not isinstance(content, dict) or not isinstance(content.get("Values", {}), dict):
        raise SettingError(f"{path} must be an object with an object `Values`.", path=str(path))
    if content.get("IsEncrypted"):
        raise SettingError(f"{path} is encrypted; decrypt it with Core Tools first.", path=str(path))
    return {str(name): _text(value) for name, value in content.get("Values", {}).items()}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
