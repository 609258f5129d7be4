"""Replay of loads: traces are read as published, runs and figures add up; over the double of the engine."""

import asyncio
import json
import lzma
import math
from dataclasses import replace
from pathlib import Path

import pytest
from fake_engine import FakeEngine, ServeRejected, make_folder
from outrider import cli
from outrider.refactor.errors import InputError
from outrider.serve import start
from outrider.serve.replay import compare, drive, figures, http_overload, load, overload, texts
from outrider.serve.replay.drive import Record, RunResult
from outrider.serve.replay.figures import Goal
from outrider.serve.replay.load_file import Prepared, read_load, write_load
from safetensors.numpy import load_file
from serve_fixtures import running, writes
from typer.testing import CliRunner

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
AZURE += "2023-11-16 18:15:50.9951690,9000,9\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,x\n"
BURST += "9,GPT-4,7,0,7,x\n"
MOON = '{"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]}\n'
MOON += '{"timestamp": 2500, "input_length": 1030, "output_length": 6, "hash_ids": [0, 1, 9]}\n'


def _trace(path: Path, text: str) -> Path:
    path.write_bytes(lzma.compress(text.encode()) if path.suffix == ".xz" else text.encode())
    return path


def test_traces_as_published(tmp_path):
    azure = list(load.read_trace(_trace(tmp_path / "a.csv.xz", AZURE)))
    assert [(row.prompt_tokens, row.written_tokens) for row in azure] == [(374, 44), (9000, 9)]
    assert azure[1].arrival_s == pytest.approx(4.314579, abs=1e-6)
    assert [row.prompt_tokens for row in load.read_trace(_trace(tmp_path / "b.csv", BURST))] == [472]
    moon = list(load.read_trace(_trace(tmp_path / "m.jsonl", MOON)))
    assert moon[1] == load.Row(2.5, 1030, 6, (0, 1, 9))
    own = "arrival_s,prompt_tokens,output_tokens\n0,12,3\n1.5,8,4\n"
    lines = '{"arrival_s": 0, "prompt_tokens": 12, "output_tokens": 3}\n'
    lines += '{"arrival_s": 1.5, "prompt_tokens": 8, "output_tokens": 4}\n'
    for text in (own, lines):
        assert list(load.read_trace(_trace(tmp_path / "o", text))) == [load.Row(0.0, 12, 3), load.Row(1.5, 8, 4)]
    shaped = load.shape("a", azure, count=5, scale=8, context=100)
    assert (shaped.dropped, shaped.rows) == (1, [load.Row(0.0, 46, 5, (), 64)])


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", AZURE + "x,y,z\n", '{"timestamp": 0}\n', "{\n"])
def test_what_is_no_trace(tmp_path, text):
    with pytest.raises(InputError, match="E_TRACE"):
        list(load.read_trace(_trace(tmp_path / "t", text)))
    (tmp_path / "t.xz").write_bytes(lzma.compress(AZURE.encode())[:-9])
    with pytest.raises(InputError, match="E_TRACE"):
        list(load.read_trace(tmp_path / "t.xz"))


def test_poisson_is_seeded_and_has_its_rate():
    rows = list(load.poisson(2000, 1))
    assert rows == list(load.poisson(2000, 1)) != list(load.poisson(2000, 2))
    shaped = load.shape("p", rows, count=2000, scale=1, context=10_000)
    assert shaped.rate == pytest.approx(1, rel=0.1)
    assert load.Load("one", rows[:1]).rate == math.inf


def test_equal_blocks_are_equal_text(tmp_path):
    rows = list(load.read_trace(_trace(tmp_path / "m.jsonl", MOON)))
    shaped = load.shape("m", rows, count=2, scale=1, context=5000)
    domains = {"a": list(range(100)), "b": list(range(500, 900))}
    first, second = texts.prompts_of(shaped, domains, 0)
    assert (len(first), len(second)) == (1100, 1030)
    assert first[:1024] == second[:1024] and first[1024:1030] != second[1024:]
    assert texts.prompts_of(shaped, domains, 1)[0] != first


def test_domains_come_from_files_or_from_python(tmp_path):
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"some text"))
    (tmp_path / "empty.txt").write_text("")
    assert texts.domain_tokens(tmp_path, lambda text: list(text.encode())) == {"a.txt.xz": list(b"some text")}
    assert len(texts.domain_tokens(None, lambda text: list(text.encode()))["code"]) == texts.DOMAIN_TOKENS
    with pytest.raises(InputError, match="E_DATA"):
        texts.domain_tokens(tmp_path / "nothing", list)


def test_figures_of_a_run():
    records = [
        Record(0.0, first_s=0.1, last_s=0.5, written=5, finish="length"),
        Record(1.0, first_s=3.0, last_s=3.0, written=1, finish="length"),
        Record(2.0, finish="rejected"),
    ]
    counts = dict.fromkeys(drive.COUNTED, 0.0) | {"steps": 4, "decode_tokens": 6, "prefill_tokens": 6}
    counts |= {"weight_bytes": 400, "distinct_experts": 8}
    found = figures.figures(RunResult(records, 4.0, counts, 1), Goal(1.0, 0.2))
    assert (found["done"], found["rejected"], found["goodput_tokens_per_s"]) == (2, 1, 5 / 4)
    assert found["tokens_per_s"] == 6 / 4 and found["kept_share"] == pytest.approx(1 / 3)
    assert found["ttft_s_mean"] == pytest.approx(1.05) and found["tpot_s_p99"] == pytest.approx(0.1)
    assert (found["weight_bytes_per_step"], found["distinct_experts_per_step"]) == (100, 2)
    assert figures.percentile([3, 1, 2], 0.95) == 3 and figures.percentile([], 0.5) is None


def test_a_run_counts_what_is_refused_unless_it_is_patient():
    for patient in (False, True):
        engine = FakeEngine(streams_max=2, token_s=0.002)
        prompts, lengths = [[10, 11, 12, 13]] * 6, [3] * 6
        try:
            found = drive.run(engine, ServeRejected, prompts, lengths, [0.0] * 6, limit_s=20, patient=patient)
        finally:
            engine.close()
        done = [record for record in found.records if record.finish == "length"]
        assert (len(done), found.rejected) == ((6, 0) if patient else (2, 4))
        assert all(record.written == 3 and len(record.experts) == 7 for record in done)
        assert found.counts["decode_tokens"] == 3 * len(done) and 0 < found.seconds < 20


def test_tokens_are_drawn_where_a_temperature_is_given():
    for temperature in (0.0, 0.7):
        engine, asked = FakeEngine(), []
        submit = engine.submit
        engine.submit = lambda prompt, **about: asked.append(about) or submit(prompt, **about)  # noqa: B023
        try:
            drive.run(engine, ServeRejected, [[10, 11]] * 3, [2] * 3, [0.0] * 3, limit_s=20, temperature=temperature)
        finally:
            engine.close()
        assert [(about["temperature"], about["seed"]) for about in asked] == [(temperature, i) for i in range(3)]


def test_policies_on_one_load():
    opened = []

    def open_engine(policy):
        opened.append(policy)
        slow = 0.004 if policy == "prefill_first" else 0.001
        return FakeEngine(token_s=slow, script=lambda prompt: prompt * 50), ServeRejected

    shaped = load.shape("p", load.poisson(12, 3, prompt_mean=8, written_mean=6), count=12, scale=1, context=200)
    prompts = texts.prompts_of(shaped, {"a": list(range(3, 200))}, 0)
    policies = ("chunked_fcfs", "prefill_first")
    plan = compare.Plan(open_engine, Prepared(shaped, prompts), policies, (0.5,), 2, say=lambda _: None)
    found = compare.compare(plan)
    assert opened == ["chunked_fcfs"] * 3 + ["prefill_first"] * 2 + ["chunked_fcfs"]
    assert len(found["runs"]) == 4 and found["texts_equal"] and found["done"]
    fast, slow = found["summary"]
    assert (fast["policy"], fast["repetitions"], slow["policy"]) == ("chunked_fcfs", 2, "prefill_first")
    assert slow["tpot_s_mean"]["low"] > fast["tpot_s_mean"]["high"]
    assert found["table"].count("\n") == 4 and "| 0.5 | prefill_first |" in found["table"]
    assert found["alone"]["ttft_factor"] * found["alone"]["ttft_s_p95"] == pytest.approx(found["goal"]["ttft_s"])


def test_goals_from_a_calm_run_and_the_spread_of_repetitions():
    shaped = load.shape("p", load.poisson(12, 3, prompt_mean=8, written_mean=6), count=12, scale=1, context=200)
    prepared = Prepared(shaped, texts.prompts_of(shaped, {"a": list(range(3, 200))}, 0))
    give = lambda _: (FakeEngine(token_s=0.002, script=lambda ids: ids * 50), ServeRejected)  # noqa: E731
    plan = compare.Plan(give, prepared, ("chunked_fcfs", "outrider"), (0.9,), 2, factors=(5, 3), calm=0.3, say=str)
    found = compare.compare(plan)
    alone, goal = found["alone"], found["goal"]
    assert (alone["rate_share"], alone["requests"]) == (0.3, 12)
    assert goal["ttft_s"] == 5 * alone["ttft_s_median"] and goal["tpot_s"] == 3 * alone["tpot_s_median"] > 0.006
    table = figures.spread_table(found["summary"])
    assert table.count("\n") == 4 and "| outrider | " in table and table.count(" to ") == 10


def test_policies_are_told_apart_beyond_their_spread_alone():
    def row(policy, low, median, high):
        return {"policy": policy, "goodput_tokens_per_s": {"low": low, "median": median, "high": high}}

    rows = [row("a", 5, 6, 7), row("b", 6, 9, 10), row("c", 1, 2, 5.9), row("d", 0, 0, 0)]
    assert figures.apart_from_best(rows) == ("b", ["c", "d"])


def test_a_comparison_goes_on_where_it_was_cut(tmp_path):
    shaped = load.shape("p", load.poisson(12, 3, prompt_mean=8, written_mean=6), count=12, scale=1, context=200)
    prepared = Prepared(shaped, texts.prompts_of(shaped, {"a": list(range(3, 200))}, 0))

    def open_engine(_):
        return FakeEngine(token_s=0.001, script=lambda prompt: prompt * 50), ServeRejected

    policies = ("chunked_fcfs", "outrider")
    plan = compare.Plan(open_engine, prepared, policies, (0.5, 1.0), 1, about={"a": 1}, say=lambda _: None)
    kept, left = [], [False, True, True]
    first = compare.compare(plan, None, kept.append, lambda: not left.pop())
    assert len(first["runs"]) == 2 and not first["done"] and kept[-1] is first
    again = json.loads(json.dumps(first))
    whole = compare.compare(plan, again)
    assert [(one["rate_share"], one["policy"]) for one in whole["runs"]] == [
        (share, policy) for share in (0.5, 1.0) for policy in policies
    ]
    assert whole["done"] and whole["runs"][:2] == first["runs"] and whole["goal"] == first["goal"]
    with pytest.raises(InputError, match="about"):
        compare.compare(replace(plan, about={"a": 2}), again)
    with pytest.raises(InputError, match="load"):
        compare.compare(replace(plan, prepared=prepared.first(11)), again)


def test_runs_at_low_rates_have_fewer_rows():
    shaped = load.shape("p", load.poisson(100, 3), count=100, scale=1, context=10_000)
    plan = compare.Plan(lambda _: None, Prepared(shaped, [[1]] * 100), equal_times=True)
    assert [plan.rows_at(share) for share in (0.3, 0.9, 1.2, 0.01)] == [25, 75, 100, 8]
    assert replace(plan, rates=(0.3,)).rows_at(0.3) == 25, "as beside the other rates"
    assert replace(plan, equal_times=False).rows_at(0.3) == 100


def test_rows_are_neighbours_that_fit():
    rows = [load.Row(float(i), 10 if i % 3 else 999, 1) for i in range(100)]
    chosen, dropped = load.window(rows, 20, lambda row: row.prompt_tokens < 100, 5)
    times = [row.arrival_s for row in chosen]
    assert (len(chosen), dropped) == (20, 34) and times == sorted(times) and times[-1] - times[0] in (28, 29)
    assert load.window(rows, 20, lambda row: row.prompt_tokens < 100, 6)[0] != chosen
    assert load.window(rows, 500, lambda row: row.prompt_tokens < 100, 6)[0] == [
        r for r in rows if r.prompt_tokens == 10
    ]
    assert load.window(rows, 5, lambda _: False, 0) == ([], 100)


def test_a_load_survives_its_file(tmp_path):
    shaped = load.shape("p", load.poisson(5, 3), count=5, scale=1, context=10_000)
    prepared = Prepared(shaped, texts.prompts_of(shaped, {"a": list(range(300))}, 0), {"seed": 3})
    write_load(tmp_path / "l.json", prepared)
    again = read_load(tmp_path / "l.json")
    assert again.prompts == prepared.prompts and again.summary() == prepared.summary()
    assert [row.arrival_s for row in again.load.rows] == [row.arrival_s for row in shaped.rows]
    (tmp_path / "bad.json").write_text('{"format": 1, "rows": [{}]}')
    for bad in (tmp_path / "bad.json", tmp_path / "none.json"):
        with pytest.raises(InputError, match="E_TRACE"):
            read_load(bad)


def test_the_command(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "m")
    monkeypatch.setattr(start, "load_model", lambda options: None)
    monkeypatch.setattr(start, "open_engine", lambda options: (FakeEngine(script=lambda ids: ids * 99), ServeRejected))
    arguments = ["bench", "serve", str(folder), "--out", str(tmp_path / "r.json"), "--rows", "5", "--repetitions", "1"]
    arguments += ["--policy", "outrider", "--rate", "0.9", "--routes", str(tmp_path / "r.safetensors")]
    arguments += ["--ttft-ms", "500", "--tpot-ms", "50", "--scale-lengths", "8"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["load"]["rows"] == 5 and found["goal"] == {"ttft_s": 0.5, "tpot_s": 0.05}
    assert (tmp_path / "r.md").read_text() in done.stdout
    routes = load_file(tmp_path / "r.safetensors")
    assert routes["begins"][-1] == len(routes["experts"]) and len(routes["begins"]) == 6
    assert "temperature" not in found["about"]
    again = CliRunner().invoke(cli.app, [*arguments, "--temperature", "0.7"])
    assert again.exit_code == 2 and "results so far: about: found" in again.stderr, "others are not gone on with"
    bad = CliRunner().invoke(cli.app, [*arguments[:5], "--ttft-ms", "5"])
    assert bad.exit_code == 2 and "--tpot-ms" in bad.stderr


def test_overload_measures_what_is_kept_and_how_fast_the_rest_is_refused():
    opened = []

    def open_engine(goal):
        opened.append(goal)
        return FakeEngine(token_s=0.002, streams_max=3, script=lambda prompt: prompt * 50), ServeRejected

    shaped = load.shape("p", load.poisson(12, 3, prompt_mean=8, written_mean=6), count=12, scale=1, context=200)
    prepared = Prepared(shaped, texts.prompts_of(shaped, {"a": list(range(3, 200))}, 0))
    plan = overload.Plan(open_engine, prepared, (1.0, 6.0), 0.5, factors=(50, 50), say=lambda _: None)
    found = overload.overload(plan)
    assert opened[:2] == [None, None] and opened[2] == opened[3] == Goal(**found["goal"])
    calm, crowd = found["shares"]
    assert crowd["requests"] > 4 * calm["requests"] and crowd["rejected"] > crowd["requests"] / 3
    assert found["verdict"]["refused_s_p99"] == crowd["refused_s_p99"] < 0.05
    best = max(calm["goodput_tokens_per_s"], crowd["goodput_tokens_per_s"])
    assert found["verdict"]["kept_of_peak"] == pytest.approx(crowd["goodput_tokens_per_s"] / best)


def test_rows_repeat_at_a_rate():
    shaped = load.shape("p", load.poisson(10, 3), count=10, scale=1, context=10_000)
    again, due = overload.repeated(Prepared(shaped, [[number] for number in range(10)]), 5.0, 6.0)
    assert [prompt[0] for prompt in again.prompts] == [*range(10)] * 3 and due == sorted(due)
    assert due[10] == pytest.approx(2.0) and due[-1] == pytest.approx(6.0, abs=0.3)


def test_refusals_over_http(tmp_path):
    folder = make_folder(tmp_path / "m")
    with running(folder, token_s=0.01, streams_max=2, script=writes(folder, "x" * 20)) as server:
        bodies = [json.dumps({"prompt": [5, 6], "max_tokens": 20, "stream": True}).encode()] * 8
        answers = asyncio.run(http_overload.send_all(server.port, bodies, [0.0] * 8))
    assert sorted(status for status, _ in answers) == [200] * 2 + [429] * 6
    assert all(0 < took < 5 for _, took in answers)
