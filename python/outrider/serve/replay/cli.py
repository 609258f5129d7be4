"""`outrider bench`: policies against each other on one recorded load, and what a server does with far too much."""

import errno
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from outrider.refactor.cli import input_errors
from outrider.refactor.errors import InputError

bench_app = typer.Typer(help="Measurements on this machine.", no_args_is_help=True)

Model = Annotated[Path, typer.Argument(help="A model folder, refactored or dense.")]
Parent = Annotated[Path | None, typer.Option(help="The parent of a folder without weights.")]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Weights = Annotated[str | None, typer.Option(help="As of `outrider serve`.")]
Threads = Annotated[int, typer.Option(help="On the CPU; 0: one per core.", min=0)]
Trace = Annotated[Path | None, typer.Option(help="Arrivals and lengths; without it, a seeded Poisson load.")]
Texts = Annotated[Path | None, typer.Option(help="Folder of texts; without it, Python's own sources.")]
Rows = Annotated[int, typer.Option(help="Requests to replay.", min=2)]
Scale = Annotated[int, typer.Option(help="Divides the lengths of a trace.", min=1)]
Context = Annotated[int, typer.Option(help="Longer requests are left out.", min=2)]
Seed = Annotated[int, typer.Option(help="Of rows, load and texts.", min=0)]
Prepared = Annotated[Path | None, typer.Option("--load", help="A file of `outrider bench load` instead of all these.")]
TtftFactor = Annotated[float, typer.Option(help="The goal is so many times what a request has alone.", min=0)]
TpotFactor = Annotated[float, typer.Option(help="Likewise of the time per token.", min=0)]
EqualTimes = Annotated[bool, typer.Option("--equal-times", help="Fewer rows at low rates: runs take as long.")]
LayerRouter = Annotated[Path | None, typer.Option(help="A router for every layer: adds the policy `layerwise`.")]
Temperature = Annotated[float, typer.Option(help="Of all requests; 0: greedy, which is the fastest.", min=0, max=2)]
Options = Annotated[list[str] | None, typer.Option("--option", help="Further options of the engine, as NAME=VALUE.")]


@bench_app.callback()
def _bench() -> None:
    """Measurements on this machine."""


@bench_app.command("load")
def bench_load(
    tokenizer: Annotated[Path, typer.Argument(help="A folder with the model's tokenizer.")],
    out: Annotated[Path, typer.Option(help="The JSON to write.")],
    trace: Trace = None,
    texts: Texts = None,
    rows: Rows = 200,
    scale_lengths: Scale = 8,
    context: Context = 2048,
    seed: Seed = 0,
) -> None:
    """Fixes a load, prompts as token ids, so that several models replay the same one; needs no model."""
    from outrider.serve.replay.load_file import write_load
    from outrider.serve.tokens import ServeTokenizer

    with input_errors():
        _check_out(out)
        made = _make_load(ServeTokenizer(tokenizer), trace, texts, rows, scale_lengths, context, seed)
        with _writing(out):
            write_load(out, made)
        print(json.dumps(made.summary()))


@bench_app.command("serve")
def bench_serve(
    model: Model,
    out: Annotated[Path, typer.Option(help="The JSON to write; a table goes beside it, as .md.")],
    parent: Parent = None,
    device: Device = "cpu",
    weights: Weights = None,
    threads: Threads = 0,
    trace: Trace = None,
    texts: Texts = None,
    rows: Rows = 200,
    scale_lengths: Scale = 8,
    load: Prepared = None,
    policy: Annotated[list[str] | None, typer.Option(help="Only this policy; may be repeated.")] = None,
    rate: Annotated[list[float] | None, typer.Option(help="Share of what chunked_fcfs does; may be repeated.")] = None,
    repetitions: Annotated[int, typer.Option(help="Interleaved.", min=1)] = 3,
    equal_times: EqualTimes = False,
    seconds: Annotated[float, typer.Option(help="Begin no run after these; the same call goes on. 0: all.")] = 0,
    ttft_ms: Annotated[float | None, typer.Option(help="Goal; both or none. Default: from requests alone.")] = None,
    tpot_ms: Annotated[float | None, typer.Option(help="Goal for the time per token.")] = None,
    ttft_factor: TtftFactor = 10.0,
    tpot_factor: TpotFactor = 4.0,
    option: Options = None,
    layer_router: LayerRouter = None,
    temperature: Temperature = 0.0,
    routes: Annotated[Path | None, typer.Option(help="Also write the experts of all tokens: .safetensors.")] = None,
    seed: Seed = 0,
) -> None:
    """Replays one load through an engine per policy, and writes goodput, latency and bytes."""
    from outrider.serve import start
    from outrider.serve.replay import compare
    from outrider.serve.replay.figures import Goal

    began = time.monotonic()
    with input_errors():
        _check_out(out)
        _check_given(ttft_ms, tpot_ms, rate or [], policy or [])
        more = start.engine_options("outrider bench serve", option or [])
        options = start.ServeOptions(model, parent=parent, device=device, weights=weights, threads=threads, engine=more)
        options.check("outrider bench serve")
        start.check_checksums(options)
        options = replace(options, loaded=start.load_model(options))
        policies = policy or [*compare.POLICIES, *([compare.LAYERWISE] if layer_router else [])]
        plan = compare.Plan(
            open_engine=lambda name: start.open_engine(_of_policy(options, name, layer_router)),
            prepared=_load(options, load, trace, texts, rows, scale_lengths, seed),
            policies=tuple(policies),
            rates=tuple(rate or compare.RATES),
            repetitions=repetitions,
            goal=Goal(ttft_ms / 1000, tpot_ms / 1000) if ttft_ms and tpot_ms else None,
            factors=(ttft_factor, tpot_factor),
            equal_times=equal_times,
            temperature=temperature,
            about={**options.machine(), "threads": threads, "options": more, "policies": list(policies)},
            say=_say,
        )
        late = lambda: 0 < seconds < time.monotonic() - began  # noqa: E731
        result = compare.compare(plan, results_so_far(out), lambda state: write_results(out, state), late)
        if routes:
            _write_routes(routes, compare.routes(plan), plan.prepared.sha256)
        print(result.get("table", "") if result["done"] else "not all of it: the same call goes on")


@bench_app.command("overload")
def bench_overload(
    model: Model,
    out: Annotated[Path, typer.Option(help="The JSON to write.")],
    parent: Parent = None,
    device: Device = "cpu",
    weights: Weights = None,
    threads: Threads = 0,
    trace: Trace = None,
    texts: Texts = None,
    rows: Rows = 200,
    scale_lengths: Scale = 8,
    load: Prepared = None,
    times: Annotated[float, typer.Option(help="The offered load, in what chunked_fcfs does at most.")] = 5.0,
    seconds: Annotated[float, typer.Option(help="That requests keep coming, for each rate.")] = 30.0,
    http: Annotated[bool, typer.Option("--http", help="Over HTTP as well, from a server of its own.")] = False,
    ttft_factor: TtftFactor = 10.0,
    tpot_factor: TpotFactor = 4.0,
    option: Options = None,
    seed: Seed = 0,
) -> None:
    """Offers far more than the engine can do: goodput against its best, and how long refusals take."""
    from outrider.refactor.atomic import write_file
    from outrider.serve import start
    from outrider.serve.replay import http_overload, overload

    with input_errors():
        _check_out(out)
        _require_more_than_0("outrider bench overload", times=times, seconds=seconds)
        more = start.engine_options("outrider bench overload", option or []) | {"prefix_cache": 0}
        options = start.ServeOptions(model, parent=parent, device=device, weights=weights, threads=threads, engine=more)
        options.check("outrider bench overload")
        start.check_checksums(options)
        plan = overload.Plan(
            open_engine=lambda goal: start.open_engine(_with_goal(options, goal)),
            prepared=_load(options, load, trace, texts, rows, scale_lengths, seed),
            shares=(*overload.SHARES[:-1], times),
            seconds=seconds,
            factors=(ttft_factor, tpot_factor),
            about={**options.machine(), "threads": threads, "options": more},
            say=_say,
        )
        result = overload.overload(plan)
        if http:
            rate = times * result["saturation_requests_per_s"]
            options = _with_goal(options, overload.Goal(**result["goal"]))
            result["http"] = http_overload.measure(options, plan.prepared, rate, seconds)
        with _writing(out):
            write_file(out, json.dumps({"program": "outrider bench overload", **result}, indent=1) + "\n")
        print(json.dumps({**result["verdict"], **({"http": result["http"]} if http else {})}, indent=1))


def _with_goal(options: Any, goal: Any) -> Any:
    """So that the engine refuses what would miss the goal for the first token, and keeps steps within the other."""
    if goal is None:
        return replace(options, policy="chunked_fcfs")
    goals = {"ttft_goal_ms": max(1, round(1000 * goal.ttft_s)), "tpot_goal_ms": max(1, round(1000 * goal.tpot_s))}
    return replace(options, engine=goals | {"end_late_first": 1} | options.engine)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Raises InputError E_DISK where the file cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError("E_DISK", out, "output", error.strerror or str(error), "a file to write") from None


def _check_out(out: Path) -> None:
    """Before anything is measured: that `out` can be written. Raises InputError E_DISK."""
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        trial = out.with_name(out.name + ".tmp")
        trial.touch()
        trial.unlink()


def _check_given(ttft_ms: float | None, tpot_ms: float | None, rates: list[float], policies: list[str]) -> None:
    from outrider.serve.replay import compare

    for name in policies:
        if name not in (*compare.POLICIES, compare.LAYERWISE):
            known = ", ".join((*compare.POLICIES, compare.LAYERWISE))
            raise InputError("E_USAGE", "outrider bench serve", "--policy", name, known)
    if (ttft_ms is None) != (tpot_ms is None):
        raise InputError("E_USAGE", "outrider bench serve", "goals", "one", "--ttft-ms and --tpot-ms, or neither")
    _require_more_than_0("outrider bench serve", ttft_ms=ttft_ms, tpot_ms=tpot_ms)
    for rate in rates:
        _require_more_than_0("outrider bench serve", rate=rate)


def _require_more_than_0(command: str, **options: float | None) -> None:
    for name, value in options.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError("E_USAGE", command, f"--{name.replace('_', '-')}", f"{value:g}", "more than 0")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _of_policy(options: Any, name: str, layer_router: Path | None) -> Any:
    from outrider.serve.replay import compare

    if name != compare.LAYERWISE:
        return replace(options, policy=name)
    if layer_router is None:
        raise InputError("E_USAGE", "outrider bench serve", "policy", name, "--layer-router FILE beside it")
    return replace(options, policy=compare.BASE, layer_router=layer_router, loaded=None)


def _load(options: Any, given: Path | None, trace: Path | None, texts: Path | None, *rest: int) -> Any:
    from outrider.serve import start
    from outrider.serve.replay.load_file import check_fits, read_load

    if given is not None:
        found = read_load(given)
        check_fits(given, found, _info(options))
        return found
    rows, scale, seed = rest
    return _make_load(start.tokenizer_of(options), trace, texts, rows, scale, _info(options)["context"], seed)


def _make_load(
    tokenizer: Any, trace: Path | None, texts: Path | None, rows: int, scale: int, context: int, seed: int
) -> Any:
    from outrider.serve.replay import load
    from outrider.serve.replay import texts as text_source
    from outrider.serve.replay.load_file import Prepared

    source = load.read_trace(trace) if trace else load.poisson(rows, seed)
    scale = scale if trace else 1
    shaped = load.shape(trace.name if trace else "poisson", source, count=rows, scale=scale, context=context, seed=seed)
    load.check_rate(shaped)
    domains = text_source.domain_tokens(texts, lambda text: tokenizer.encode(text, special=False))
    about = {"seed": seed, "scale_lengths": scale, "context": context, "domains": sorted(domains)}
    return Prepared(shaped, text_source.prompts_of(shaped, domains, seed), about)


def _info(options: Any) -> dict[str, Any]:
    """What the engine says of itself: tokens that a text may have, and the size of its vocabulary."""
    from outrider.serve import start

    engine, _ = start.open_engine(options)
    try:
        return engine.info
    finally:
        engine.close()


def results_so_far(out: Path) -> Any:
    """Results that the same call began: what is there is not measured again."""
    if not out.is_file():
        return None
    try:
        return json.loads(out.read_text("utf-8"))
    except ValueError:
        raise InputError("E_READ", out, "results so far", "no JSON", "what `outrider bench serve` wrote") from None


def write_results(out: Path, result: dict[str, Any]) -> None:
    """JSON, and the table beside it."""
    from outrider.refactor.atomic import write_file

    with _writing(out):
        write_file(out, json.dumps({"program": "outrider bench serve", **result}, indent=1) + "\n")
        write_file(out.with_suffix(".md"), result.get("table", ""))


def _write_routes(path: Path, experts: list[list[int]], sha256: str) -> None:
    import numpy
    from safetensors.numpy import save

    from outrider.refactor.atomic import write_file

    begins = numpy.cumsum([0, *map(len, experts)], dtype=numpy.int64)
    ids = numpy.frombuffer(b"".join(map(bytes, experts)), dtype=numpy.uint8)
    write_file(path, save({"experts": ids, "begins": begins}, {"format": "1", "load_sha256": sha256}))
