"""A refactoring in surroundings that are not as they should be: each ends well, or with one line that says why."""

import errno
import json
import shutil
from pathlib import Path

import pytest
from outrider import _core
from outrider.cli import app
from outrider.refactor import run, smoke
from outrider.refactor.data_set import load_data
from outrider.refactor.errors import InputError
from outrider.refactor.tokenizer import train_tokenizer
from typer.testing import CliRunner

SMALL = {
    "rounds": 1,
    "router.steps": 1,
    "router.last_steps": 0,
    "expert.steps": 2,
    "eval_tokens": 256,
    "eval_taus": "",
    "experts.count": 2,
    "coverage.rounds": 1,
    "checkpoint_steps": 1,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Model and text."""
    return smoke.make(tmp_path_factory.mktemp("hostile") / "made", max_bytes=1 << 16)


def refactored(model: Path, text: Path, out: Path, *more: str, **changes):
    given = [word for name, value in (SMALL | changes).items() for word in ("--option", f"{name}={value}")]
    return CliRunner().invoke(
        app, ["refactor", str(model), "--data", str(text), "--out", str(out), "--rows", "ours", *given, *more]
    )


def refused(result, code: str, *says: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.splitlines()[-1].startswith(f"outrider: error {code}: "), result.stderr
    for one in (*says, ": found ", ", expected "):
        assert one in result.stderr, result.stderr


def test_the_folder_around_the_output_is_made(made, tmp_path):
    done = refactored(*made, tmp_path / "new" / "deep" / "out")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "new" / "deep" / "out" / "quality_card.md").is_file()


def test_a_refactored_model_is_no_parent(made, tmp_path):
    assert refactored(*made, tmp_path / "out").exit_code == 0
    refused(refactored(tmp_path / "out", made[1], tmp_path / "again"), "E_MODEL", "outrider.json")
    assert not (tmp_path / "again.work").exists()


def test_text_that_was_mended_before_anything_was_tuned_is_read_again(made, tmp_path, monkeypatch):
    text = Path(shutil.copytree(made[1], tmp_path / "text"))

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_run_row", stop)
    prepared = []
    for content in ("", "something new, said again and again\n" * 900):
        first = sorted(text.rglob("*.txt"))[0]
        first.write_text(first.read_text() + content)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                run.refactor(request_of((made[0], text), tmp_path / "out"))
            prepared.append((tmp_path / "out.work" / "data" / "data.json").stat().st_mtime_ns)
    assert prepared[0] == prepared[1] < prepared[2] == prepared[3]
    assert load_data(tmp_path / "out.work" / "data").domains == sorted(path.name for path in text.iterdir())


def interrupt_at(position: int):
    def interrupt(row, step):
        if step["position"] == position:
            raise KeyboardInterrupt

    return interrupt


def request_of(made, out: Path, **fields) -> run.Request:
    model, text = made
    given = {"model": model, "data": text, "out": out, "rows": ("ours",), "changes": tuple(SMALL.items()), **fields}
    return run.Request(**given)


def test_other_text_than_that_of_an_interrupted_run_is_refused(made, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run.refactor(request_of(made, tmp_path / "out"), interrupt_at(2))
    text = Path(shutil.copytree(made[1], tmp_path / "text"))
    first = sorted(text.rglob("*.txt"))[0]
    first.write_text(first.read_text().replace("e", "a"))
    refused(refactored(made[0], text, tmp_path / "out"), "E_DATA", "out.work")
    with pytest.raises(InputError, match="other text"):
        run.refactor(request_of(made, tmp_path / "out", max_tokens=20_000))
    same = Path(shutil.copytree(made[1], tmp_path / "same"))
    assert refactored(made[0], same, tmp_path / "out").exit_code == 0, "the same text at another place"


def test_prepared_text_of_another_tokenizer_is_refused(made, tmp_path):
    prepared = tmp_path / "prepared"
    arguments = ["data", "prepare", "--tokenizer", str(made[0]), "--data", str(made[1]), "--out", str(prepared)]
    assert CliRunner().invoke(app, [*arguments, "--calib-tokens", "2000"]).exit_code == 0
    other = Path(shutil.copytree(made[0], tmp_path / "other"))
    texts = [path.read_text()[:3000].upper() for path in sorted(made[1].rglob("*.txt"))]
    train_tokenizer(texts, json.loads((other / "config.json").read_text())["vocab_size"], other / "tokenizer.json")
    refused(refactored(other, prepared, tmp_path / "out"), "E_VOCAB", "tokenizer.json", "sha256")
    assert refactored(made[0], prepared, tmp_path / "out").exit_code == 0


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "E_DISK"), (errno.EACCES, "E_FILE")])
def test_a_disk_that_fails_at_the_end_is_one_line_and_the_run_goes_on(made, tmp_path, monkeypatch, number, code):
    real = shutil.copyfile

    def failing(source, target, **keywords):
        if Path(target).name == "tokenizer.json":
            raise OSError(number, "no", str(target))
        return real(source, target, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", failing)
        refused(refactored(*made, tmp_path / "out"), code, "tokenizer.json")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
    assert refactored(*made, tmp_path / "out").exit_code == 0
    assert _core.Model.load_routed(str(tmp_path / "out"), "", "float32", "cpu").vocab == smoke.VOCAB


def test_what_a_stranger_gets_wrong_is_said(made, tmp_path):
    refused(refactored(*made, Path(), "--force"), "E_USAGE", "--out")
    bare = Path(shutil.copytree(made[0], tmp_path / "bare"))
    (bare / "model.safetensors").unlink()
    refused(refactored(bare, made[1], tmp_path / "out", "--dry-run"), "E_READ", "bare: *.safetensors")
    refused(refactored(*made, tmp_path / "a", sequence=600), "E_OPTION", "sequence", "at most 512", "config.json")
    more = {"calibration.tokens": 513, "calibration.samples": 1}
    refused(refactored(*made, tmp_path / "b", **more), "E_OPTION", "calibration.tokens", "at most 512", "config.json")
    rows = ("--dry-run", "--rows", "ours, ours")
    assert "rows: 1\n" in refactored(*made, tmp_path / "c", *rows).stdout, "a row is tuned once"
