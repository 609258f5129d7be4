"""The why table, the timeline and the graph files, against a double of the native core."""

import io
import json
import pathlib
import re
import subprocess

import outrider
import pytest
from fake_core import make_row
from outrider import graph_export
from outrider.explain import load_rows, print_rows, save_rows, summary_lines
from outrider.reasons import REASONS, describe
from outrider.timeline import chrome_trace
from shell_fixtures import core_double  # noqa: F401  the fixture `core`

pytestmark = pytest.mark.timeout(60)

GUIDE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "guide" / "explain.md"

CODES = [
    "FLUSH_FETCH",
    "FLUSH_RAW_ACCESS",
    "FLUSH_FOREIGN_OP",
    "FLUSH_DATA_DEPENDENT",
    "FLUSH_FLAG",
    "FLUSH_ESCAPED",
    "FLUSH_RECORD",
    "FLUSH_FORK",
    "FLUSH_CALLED",
    "FLUSH_STEP_OUTSIDE",
    "FLUSH_DEBUG",
    "DIV_NEW_PATH",
    "DIV_META",
    "DIV_ENV",
    "DIV_ARGUMENT",
    "DIV_WIRING",
    "DIV_BACKWARD",
    "DIV_RAW_ACCESS",
    "DIV_EXCEPTION",
    "DIV_FORCED",
    "DIV_STEP_ENDED",
    "INNER_HOOK",
    "INNER_PYNODE",
    "INNER_GRAPH_API",
    "INNER_GRAD_STATE",
    "INNER_UNSTABLE",
    "INNER_FOREIGN",
    "INNER_DATA_DEPENDENT",
    "INNER_HISTORY",
    "INNER_ENV",
    "INNER_OPTION",
    "OFF_KEYS",
    "OFF_OPTION",
    "OFF_ENV",
]


def _divergence(code="DIV_META", event=17, where="train.py:31"):
    return {
        "event": event,
        "code": code,
        "expected": "[4, 8]",
        "got": "[3, 8]",
        "field": "shape",
        "where": where,
    }


def _printed(rows):
    file = io.StringIO()
    print_rows(rows, file)
    return file.getvalue()


def test_every_reason_code_has_a_meaning_and_a_remedy_and_is_in_the_guide():
    assert sorted(REASONS) == sorted(CODES)
    guide = GUIDE.read_text(encoding="utf-8")
    for code, reason in REASONS.items():
        assert reason.meaning.endswith(".") and reason.remedy.endswith(".")
        assert f"`{code}`" in guide
    named_in_guide = set(re.findall(r"`((?:FLUSH|DIV|INNER|OFF)_[A-Z_]+)`", guide))
    assert named_in_guide == set(CODES)


def test_the_guide_describes_every_field_of_a_row():
    guide = GUIDE.read_text(encoding="utf-8")
    assert [field for field in make_row(0) if f"`{field}`" not in guide] == []


def test_an_unknown_code_is_reported_as_such():
    reason = describe("DIV_OF_THE_FUTURE")
    assert reason.code == "DIV_OF_THE_FUTURE" and "does not know" in reason.meaning
    text = _printed([make_row(0, flushes={"FLUSH_NEW": 2})])
    assert "FLUSH_NEW (2)" in text and "Remedy" not in text


def test_explain_prints_to_the_file_and_returns_the_rows(core):
    core.kept_rows = [make_row(step) for step in range(30)]
    file = io.StringIO()
    assert outrider.explain(last=3, file=file) == core.kept_rows[-3:]
    table = file.getvalue()
    assert " 29 " in table and " 27 " in table and " 26 " not in table
    assert "Steps 27 to 29: the graph runner ran 300 of 300 device operations (100.0 %)." in table
    assert "\x1b[" not in table, "no colour codes in a file"
    assert len(outrider.explain(last=None, file=file)) == 30
    assert outrider.explain(last=0, file=file) == []


def test_explain_prints_to_standard_output_by_default(core, capsys):
    core.kept_rows = [make_row(5)]
    outrider.explain()
    assert "Step 5: the graph runner ran 100 of 100" in capsys.readouterr().out


def test_the_table_holds_every_number():
    row = make_row(
        41,
        name="weights[0]",
        events=1234,
        device_ops=2345,
        covered_ops=2000,
        covered_share=2000 / 2345,
        feeds=345,
        fetches=456,
        flushes={"FLUSH_FETCH": 7, "FLUSH_FLAG": 8},
        divergences=[_divergence()],
    )
    table = _printed([row])
    for text in ("41", "weights[0]", "outer", "T2", "1234", "2345", "85.3", "345", "456", "1.50", "0.25 / 0.50"):
        assert text in table
    for text in ("FETCH 7", "FLAG 8", "META at 17"):
        assert text in table


def test_each_reason_comes_with_its_remedy_and_the_users_lines():
    rows = [
        make_row(1, lane="inner", note="INNER_HOOK: tensor hook on fc.weight", flushes={"FLUSH_FETCH": 2}),
        make_row(2, divergences=[_divergence(), _divergence(where=""), _divergence("DIV_NEW_PATH", 3, "loop.py:9")]),
        make_row(3, divergences=[_divergence()]),
    ]
    lines = summary_lines(rows)
    assert f"DIV_META (3): {REASONS['DIV_META'].meaning}" in lines
    assert f"  Remedy: {REASONS['DIV_META'].remedy}" in lines
    assert "  at train.py:31: shape was [3, 8], recorded [4, 8] (2 times)" in lines
    assert "  at event 17: shape was [3, 8], recorded [4, 8]" in lines
    assert any(line.startswith("DIV_NEW_PATH (1)") for line in lines)
    assert any(line.startswith("FLUSH_FETCH (2)") for line in lines)
    position = lines.index(f"INNER_HOOK (1): {REASONS['INNER_HOOK'].meaning}")
    assert "  tensor hook on fc.weight" in lines[position:]


def test_many_places_are_cut_short():
    rows = [make_row(0, divergences=[_divergence(where=f"train.py:{line}") for line in range(5)])]
    lines = summary_lines(rows)
    assert sum("train.py" in line for line in lines) == 3
    assert "  ... and 2 more places" in lines


def test_inline_operators_are_named():
    rows = [
        make_row(0, inline_ops={"aten::nonzero": 2}),
        make_row(1, inline_ops={"aten::nonzero": 1, "aten::unique": 1}),
    ]
    assert "Ran on the host, not covered: aten::nonzero (3), aten::unique (1)." in summary_lines(rows)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], "No step has finished yet."),
        ([make_row(0, device_ops=0, covered_ops=0)], "Step 0: no device operations."),
        (
            [make_row(step, lane="record", covered_ops=0) for step in range(3)],
            "nothing was covered, because 3 of 3 steps were recordings. Covering starts once recordings",
        ),
        (
            [make_row(0, lane="off", covered_ops=0, note="OFF_KEYS: inner=Undefined")],
            "nothing was covered, because co-execution was off for 1 of 1 steps (OFF_KEYS: inner=Undefined).",
        ),
        (
            [make_row(0, covered_ops=0, divergences=[_divergence(event=0)])],
            "nothing was covered, because the program left every plan before its first operation; see",
        ),
    ],
)
def test_plain_words_when_nothing_was_covered(rows, expected):
    assert expected in summary_lines(rows)[0]


def test_a_report_survives_a_file(tmp_path, core):
    rows = [make_row(0), make_row(1, divergences=[_divergence()])]
    path = save_rows(tmp_path / "new" / "report.json", rows)
    assert load_rows(path) == rows
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(rows))
    assert load_rows(bare) == rows


@pytest.mark.parametrize("content", ["{", "3", "{}", '{"rows": 1}', '[{"name": "x"}]', "[1]"])
def test_a_file_that_is_no_report_is_refused(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"report\.json is not"):
        load_rows(path)


def _span(name, thread, start_us, dur_us, kind, **arguments):
    return {"name": name, "thread": thread, "start_us": start_us, "dur_us": dur_us, "kind": kind, "args": arguments}


SPANS = [
    _span("wait for loss", "imperative", 130.0, 70.0, "wait", seq=7),
    _span("train", "imperative", 100.0, 150.0, "step"),
    _span("segment 0", "graph runner", 110.0, 85.0, "run", seq=7, ops=12),
    _span("wait for work", "graph runner", 90.0, 20.0, "wait", seq=99),
]


def test_the_timeline_has_named_threads_and_every_span():
    trace = chrome_trace(SPANS)
    events = trace["traceEvents"]
    threads = {event["args"]["name"]: event["tid"] for event in events if event["name"] == "thread_name"}
    assert threads.keys() == {"imperative", "graph runner"}
    spans = [event for event in events if event["ph"] == "X"]
    assert [(event["name"], event["tid"], event["ts"], event["dur"], event["cat"]) for event in spans] == [
        ("wait for work", threads["graph runner"], 90.0, 20.0, "wait"),
        ("train", threads["imperative"], 100.0, 150.0, "step"),
        ("segment 0", threads["graph runner"], 110.0, 85.0, "run"),
        ("wait for loss", threads["imperative"], 130.0, 70.0, "wait"),
    ]
    assert spans[2]["args"] == {"seq": 7, "ops": 12}


def test_a_wait_gets_an_arrow_from_what_ended_it():
    events = chrome_trace(SPANS)["traceEvents"]
    (start,) = [event for event in events if event["ph"] == "s"]
    (finish,) = [event for event in events if event["ph"] == "f"]
    assert start["id"] == finish["id"] and start["tid"] != finish["tid"]
    assert 110.0 <= start["ts"] < 195.0 and start["ts"] == pytest.approx(195.0, abs=0.01)
    assert 130.0 <= finish["ts"] < 200.0 and finish["ts"] == pytest.approx(200.0, abs=0.01)


def test_arrows_never_point_back_in_time():
    late_cause = [
        _span("wait", "imperative", 10.0, 5.0, "wait", seq=1),
        _span("run", "graph runner", 11.0, 50.0, "run", seq=1),
        _span("wait", "imperative", 100.0, 5.0, "wait", seq=2),
        _span("run", "graph runner", 80.0, 24.0, "run", seq=2),
    ]
    events = chrome_trace(late_cause)["traceEvents"]
    starts = {event["id"]: event["ts"] for event in events if event["ph"] == "s"}
    finishes = {event["id"]: event["ts"] for event in events if event["ph"] == "f"}
    assert starts.keys() == finishes.keys() == {1, 2}
    assert all(starts[key] <= finishes[key] for key in starts)


def test_save_timeline(core, tmp_path):
    core.spans = SPANS
    path = outrider.save_timeline(tmp_path / "out" / "timeline.json")
    assert json.loads(path.read_text())["traceEvents"] == chrome_trace(SPANS)["traceEvents"]


def test_graph_formats(core):
    assert outrider.graph() == "text of inner\n"
    assert outrider.graph("mermaid", lane="outer") == "mermaid of outer\n"
    with pytest.raises(ValueError, match="fmt is one of text, dot, mermaid"):
        outrider.graph("png")
    with pytest.raises(ValueError, match="lane is inner or outer"):
        outrider.graph(lane="off")


@pytest.mark.parametrize(("suffix", "start"), [(".txt", "text of outer"), (".dot", "digraph"), (".mmd", "mermaid of")])
def test_save_graph_as_text(core, tmp_path, suffix, start):
    path = outrider.save_graph(tmp_path / "out" / f"graph{suffix}", lane="outer")
    assert path.read_text().startswith(start)


def test_save_graph_refuses_an_unknown_suffix(core, tmp_path):
    with pytest.raises(ValueError, match="the suffix is one of"):
        outrider.save_graph(tmp_path / "graph.png")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(graph_export.shutil.which("dot") is None, reason="Graphviz is not installed")
def test_save_graph_as_svg(core, tmp_path, monkeypatch):
    picture = outrider.save_graph(tmp_path / "graph.svg").read_text()
    assert picture.startswith("<?xml") and "start" in picture and "end" in picture
    monkeypatch.setattr(core, "graph", lambda fmt, lane: "this is not a graph")
    with pytest.raises(RuntimeError, match=r"Graphviz failed: .*syntax error"):
        outrider.save_graph(tmp_path / "broken.svg")
    assert not (tmp_path / "broken.svg").exists()


def test_an_svg_without_graphviz_says_what_is_missing(core, tmp_path, monkeypatch):
    monkeypatch.setattr(graph_export.shutil, "which", lambda program: None)
    with pytest.raises(RuntimeError, match="needs Graphviz"):
        outrider.save_graph(tmp_path / "graph.svg")


def test_a_graph_too_large_for_graphviz_does_not_hang(core, tmp_path, monkeypatch):
    def never_ends(command, **kwargs):
        raise subprocess.TimeoutExpired(command, kwargs["timeout"])

    monkeypatch.setattr(graph_export.shutil, "which", lambda program: "/bin/dot")
    monkeypatch.setattr(graph_export.subprocess, "run", never_ends)
    with pytest.raises(RuntimeError, match=r"save the graph as \.dot"):
        outrider.save_graph(tmp_path / "graph.svg")
