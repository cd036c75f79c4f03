"""What an operator may tune, and what he is told when he gets it wrong."""

from dataclasses import fields
from typing import Any

import pytest

from resilience.options import EngineSettings, ResponsesServerOptions, SettingError


def test_without_settings_the_defaults_hold() -> None:
    assert EngineSettings.from_environment({}) == EngineSettings()
    assert EngineSettings.from_environment({"RESPONSES_SOMETHING": "x", "PATH": "y"}) == EngineSettings()


@pytest.mark.parametrize("field", fields(EngineSettings), ids=lambda field: field.name)
def test_each_setting_can_be_set(field: Any) -> None:
    default = getattr(EngineSettings(), field.name)
    text, expected = ("true", True) if isinstance(default, bool) else ("7", 7)
    chosen = EngineSettings.from_environment({f"RESPONSES_{field.name.upper()}": text})
    value = getattr(chosen, field.name)
    assert value == expected
    assert type(value) is type(default)


@pytest.mark.parametrize("text", ["true", "TRUE", "1", "yes", " True "])
def test_truths(text: str) -> None:
    assert EngineSettings.from_environment({"RESPONSES_EAGER_START": text}).eager_start


@pytest.mark.parametrize("text", ["false", "0", "No"])
def test_untruths(text: str) -> None:
    assert not EngineSettings.from_environment({"RESPONSES_EAGER_START": text}).eager_start


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("RESPONSES_EAGER_START", "maybe"),
        ("RESPONSES_EAGER_START", ""),
        ("RESPONSES_MAX_ATTEMPTS", "five"),
        ("RESPONSES_MAX_ATTEMPTS", "5.5"),
        ("RESPONSES_LINGER_MAX", "quick"),
        ("RESPONSES_LINGER_MAX", ""),
    ],
)
def test_a_value_that_cannot_be_used_is_named(name: str, text: str) -> None:
    with pytest.raises(SettingError) as wrong:
        EngineSettings.from_environment({name: text})
    assert (wrong.value.name, wrong.value.value) == (name, text)
    assert name in str(wrong.value)
    assert isinstance(wrong.value.__cause__, KeyError | ValueError)


@pytest.mark.parametrize("text", ["nan", "inf", "-1"])
def test_a_number_that_is_no_duration_is_refused(text: str) -> None:
    """An interval of nan makes a loop spin, one of -1 too."""
    with pytest.raises(SettingError):
        EngineSettings.from_environment({"RESPONSES_WATCH_PUSH_INTERVAL": text})


@pytest.mark.parametrize(("interval", "enabled"), [(None, True), (0, False), (0.0, False), (5, True)])
def test_keep_alive_is_off_only_at_zero(interval: float | None, enabled: bool) -> None:
    assert ResponsesServerOptions(sse_keep_alive_interval_seconds=interval).sse_keep_alive_enabled is enabled
