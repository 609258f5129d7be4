"""Route traces and `outrider analyze`, on routes whose mutual information is known."""

import json
import math

import numpy as np
import pytest
from outrider.cli import app
from outrider.refactor.routes.analysis import analyse
from outrider.refactor.routes.trace import load_trace
from outrider.refactor.stats.information import joint_counts, shared_information, transitions
from safetensors.numpy import save_file
from typer.testing import CliRunner

EXPERTS, SEQUENCE, TOKENS = 4, 64, 64 * 250


def write(path, domains, **metadata):
    fields = {"format": "1", "split": "test", "experts": str(EXPERTS), "sequence": str(SEQUENCE)}
    save_file(domains, path, {name: value for name, value in (fields | metadata).items() if value is not None})
    return path


def layered(seed=0):
    """Five layers: 1 copies 0, 2 is independent of 1, 3 is 2 renamed, 4 copies 3 half the time."""
    random = np.random.default_rng(seed)
    free = random.integers(EXPERTS, size=(3, TOKENS))
    renamed = (free[1] + 1) % EXPERTS
    half = np.where(random.random(TOKENS) < 0.5, renamed, free[2])
    return np.stack([free[0], free[0], free[1], renamed, half]).astype(np.uint8)


def test_known_mutual_information(tmp_path):
    trace = load_trace(write(tmp_path / "routes.safetensors", {"a": layered(1), "b": layered(2)}))
    found = analyse(trace)
    copied, independent, renamed, half = found["pairs"]
    assert copied["nats"] == pytest.approx(math.log(EXPERTS), abs=2e-3)
    assert copied["share"] == pytest.approx(1, abs=1e-9)
    assert copied["same"] == 1
    assert abs(independent["nats"]) < 1e-3
    assert independent["same"] == pytest.approx(0.25, abs=0.02)
    assert renamed["share"] == pytest.approx(1, abs=1e-9)
    assert renamed["same"] == 0
    # With chance 1/2 + 1/8 the copy, else one of the three others alike.
    known = math.log(4) + 0.625 * math.log(0.625) + 3 * 0.125 * math.log(0.125)
    assert half["nats"] == pytest.approx(known, abs=0.01)
    assert np.array(half["transition"]).diagonal() == pytest.approx([0.625] * 4, abs=0.02)
    assert found["mean"]["nats"] == pytest.approx(np.mean([pair["nats"] for pair in found["pairs"]]))
    assert found["tokens"] == 2 * TOKENS
    assert found["domains"].keys() == {"a", "b"}


def test_the_correction_removes_the_bias_of_few_tokens():
    random = np.random.default_rng(5)
    plain, corrected = [], []
    for _ in range(300):
        first, second = random.integers(8, size=(2, 1000))
        shared = shared_information(joint_counts(first, second, 8))
        plain.append(shared.plug_in)
        corrected.append(shared.nats)
    expected = 49 / 2000  # (8 - 1)(8 - 1) / 2n
    assert np.mean(plain) == pytest.approx(expected, rel=0.1)
    assert abs(np.mean(corrected)) < 0.1 * expected


def test_hand_computed_tables():
    joint = np.array([[2, 0], [1, 1]])
    shared = shared_information(joint)
    rows, columns, cells = [0.5, 0.5], [0.75, 0.25], [0.5, 0.25, 0.25]
    plain = [-sum(p * math.log(p) for p in values) for values in (rows, columns, cells)]
    assert shared.plug_in == pytest.approx(plain[0] + plain[1] - plain[2])
    assert shared.nats == pytest.approx(shared.plug_in - (3 - 2 - 2 + 1) / 8)
    assert shared.entropy == pytest.approx(plain[1] + 1 / 8)
    assert transitions(joint).tolist() == [[1, 0], [0.5, 0.5]]
    assert transitions(np.array([[0, 0], [1, 3]])).tolist() == [[0, 0], [0.25, 0.75]]
    assert shared_information(np.array([[3, 0], [2, 0]])).share is None
    with pytest.raises(ValueError, match="no pair"):
        shared_information(np.zeros((2, 2)))


def test_run_lengths_stop_at_the_end_of_a_text(tmp_path):
    ids = np.zeros((2, 4 * SEQUENCE), np.uint8)
    ids[1] = np.arange(4 * SEQUENCE) // 8 % EXPERTS
    found = analyse(load_trace(write(tmp_path / "r.safetensors", {"a": ids})))
    one, eights = found["layers"]
    assert (one["run_mean"], one["stay_rate"], one["load"]) == (SEQUENCE, 1, [4 * SEQUENCE, 0, 0, 0])
    assert eights["run_mean"] == 8
    assert eights["stay_rate"] == pytest.approx(1 - 7 / (SEQUENCE - 1))
    assert eights["entropy"] == pytest.approx(1)


def test_only_first_choices_count_and_one_id_for_all_layers_has_no_pairs(tmp_path):
    firsts = layered()
    both = np.stack([firsts, (firsts + 1) % EXPERTS], axis=-1)
    left = analyse(load_trace(write(tmp_path / "two.safetensors", {"a": both})))
    assert left["pairs"] == analyse(load_trace(write(tmp_path / "one.safetensors", {"a": firsts})))["pairs"]
    single = analyse(load_trace(write(tmp_path / "single.safetensors", {"a": firsts[0]})))
    assert single["pairs"] == []
    assert not single["per_layer"]
    assert single["mean"] == {"nats": None, "share": None}


def test_the_command_writes_numbers_and_picture(tmp_path):
    (tmp_path / "routes").mkdir()
    write(tmp_path / "routes" / "ours.safetensors", {"a": layered()[0]})
    write(tmp_path / "routes" / "layerwise.safetensors", {"a": layered()})
    result = CliRunner().invoke(app, ["analyze", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "100.0%" in result.output
    assert "Miller-Madow" in result.output
    numbers = json.loads((tmp_path / "routes" / "layerwise.analysis.json").read_text())
    assert [len(numbers["pairs"]), len(numbers["layers"])] == [4, 5]
    picture = (tmp_path / "routes" / "layerwise.analysis.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    again = CliRunner().invoke(app, ["analyze", str(tmp_path), "--row", "layerwise", "--out", str(tmp_path)])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "layerwise.analysis.png").read_bytes() == picture
    ours = CliRunner().invoke(app, ["analyze", str(tmp_path / "routes" / "ours.safetensors")])
    assert ours.exit_code == 0, ours.output
    assert "all" in ours.output


@pytest.mark.parametrize(
    ("domains", "metadata", "says"),
    [
        ({"a": np.full(64, 4, np.uint8)}, {}, "a: found id 4, expected ids below 4"),
        ({"a": np.zeros(65, np.uint8)}, {}, "a: found 65 tokens, expected whole texts of 64"),
        ({"a": np.zeros(64, np.int32)}, {}, r"a: found int32 \[64\], expected uint8"),
        ({"a": np.zeros((2, 64), np.uint8), "b": np.zeros((3, 64), np.uint8)}, {}, "b: found"),
        ({"a": np.zeros(64, np.uint8)}, {"experts": "many"}, "experts: found 'many'"),
        ({"a": np.zeros(64, np.uint8)}, {"sequence": "0"}, "sequence: found '0'"),
        ({"a": np.zeros(64, np.uint8)}, {"format": None}, "format: found None, expected 1"),
    ],
)
def test_bad_traces_are_one_line(tmp_path, domains, metadata, says):
    path = write(tmp_path / "bad.safetensors", domains, **metadata)
    result = CliRunner().invoke(app, ["analyze", str(path)])
    assert result.exit_code == 2
    assert result.stderr.startswith("outrider: error E_TRACE: ")
    assert says.replace("\\", "") in result.stderr
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("arguments", [[], ["--row", "carved"]])
def test_a_folder_without_a_trace_says_what_it_looked_for(tmp_path, arguments):
    result = CliRunner().invoke(app, ["analyze", str(tmp_path), *arguments])
    assert result.exit_code == 2
    assert "E_TRACE" in result.stderr
    assert "routes/" in result.stderr


def test_a_file_that_is_no_trace(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"no")
    result = CliRunner().invoke(app, ["analyze", str(tmp_path / "x.safetensors")])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
