"""`outrider data trim`: whole documents from the beginning, proportions kept, the copy as good as the original."""

import json

import numpy as np
import pytest
from outrider.cli import app
from outrider.refactor.data_set import load_data
from outrider.refactor.errors import InputError
from outrider.refactor.trim import trim
from typer.testing import CliRunner

# Train documents of 10 tokens: 300 in all, 2 to 1.
SIZES = {"big": {"train": 20, "valid": 4, "test": 6}, "small": {"train": 10, "valid": 4, "test": 4}, "far": {"test": 8}}


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "tokens").mkdir(parents=True)
    splits = {}
    for name, sizes in SIZES.items():
        splits[name] = {}
        for split, count in sizes.items():
            np.arange(10 * count, dtype="<u2").tofile(folder / "tokens" / f"{name}.{split}.bin")
            starts = list(range(0, 10 * count, 10))
            splits[name][split] = {"tokens": 10 * count, "documents": starts, "document_bytes": [30] * count}
    header = {"format": 1, "vocab": 300, "dtype": "uint16", "domains": ["big", "small"], "unseen": ["far"]}
    header |= {"separator": None, "splits": splits, "tokenizer_sha256": "ab", "sources": []}
    (folder / "data.json").write_text(json.dumps(header))
    return folder


def test_the_first_documents_in_the_domains_proportions(data, tmp_path):
    trim(data, tmp_path / "out", 91, 15)
    before, after = load_data(data), load_data(tmp_path / "out")
    assert (after.domains, after.unseen, after.vocab) == (["big", "small"], ["far"], 300)
    kept = {name: {split: len(s.tokens) for split, s in splits.items()} for name, splits in after.splits.items()}
    # 2/3 of 91 is 60.7, 1/3 is 30.3: rounded up to whole documents.
    assert kept == {
        "big": {"train": 70, "valid": 20, "test": 20},
        "small": {"train": 40, "valid": 20, "test": 20},
        "far": {"test": 20},
    }
    for name, splits in after.splits.items():
        for split, part in splits.items():
            whole = before.splits[name][split]
            assert np.array_equal(part.tokens, whole.tokens[: len(part.tokens)])
            assert part.starts == whole.starts[: len(part.starts)]
            assert len(part.text_bytes) == len(part.starts)
    assert json.loads((tmp_path / "out" / "data.json").read_text())["trimmed"] == {"train": 91, "held_out": 15}


def test_more_than_there_is_keeps_everything(data, tmp_path):
    trim(data, tmp_path / "out", 10_000, 10_000)
    names = sorted(path.name for path in (data / "tokens").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "out" / "tokens").iterdir())
    for name in names:
        assert (data / "tokens" / name).read_bytes() == (tmp_path / "out" / "tokens" / name).read_bytes()


def test_trimming_twice_is_trimming_once(data, tmp_path):
    trim(data, tmp_path / "once", 91, 15)
    trim(data, tmp_path / "large", 200, 40)
    trim(tmp_path / "large", tmp_path / "twice", 91, 15)
    for path in (tmp_path / "once" / "tokens").iterdir():
        if ".train." not in path.name:  # shares of a trimmed copy are those of its own, rounded train text
            assert path.read_bytes() == (tmp_path / "twice" / "tokens" / path.name).read_bytes()


def test_an_existing_folder_and_damaged_text_are_refused(data, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="E_EXISTS"):
        trim(data, tmp_path / "out", 91, 15)
    (data / "tokens" / "big.train.bin").write_bytes(b"short")
    with pytest.raises(InputError, match=r"E_DATA: .*big\.train\.bin"):
        trim(data, tmp_path / "other", 91, 15)
    assert not (tmp_path / "other").exists()


def test_the_command(data, tmp_path):
    arguments = ["data", "trim", str(data), "--tokens", "91", "--held-out", "15", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "big: train 70, valid 20, test 20 tokens" in done.output
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and done.stderr.startswith("outrider: error E_EXISTS")
