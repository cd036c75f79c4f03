"""What all tests of samples need."""

import pytest

from samples import resilient_streaming, steering


@pytest.fixture(autouse=True)
def _nobody_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pauses by which these samples look thoughtful; `serving.sample` does so for others."""
    for module in (resilient_streaming, steering):
        monkeypatch.setattr(module, "SECONDS_PER_WORD", 0.001)
