"""Recorded loads at full lengths on a model of large shapes: the policies against each other on a GPU.

Where the real model and the texts are, once; what comes out is a few MB and can be carried:

    PYTHONPATH=python python benchmarks/serve/gpu_replay.py pack --adapter python/outrider/shipped/smollm2-135m-75 \
        --parent MODEL --traces azure=FILE mooncake=FILE --texts FOLDER --out INPUTS

For another model of the same tokenizer, without the texts (MODEL: a folder with weights, or an adapter):

    PYTHONPATH=python python benchmarks/serve/gpu_replay.py repack --inputs INPUTS --artifact MODEL --out OTHER

On the GPU machine; the same call goes on where it was cut, with the folder of weights and with the replay:

    PYTHONPATH=python python benchmarks/serve/gpu_replay.py run --inputs INPUTS --model FOLDER --out RESULTS \
        --load azure --rows 200 --equal-times --seconds 400

`run` makes the folder (shape_model.py: random weights, routes and masks of the real model; 14 GB at 7B shapes), reads
it once for all engines, checks that it writes what it shall, and replays: a round is all rates and policies of all
loads once, so that a session that ends early has whole rounds. Each run of an engine is kept in RESULTS; the report
over all that lies there is written after each round, RESULTS/report.json and .md (replay_report.py).
"""

import argparse
import gc
import json
import select
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from outrider.refactor.atomic import write_file
from outrider.serve import start
from outrider.serve.replay import compare
from outrider.serve.replay.cli import results_so_far, write_results
from outrider.serve.replay.figures import Goal
from outrider.serve.replay.load_file import Prepared

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coexec"))

from measure import circumstances
from replay_report import report
from shape_inputs import Inputs, pack, read_inputs, repack
from shape_model import SHAPES, make

CHECKED_PROMPT, CHECKED_TOKENS = 40, 24
REPORT = "report"
RATES = (0.9, 1.2, 0.3)  # the last one says least


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def open_engine(options: start.ServeOptions) -> tuple[Any, type[Exception]]:
    """With the memory free that the engine before it had."""
    gc.collect()
    return start.open_engine(options)


def check_texts(options: start.ServeOptions, inputs: Inputs, prompts: list[list[int]]) -> None:
    """Ends the program unless the model writes the walk behind the last token of each prompt."""
    engine, _ = open_engine(options)
    try:
        say(json.dumps({name: engine.info[name] for name in ("device", "kv_tokens", "experts", "weight_bytes")}))
        for prompt in prompts:
            found, expected = _written(engine, prompt), inputs.written(prompt[-1], CHECKED_TOKENS)
            if found != expected:
                raise SystemExit(f"the model wrote {found}, expected {expected}: its weights or its passes are wrong")
    finally:
        engine.close()


def _written(engine: Any, prompt: list[int]) -> list[int]:
    tokens: list[int] = []
    engine.submit(prompt, max_tokens=CHECKED_TOKENS, temperature=0.0)
    while select.select([engine.event_fd], [], [], 120)[0]:
        for event in engine.poll():
            tokens += event["tokens"]
            if event["finish"] is not None:
                return tokens
    raise SystemExit("the engine did not answer within two minutes")


def plan_of(given: argparse.Namespace, options: start.ServeOptions, prepared: Prepared) -> compare.Plan:
    goal = Goal(given.ttft_ms / 1000, given.tpot_ms / 1000) if given.ttft_ms and given.tpot_ms else None
    policies = tuple(given.policy or compare.POLICIES)
    about = {**options.machine(), "threads": options.threads, "options": options.engine, "policies": list(policies)}
    return compare.Plan(
        open_engine=lambda name: open_engine(replace(options, policy=name)),
        prepared=prepared,
        policies=policies,
        rates=tuple(given.rate or RATES),
        repetitions=given.repetitions,
        goal=goal,
        factors=(given.ttft_factor, given.tpot_factor),
        equal_times=given.equal_times,
        temperature=given.temperature,
        about=about | {"shape": given.shape},
        say=say,
    )


def round_of(
    plan: compare.Plan, out: Path, model: dict[str, Any], number: int, late: Callable[[], bool]
) -> dict[str, Any]:
    """Runs the repetitions up to `number`, where they are not there yet."""
    wanted = (number + 1) * len(plan.rates) * len(plan.policies)
    runs = [0]

    def keep(state: dict[str, Any]) -> None:
        runs[0] = len(state["runs"])
        write_results(out, {**state, "model": model, "circumstances": circumstances()})

    result = compare.compare(plan, results_so_far(out), keep, lambda: runs[0] >= wanted or late())
    say(f"{out.name}: {len(result['runs'])} runs of {plan.repetitions * wanted // (number + 1)}")
    return result


def write_report(folder: Path) -> None:
    """Over all results in the folder that have a run."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json")) if path.stem != REPORT}
    found = {name: one for name, one in found.items() if one.get("runs")}
    if found:
        whole, text = report(found)
        write_file(folder / f"{REPORT}.json", json.dumps(whole, indent=1) + "\n")
        write_file(folder / f"{REPORT}.md", text)


def result_file(given: argparse.Namespace, load: str, plan: compare.Plan) -> Path:
    rates = "_".join(f"{rate:g}" for rate in plan.rates)
    return given.out / f"{load}_{given.rows}_at_{rates}.json"


def run(given: argparse.Namespace) -> None:
    began = time.monotonic()
    late = lambda: 0 < given.seconds < time.monotonic() - began  # noqa: E731
    given.out.mkdir(parents=True, exist_ok=True)
    inputs = read_inputs(given.inputs)
    model = make(given.model, inputs, given.shape, "cuda" if torch.cuda.is_available() else "cpu")
    say(f"{given.model}: made or found after {time.monotonic() - began:.0f} s")
    more = nothing_refused(given.rows) | start.engine_options("gpu_replay.py", given.option or [])
    options = start.ServeOptions(given.model, device=given.device, threads=given.threads, engine=more)
    options = replace(options, loaded=start.load_model(options))
    say(f"read after {time.monotonic() - began:.0f} s")
    loads = {name: inputs.prepared(name, given.rows) for name in given.load}
    prompts = [one.prompts[0] for one in loads.values()]  # whole ones warm up what a process does once
    check_texts(options, inputs, [*prompts, *(prompt[:CHECKED_PROMPT] for prompt in prompts)])
    plans = {name: plan_of(given, options, prepared) for name, prepared in loads.items()}
    for number in range(given.repetitions):
        for name, plan in plans.items():
            if not late():
                round_of(plan, result_file(given, name, plan), model, number, late)
        write_report(given.out)
    say(f"ended after {time.monotonic() - began:.0f} s")


def nothing_refused(rows: int) -> dict[str, int | float | bool]:
    """Options with which all rows may wait, so that every policy serves the same requests."""
    return {"queued_max": max(256, rows), "streams_max": max(1024, 2 * rows), "tokens_admitted_max": 10**9}


def pairs(given: list[str]) -> dict[str, Path]:
    return {name: Path(path) for name, _, path in (one.partition("=") for one in given)}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = made.add_subparsers(dest="command", required=True)
    add_pack(commands)
    add_repack(commands)
    add_run(commands)
    return made


def add_pack(commands: Any) -> None:
    one = commands.add_parser("pack", help="inputs from a real refactored model, traces and texts")
    one.add_argument("--adapter", type=Path, required=True, help="a refactored model, whose masks and router are taken")
    one.add_argument("--name", help="what reports call it; default: its folder's name")
    one.add_argument("--parent", type=Path, required=True, help="its parent: tokenizer, and the table of a tied router")
    one.add_argument("--traces", nargs="+", required=True, help="NAME=FILE")
    one.add_argument("--texts", type=Path, required=True)
    one.add_argument("--rows", type=int, default=2000)
    one.add_argument("--context", type=int, default=8192)
    one.add_argument("--scale-lengths", type=int, default=1)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--out", type=Path, required=True)


def add_repack(commands: Any) -> None:
    one = commands.add_parser("repack", help="inputs with the masks and the router of another refactored model")
    one.add_argument("--inputs", type=Path, required=True, help="packed ones, whose loads and texts are taken")
    one.add_argument("--artifact", type=Path, required=True, help="such as WORK/rows/ROW-DIGEST/model of gpu_rows.py")
    one.add_argument("--name", help="what reports call it; default: its folder's name")
    one.add_argument("--parent", type=Path, help="its parent, needed by an adapter with a tied router")
    one.add_argument("--out", type=Path, required=True, help="a folder that is not there yet")


def add_run(commands: Any) -> None:
    two = commands.add_parser("run", help="makes the model where it is not there, and replays")
    two.add_argument("--inputs", type=Path, required=True)
    two.add_argument("--model", type=Path, required=True, help="folder of the weights, made or found")
    two.add_argument("--out", type=Path, required=True, help="folder of results; those that are there go on")
    two.add_argument("--shape", choices=SHAPES, default="7b")
    two.add_argument("--device", default="cuda", help="cuda; cpu or reference with small shapes")
    two.add_argument("--load", action="append", help="of the inputs; may be repeated; default: azure")
    two.add_argument("--rows", type=int, default=200)
    two.add_argument("--rate", type=float, action="append", help="share of what chunked_fcfs does; may be repeated")
    two.add_argument("--policy", action="append", choices=compare.POLICIES)
    two.add_argument("--repetitions", type=int, default=3)
    two.add_argument("--equal-times", action="store_true", help="fewer rows at low rates: runs take as long")
    two.add_argument("--seconds", type=float, default=0, help="begin no run after these; 0: all")
    two.add_argument("--threads", type=int, default=0, help="on the host; 0: one per core")
    two.add_argument("--temperature", type=float, default=0.0, help="of all requests")
    two.add_argument("--ttft-ms", type=float)
    two.add_argument("--tpot-ms", type=float)
    two.add_argument("--ttft-factor", type=float, default=10.0)
    two.add_argument("--tpot-factor", type=float, default=6.0)
    two.add_argument("--option", action="append", help="of the engine, NAME=VALUE; may be repeated")


def write_inputs(given: argparse.Namespace) -> Inputs:
    if given.command == "repack":
        name = given.name or given.artifact.resolve().name
        return repack(given.out, name, given.artifact, given.inputs, given.parent)
    sizes = {"rows": given.rows, "scale": given.scale_lengths, "context": given.context, "seed": given.seed}
    name = given.name or given.adapter.resolve().name
    return pack(given.out, name, given.adapter, given.parent, pairs(given.traces), given.texts, **sizes)


def main() -> None:
    given = parser().parse_args()
    if given.command != "run":
        print(json.dumps(write_inputs(given).about["routes"], indent=1))
        return
    given.load = given.load or ["azure"]
    run(given)


if __name__ == "__main__":
    main()
