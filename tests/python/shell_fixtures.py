"""The fixture that the tests of the Python shell share."""

from collections.abc import Iterator

import outrider
import pytest
from fake_core import FakeCore
from outrider import _runtime


@pytest.fixture(name="core")
def core_double(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCore]:
    """A fresh double in place of the core, with no shim installed before or after the test."""
    outrider.uninstall()
    double = FakeCore()
    monkeypatch.setattr(_runtime, "_core", double)
    yield double
    outrider.uninstall()
