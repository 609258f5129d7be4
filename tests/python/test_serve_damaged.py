"""A refactored model with a damaged file is not served: every flipped, cut or missing byte is an error at the start."""

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fake_engine import make_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from outrider import cli
from outrider.refactor.artifact import HEADER, SUM, seal
from outrider.refactor.errors import InputError
from outrider.refactor.sums import SUMS, write_sums
from outrider.serve.start import ServeOptions, open_engine, read_inputs
from serve_artifact import make_artifact
from typer.testing import CliRunner

PLACES = 40  # of a large file


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("whole") / "moe")


@pytest.fixture(scope="module")
def spare(whole, tmp_path_factory) -> Path:
    """Every test leaves it as it was."""
    return Path(shutil.copytree(whole, tmp_path_factory.mktemp("copy") / "moe"))


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_inputs(ServeOptions(model=folder))
    assert re.search("E_ARTIFACT|E_READ", str(caught.value)), caught.value
    return str(caught.value)


def _flip(path: Path, place: int, bit: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(place)
        (byte,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte ^ 1 << bit]))


def _places(path: Path) -> list[int]:
    size = path.stat().st_size
    if path.name in (HEADER, SUM):
        return list(range(size))
    chosen = random.Random(path.name).sample(range(size), min(PLACES, size))
    return sorted({0, 7, 8, size - 1, *chosen})


def test_a_whole_one_is_served(whole):
    options = ServeOptions(model=whole, threads=1, engine={"kv_tokens": 256})
    read_inputs(options)
    engine, _ = open_engine(options)
    assert engine.info["experts"] == 5
    engine.close()
    done = subprocess.run(["sha256sum", "--strict", "-c", SUM], cwd=whole, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    named = {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert named | {HEADER, SUM, "outrider_masks.safetensors", "outrider_router.safetensors"} <= set(_names(whole))


def test_sealing_again_changes_nothing(spare):
    before = {name: (spare / name).read_bytes() for name in _names(spare)}
    seal(spare)
    assert {name: (spare / name).read_bytes() for name in _names(spare)} == before


def test_every_flipped_byte_is_an_error(spare):
    for name in _names(spare):
        for number, place in enumerate(_places(spare / name)):
            _flip(spare / name, place, number % 8)
            assert "sha256" in _refused(spare), (name, place)
            _flip(spare / name, place, number % 8)
    read_inputs(ServeOptions(model=spare))


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cut_or_added_end_is_an_error(spare, data):
    path = spare / data.draw(st.sampled_from(_names(spare)), "file")
    bytes_ = path.read_bytes()
    kept = data.draw(st.integers(0, len(bytes_) - 1), "kept bytes")
    added = data.draw(st.binary(min_size=1, max_size=9), "added")
    for damaged in (bytes_[:kept], bytes_ + added):
        path.write_bytes(damaged)
        _refused(spare)
    path.write_bytes(bytes_)


def test_every_missing_file_is_an_error(spare):
    for name in _names(spare):
        if name == SUM:  # older folders have none
            continue
        kept = (spare / name).read_bytes()
        (spare / name).unlink()
        _refused(spare)
        (spare / name).write_bytes(kept)


def test_the_program_says_so_in_one_line(spare):
    path = spare / "model.safetensors"
    _flip(path, path.stat().st_size - 1, 0)
    done = CliRunner().invoke(cli.app, ["serve", str(spare), "--port", "0"])
    _flip(path, path.stat().st_size - 1, 0)
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert re.fullmatch(r"outrider: error E_ARTIFACT: \S*model\.safetensors: sha256: .*\n", done.stderr), done.stderr


def test_every_flipped_byte_of_an_imported_parent_is_an_error(tmp_path):
    parent = make_folder(tmp_path / "parent")
    write_sums(parent)
    (tmp_path / "adapter").mkdir()
    options = [ServeOptions(model=parent), ServeOptions(model=tmp_path / "adapter", parent=parent)]
    for name in _names(parent):
        for number, place in enumerate(_places(parent / name)):
            _flip(parent / name, place, number % 8)
            for one in options:
                with pytest.raises(InputError, match="E_MODEL"):
                    read_inputs(one)
            _flip(parent / name, place, number % 8)
        kept = (parent / name).read_bytes()
        (parent / name).unlink()
        if name != SUMS:
            with pytest.raises(InputError, match="E_MODEL"):
                read_inputs(options[0])
        (parent / name).write_bytes(kept)
    for one in options:
        read_inputs(one)
    done = subprocess.run(["sha256sum", "--strict", "-c", SUMS], cwd=parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", ["", "x\n", "0" * 64 + "  ../config.json\n"])
def test_checksums_that_are_none(tmp_path, text):
    (make_folder(tmp_path / "m") / SUMS).write_text(text)
    with pytest.raises(InputError, match="E_MODEL"):
        read_inputs(ServeOptions(model=tmp_path / "m"))


@pytest.mark.parametrize("files", ["[]", '{"../config.json": "x"}', "3"])
def test_names_of_other_folders_are_refused(whole, tmp_path, files):
    folder = Path(shutil.copytree(whole, tmp_path / "moe"))
    (folder / SUM).unlink()
    (folder / HEADER).write_text('{"version": 1, "experts": 5, "files": ' + files + "}")
    assert "checksums by names" in _refused(folder)
