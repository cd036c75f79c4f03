"""One list of settings: what `infra/` sets, what the code reads, what the documents tell."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from api.access import Closed, access_from
from api.entra import EntraId
from api.keys import ApiKeys, hash_of
from api.settings import ApiSettings
from protocol import jsonio
from resilience.options import EngineSettings
from storage.connection import StorageSettings
from tests.support.bicep.template import deploy

ROOT = Path(__file__).resolve().parents[2]
CLIENT = "11111111-2222-3333-4444-555555555555"
KEY = f"me:{hash_of('secret')}"
#: Where each branch of the settings is taken.
CHOICES: dict[str, dict[str, Any]] = {
    "keys": {"apiKeys": KEY, "storagePrefix": "mine", "retentionDays": 7, "corsOrigins": "https://example.com"},
    "gateway": {"apiKeys": KEY, "trustedUserHeader": "x-user"},
    "vault": {"apiKeysVaultUri": "https://vault.example.com/secrets/keys"},
    "entra": {"entraClientId": CLIENT},
    "nobody": {},
}
#: Read by the platform, not by the code.
OF_THE_PLATFORM = {
    "APPLICATIONINSIGHTS_AUTHENTICATION_STRING",
    "APPLICATIONINSIGHTS_CONNECTION_STRING",
    "AzureWebJobsDisableHomepage",
}
#: Settings that only make sense elsewhere; each would break an app on this plan.
NEVER_SET = {"RESPONSES_EAGER_START", "FUNCTIONS_WORKER_RUNTIME", "AzureWebJobsStorage", "WEBSITE_AUTH_ENABLED"}


class Recorded(Mapping[str, str]):
    """An environment that remembers what it was asked for."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def settings_of(choice: str) -> dict[str, str]:
    """The app settings of a deployment."""
    made = deploy(ROOT / "infra" / "main.bicep", {"environmentName": "e", "location": "l", **CHOICES[choice]})
    [settings] = [each for each in made.of("Microsoft.Web/sites/config") if each.name.endswith("/appsettings")]
    found: dict[str, str] = settings.body["properties"]
    return found


def read_by_the_code(environment: Mapping[str, str]) -> set[str]:
    """The names that are looked up when the server starts with these settings."""
    recorded = Recorded(environment)
    EngineSettings.from_environment(recorded)
    ApiSettings.from_environment(recorded)
    StorageSettings.from_environment(recorded)
    # The agent's name is read with the engine, which is not made here.
    return recorded.asked | set(re.findall(r'"(RESPONSES_AGENT)"', (ROOT / "api" / "process.py").read_text()))


@pytest.mark.parametrize("choice", CHOICES)
def test_every_setting_is_text_and_read_by_somebody(choice: str) -> None:
    settings = settings_of(choice)
    assert all(isinstance(value, str) and value for value in settings.values())
    assert settings.keys() - read_by_the_code(settings) == OF_THE_PLATFORM
    assert not settings.keys() & NEVER_SET


def test_a_setting_that_nobody_reads_is_noticed() -> None:
    assert "RESPONSES_NO_SUCH_THING" not in read_by_the_code({**settings_of("keys"), "RESPONSES_NO_SUCH_THING": "1"})


def test_storage_is_reached_with_the_identity_that_has_the_roles() -> None:
    settings = StorageSettings.from_environment(settings_of("keys"))
    assert settings.managed_identity
    assert settings.connection_string == ""
    assert settings.client_id is not None
    assert settings.client_id.endswith("#properties.clientId>")
    assert settings.endpoints is not None
    assert re.fullmatch(r"https://st[a-z0-9]{13}\.blob\.core\.windows\.net", settings.endpoints.blob)
    assert settings.name("events") == "mineevents"


def test_retention_is_what_the_parameter_says() -> None:
    assert EngineSettings.from_environment(settings_of("keys")).retention_days == 7
    assert EngineSettings.from_environment(settings_of("entra")).retention_days == EngineSettings().retention_days


def test_pages_may_call_that_are_named() -> None:
    assert "https://example.com" in ApiSettings.from_environment(settings_of("keys")).cors.origins
    assert not ApiSettings.from_environment(settings_of("gateway")).cors.origins


def on_the_platform(choice: str) -> dict[str, str]:
    """The settings, and what the platform adds for the server to recognise it by."""
    return {**settings_of(choice), "WEBSITE_SITE_NAME": "func", "WEBSITE_HOSTNAME": "func.azurewebsites.net"}


def test_keys_let_their_owners_in() -> None:
    access = access_from(on_the_platform("keys"))
    assert isinstance(access, ApiKeys)
    assert [name for _, name in access.entries] == ["me"]
    gateway = access_from(on_the_platform("gateway"))
    assert isinstance(gateway, ApiKeys)
    assert gateway.user_header == "x-user"


def test_keys_come_out_of_the_vault_where_one_is_named() -> None:
    reference = settings_of("vault")["RESPONSES_API_KEYS"]
    assert reference == "@Microsoft.KeyVault(SecretUri=https://vault.example.com/secrets/keys)"


def test_a_vault_that_does_not_answer_lets_nobody_in() -> None:
    # The platform leaves the reference in the setting when it cannot resolve it.
    assert isinstance(access_from(on_the_platform("vault")), Closed)


def test_entra_is_believed_only_where_the_platform_enforces_it() -> None:
    assert isinstance(access_from({**on_the_platform("entra"), "WEBSITE_AUTH_ENABLED": "True"}), EntraId)
    assert isinstance(access_from(on_the_platform("entra")), Closed)


def test_a_deployment_without_a_choice_lets_nobody_in() -> None:
    assert isinstance(access_from(on_the_platform("nobody")), Closed)


def test_further_settings_are_passed_on_and_do_not_win() -> None:
    more = {"OPENAI_MODEL": "m", "RESPONSES_AUTH": "none", "RESPONSES_MAX_RUNS": "5"}
    made = deploy(ROOT / "infra" / "main.bicep", {"environmentName": "e", "location": "l", "moreSettings": more})
    [settings] = [each.body["properties"] for each in made.of("Microsoft.Web/sites/config")]
    assert settings["OPENAI_MODEL"] == "m"
    assert settings["RESPONSES_AUTH"] == "keys"
    assert ApiSettings.from_environment(settings).max_runs == 5


# -- the documents and the host ---------------------------------------------------------------------------------------


def documents() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def test_every_setting_is_documented() -> None:
    text = documents()
    everything = {name for choice in CHOICES for name in settings_of(choice)}
    assert {name for name in everything if f"`{name}`" not in text} == set()


def known_names() -> set[str]:
    """What the code can be told by name, and what `infra/` takes from the environment."""
    known = {f"RESPONSES_{field.name.upper()}" for kind in (EngineSettings, ApiSettings) for field in fields(kind)}
    for folder in ("api", "resilience", "storage"):
        for path in (ROOT / folder).glob("*.py"):
            known |= set(re.findall(r'"(RESPONSES_[A-Z_]+)"', path.read_text(encoding="utf-8")))
    known |= set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "infra" / "main.parameters.json").read_text(encoding="utf-8")))
    return known | set(re.findall(r"^output ([A-Z_]+) ", (ROOT / "infra" / "main.bicep").read_text(), re.MULTILINE))


def test_the_guide_names_no_setting_that_does_not_exist() -> None:
    guide = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\bRESPONSES_[A-Z_]*[A-Z]", guide)) - known_names() == set()


def test_runs_are_handed_over_before_the_host_would_end_them() -> None:
    host = jsonio.loads((ROOT / "host.json").read_bytes())
    hours, minutes, seconds = map(int, host["functionTimeout"].split(":"))
    limit = timedelta(hours=hours, minutes=minutes, seconds=seconds).total_seconds()
    assert EngineSettings().handover_after + 30 < limit
    assert f"({limit / 60:.0f} minutes in `host.json`)" in documents()


def test_the_guide_knows_how_many_responses_an_instance_runs() -> None:
    queues = jsonio.loads((ROOT / "host.json").read_bytes())["extensions"]["queues"]
    runs = queues["batchSize"] + queues["newBatchThreshold"]
    for name in ("docs/deploy.md", "infra/main.bicep"):
        assert f"up to {runs} background responses" in (ROOT / name).read_text(encoding="utf-8")
