"""Output folders are absent or complete, whatever fails; an old one survives a failed replacement."""

from pathlib import Path

import pytest
from outrider.refactor.atomic import atomic_folder, write_file
from outrider.refactor.errors import InputError


def test_a_failed_replacement_keeps_the_old_folder(tmp_path):
    target = tmp_path / "out"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(target, force=True) as folder:
        (folder / "a").write_text("new")
        raise RuntimeError
    assert (target / "a").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "out"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")
    real = Path.rename

    def rename(self, to):
        if self.name == "out.partial":
            raise OSError("broken")
        return real(self, to)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="broken"), atomic_folder(target, force=True) as folder:
        (folder / "a").write_text("new")
    assert (target / "a").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_run_left_behind_is_replaced(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "half").write_text("x")
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("whole")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]


def test_a_parent_that_cannot_be_a_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    message = r"E_DISK: .*file: output: found .*, expected a folder that can be written"
    with pytest.raises(InputError, match=message), atomic_folder(tmp_path / "file" / "out"):
        pass


def test_a_file_is_old_or_new(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_file(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    for owner, name in ((Path, "write_bytes"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(OSError, match="No space"):
                write_file(path, "new")
        assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    write_file(path, "new")
    assert path.read_text() == "new"
