"""The torch version check accepts what outrider supports and refuses the rest in one clear line."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "python" / "outrider" / "_version_check.py"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The module alone, without the package around it and as if nothing had been built."""
    spec = importlib.util.spec_from_file_location("version_check_alone._version_check", SOURCE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "version_check_alone", types.ModuleType("version_check_alone"))
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "built_for", lambda: None)
    return module


def pretend_torch(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    torch = types.ModuleType("torch")
    torch.__version__ = version
    torch.__spec__ = importlib.util.spec_from_loader("torch", loader=None)
    monkeypatch.setitem(sys.modules, "torch", torch)


def message_of(check: types.ModuleType) -> str:
    with pytest.raises(ImportError) as raised:
        check.require_torch()
    return str(raised.value)


@pytest.mark.parametrize("version", ["2.11.0", "2.11.1+cu130", "2.13.0+cpu", "2.13.0a0+git123"])
def test_supported(check: types.ModuleType, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    pretend_torch(monkeypatch, version)
    assert check.require_torch() is None


@pytest.mark.parametrize("version", ["2.12.0", "2.1.3", "2.14.0+cpu", "3.0.0", "1.13.1"])
def test_refused(check: types.ModuleType, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    pretend_torch(monkeypatch, version)
    assert message_of(check) == f"outrider needs PyTorch 2.11 or 2.13, but torch {version} is installed"


def test_missing(check: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None)
    assert message_of(check) == "outrider needs PyTorch 2.11 or 2.13, but no torch is installed"


def test_compiled_for_another_minor(check: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_torch(monkeypatch, "2.11.0")
    monkeypatch.setattr(check, "built_for", lambda: "2.13.0+cpu")
    message = message_of(check)
    assert message.startswith("outrider was compiled for torch 2.13.0+cpu, but torch 2.11.0 is installed")
    assert "\n" not in message


def test_compiled_for_another_patch_is_accepted(check: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_torch(monkeypatch, "2.13.1")
    monkeypatch.setattr(check, "built_for", lambda: "2.13.0+cpu")
    assert check.require_torch() is None
