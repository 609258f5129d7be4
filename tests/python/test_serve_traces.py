"""Traces and loads as strangers have them: read as they are meant, or refused with the line that is wrong."""

import json
import math

import pytest
from fake_engine import FakeEngine, ServeRejected, make_folder
from outrider import cli
from outrider.refactor.errors import InputError
from outrider.serve import start
from outrider.serve.replay import compare, load
from outrider.serve.replay.load import Row
from outrider.serve.replay.load_file import Prepared, read_load
from typer.testing import CliRunner

HEAD = "arrival_s,prompt_tokens,output_tokens\n"
ROWS = [Row(0.0, 12, 3), Row(1.5, 8, 4)]


def _read(tmp_path, text: str | bytes) -> list[Row]:
    (tmp_path / "t").write_bytes(text.encode() if isinstance(text, str) else text)
    return list(load.read_trace(tmp_path / "t"))


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "0,12,3\n1.5,8,4\n",
        "output_tokens,who,arrival_s,prompt_tokens\n3,a,0,12\n4,b,1.5,8\n",
        (HEAD + "0,12,3\n1.5,8,4\n").replace("\n", "\r\n"),
        "\ufeff" + HEAD + "0,12,3\n1.5,8,4",
        "arrival_s, prompt_tokens, output_tokens\n0, 12, 3\n\n1.5, 8.0, 4.0\n",
        '"arrival_s","prompt_tokens","output_tokens"\n"0","12","3"\n"1.5","8","4"\n',
        '\ufeff{"arrival_s": 0, "prompt_tokens": 12, "output_tokens": 3}\n\n'
        '{"arrival_s": "1.5", "prompt_tokens": 8, "output_tokens": 4, "more": {}}\n\n',
        '{"timestamp": 0, "input_length": 12, "output_length": 3, "round": 1}\r\n'
        '{"timestamp": 1500, "input_length": 8, "output_length": 4, "hash_ids": null}\r\n',
    ],
    ids=["plain", "order", "crlf", "bom", "blanks", "quoted", "json", "mooncake"],
)
def test_forms_of_one_trace(tmp_path, text):
    assert _read(tmp_path, text) == ROWS


def test_times_of_azure_with_a_zone(tmp_path):
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00+00:00,12,3\n"
    assert _read(tmp_path, text + "2024-05-10 00:00:01.500000+00:00,8,4\n") == ROWS


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("arrival_s,prompt_tokens\n0,1\n", "no column output_tokens, but arrival_s, prompt_tokens"),
        ("arrival_s;prompt_tokens;output_tokens\n0;1;1\n", "no column arrival_s"),
        (HEAD + "0,12,3\n1.5,8\n", "line 3: no output_tokens"),
        (HEAD + "0,12,3\n1.5,,4\n", "line 3: no prompt_tokens"),
        (HEAD + "0,12,3\n1.5,-8,4\n", "line 3: prompt_tokens: -8"),
        (HEAD + "0,12.5,3\n", "line 2: prompt_tokens: 12.5"),
        (HEAD + "nan,12,3\n", "line 2: arrival_s: 'nan'"),
        (HEAD + "inf,12,3\n", "line 2: arrival_s: 'inf'"),
        (HEAD + "soon,12,3\n", "line 2: arrival_s: 'soon'"),
        ('{"timestamp": 0, "input_length": 5, "output_length": [6]}\n', "line 1: output_length"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 6, "hash_ids": "abc"}\n', "hash_ids"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 6}\n[1]\n', "line 2: a list"),
        ('{"when": 0}\n', "line 1: no timestamp"),
        ("[1]\n", "no head arrival_s"),
        (b"\xff\xfe", "decode"),
        ((HEAD + "0,12,3\n").encode("utf-16"), "decode"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, text, says):
    with pytest.raises(InputError, match="E_TRACE") as caught:
        _read(tmp_path, text)
    assert says in str(caught.value)


def _shape(rows, count=100, context=100):
    return load.shape("t", rows, count=count, scale=8, context=context)


def test_rows_that_write_nothing_are_left_out_and_counted():
    shaped = _shape([Row(0, 80, 8), Row(1, 80, 0), Row(2, 0, 8), Row(3, 8000, 8), Row(4, 3, 3)])
    assert [(row.prompt_tokens, row.written_tokens) for row in shaped.rows] == [(10, 1), (1, 1)]
    assert shaped.dropped == 3


def test_rows_in_no_order_are_neighbours_in_time():
    rows = [Row(float(17 * number % 100), 80, 80) for number in range(100)]
    times = [row.arrival_s for row in _shape(rows, 10).rows]
    assert times == [float(number) for number in range(10)]


@pytest.mark.parametrize(("rows", "says"), [([], "found none, "), ([Row(0, 8000, 9)] * 2, "none of 2 fit")])
def test_traces_that_leave_nothing(rows, says):
    with pytest.raises(InputError, match=says):
        _shape(rows)


def _plan(times, prompts=None, **changes):
    rows = [Row(time, 4, 3) for time in times]
    prepared = Prepared(load.Load("t", rows), prompts or [[5, 6, 7, 8]] * len(rows))
    give = lambda _: (FakeEngine(context=50, script=lambda ids: ids * 9), ServeRejected)  # noqa: E731
    return compare.Plan(give, prepared, ("chunked_fcfs",), (0.9,), 1, say=lambda _: None, **changes)


@pytest.mark.parametrize("times", [[0.0], [0.0] * 9])
def test_a_load_without_a_rate_is_refused(times):
    with pytest.raises(InputError, match="at one instant"):
        compare.compare(_plan(times))


def test_a_load_that_the_engine_refuses_whole_is_no_result():
    with pytest.raises(InputError, match="none that the engine took"):
        compare.compare(_plan([0.0, 1.0], [[5] * 60] * 2))


def test_gaps_and_bursts_are_kept():
    found = compare.compare(_plan([0.0] * 9 + [1e9], equal_times=True))  # the first eight arrive together
    assert found["done"] and found["runs"][0]["done"] == 8
    (one,) = compare.compare(_plan([0.0] * 9 + [1e9]))["runs"]
    assert (one["done"], one["rejected"]) == (10, 0) and math.isfinite(one["seconds"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": []}, "no row"),
        ({"output_tokens": 0}, "row 1: output_tokens"),
        ({"arrival_s": -1}, "row 1: arrival_s"),
        ({"arrival_s": "1"}, "found"),
        ({"prompt": []}, "row 1: a prompt without"),
        ({"prompt": [3, -4]}, "negative"),
    ],
)
def test_load_files_that_nothing_can_replay(tmp_path, change, says):
    row = {"arrival_s": 0.0, "output_tokens": 2, "prompt": [1]}
    root = {"format": 1, "name": "t", "dropped": 0, "about": {}, "rows": [row, row | change]}
    root |= {"rows": []} if "rows" in change else {}
    (tmp_path / "l.json").write_text(json.dumps(root))
    with pytest.raises(InputError, match=says):
        read_load(tmp_path / "l.json")


def _bench(tmp_path, monkeypatch, *arguments):
    monkeypatch.setattr(start, "load_model", lambda options: None)
    monkeypatch.setattr(start, "open_engine", lambda options: (FakeEngine(context=40), ServeRejected))
    folder = make_folder(tmp_path / "m")
    return CliRunner().invoke(cli.app, ["bench", "serve", str(folder), "--out", str(tmp_path / "r.json"), *arguments])


@pytest.mark.parametrize("given", [["--rate", "0"], ["--rate", "nan"], ["--ttft-ms", "0", "--tpot-ms", "5"]])
def test_rates_and_goals_of_nothing_are_refused(tmp_path, monkeypatch, given):
    done = _bench(tmp_path, monkeypatch, *given)
    assert done.exit_code == 2 and "more than 0" in done.stderr


@pytest.mark.parametrize(("prompt", "says"), [([1] * 39, "41 tokens"), ([300], "token 300")])
def test_a_load_of_another_model_is_refused(tmp_path, monkeypatch, prompt, says):
    row = {"arrival_s": 0.0, "output_tokens": 2, "prompt": prompt}
    root = {"format": 1, "name": "t", "dropped": 0, "about": {}, "rows": [row, row]}
    (tmp_path / "l.json").write_text(json.dumps(root))
    done = _bench(tmp_path, monkeypatch, "--load", str(tmp_path / "l.json"))
    assert done.exit_code == 2 and "E_TRACE" in done.stderr and says in done.stderr


@pytest.mark.parametrize("command", ["serve", "load", "overload"])
def test_an_output_that_cannot_be_written_is_told_before_anything_runs(tmp_path, monkeypatch, command):
    monkeypatch.setattr(start, "open_engine", lambda options: pytest.fail("something ran"))
    folder = make_folder(tmp_path / "m")
    for out in (tmp_path, folder / "config.json" / "x.json"):
        done = CliRunner().invoke(cli.app, ["bench", command, str(folder), "--out", str(out)])
        assert done.exit_code == 2 and "E_DISK" in done.stderr, done.output


def test_an_unknown_policy_is_told_before_anything_runs(tmp_path, monkeypatch):
    done = _bench(tmp_path, monkeypatch, "--policy", "outrider", "--policy", "fifo")
    assert done.exit_code == 2 and "E_USAGE" in done.stderr and "chunked_fcfs" in done.stderr
