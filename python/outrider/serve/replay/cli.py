"""`outrider bench serve`: policies against each other on one recorded load."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from outrider.refactor.cli import input_errors
from outrider.refactor.errors import InputError

bench_app = typer.Typer(help="Measurements on this machine.", no_args_is_help=True)


@bench_app.callback()
def _bench() -> None:
    """Measurements on this machine."""


@bench_app.command("serve")
def bench_serve(
    model: Annotated[Path, typer.Argument(help="A model folder, refactored or dense.")],
    out: Annotated[Path, typer.Option(help="The JSON to write; a table goes beside it, as .md.")],
    parent: Annotated[Path | None, typer.Option(help="The parent of a folder without weights.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    weights: Annotated[str | None, typer.Option(help="As of `outrider serve`.")] = None,
    threads: Annotated[int, typer.Option(help="On the CPU; 0: one per core.", min=0)] = 0,
    trace: Annotated[Path | None, typer.Option(help="Arrivals and lengths; without it, a seeded Poisson load.")] = None,
    texts: Annotated[Path | None, typer.Option(help="Folder of texts; without it, Python's own sources.")] = None,
    rows: Annotated[int, typer.Option(help="Requests to replay.", min=2)] = 200,
    scale_lengths: Annotated[int, typer.Option(help="Divides the lengths of a trace.", min=1)] = 8,
    policy: Annotated[list[str] | None, typer.Option(help="Only this policy; may be repeated.")] = None,
    rate: Annotated[list[float] | None, typer.Option(help="Share of what chunked_fcfs does; may be repeated.")] = None,
    repetitions: Annotated[int, typer.Option(help="Interleaved.", min=1)] = 3,
    ttft_ms: Annotated[float | None, typer.Option(help="Goal; both or none. Default: from requests alone.")] = None,
    tpot_ms: Annotated[float | None, typer.Option(help="Goal for the time per token.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Further options of the engine, as NAME=VALUE.")] = None,
    routes: Annotated[Path | None, typer.Option(help="Also write the experts of all tokens: .safetensors.")] = None,
    seed: Annotated[int, typer.Option(help="Of load and texts.", min=0)] = 0,
) -> None:
    """Replays one load through an engine per policy, and writes goodput, latency and bytes."""
    from outrider.serve import start
    from outrider.serve.replay import compare, load
    from outrider.serve.replay import texts as text_source
    from outrider.serve.replay.figures import Goal

    with input_errors():
        if (ttft_ms is None) != (tpot_ms is None):
            raise InputError("E_USAGE", "outrider bench serve", "goals", "one", "--ttft-ms and --tpot-ms, or neither")
        more = start.engine_options("outrider bench serve", option or [])
        options = start.ServeOptions(model, parent=parent, device=device, weights=weights, threads=threads, engine=more)
        options.check("outrider bench serve")
        tokenizer = start.read_inputs(options).tokenizer
        info = _info(options)
        source = load.read_trace(trace) if trace else load.poisson(rows, seed)
        scale = scale_lengths if trace else 1
        shaped = load.shape(
            trace.name if trace else "poisson", source, count=rows, scale=scale, context=info["context"]
        )
        domains = text_source.domain_tokens(texts, lambda text: tokenizer.encode(text, special=False))
        plan = compare.Plan(
            open_engine=lambda name: start.open_engine(replace(options, policy=name)),
            load=shaped,
            prompts=text_source.prompts_of(shaped, domains, seed),
            policies=tuple(policy or compare.POLICIES),
            rates=tuple(rate or compare.RATES),
            repetitions=repetitions,
            goal=Goal(ttft_ms / 1000, tpot_ms / 1000) if ttft_ms and tpot_ms else None,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
        result = compare.compare(plan)
        about = {"model": str(model), "device": info["device"], "weights": info["weight_format"], "threads": threads}
        about |= {"seed": seed, "scale_lengths": scale, "options": more}
        _write(out, about, result, routes)
        print(result["table"], end="")


def _info(options: Any) -> dict[str, Any]:
    """What an engine with these options says about itself."""
    from outrider.serve import start

    engine, _ = start.open_engine(options)
    try:
        return engine.info
    finally:
        engine.close()


def _write(out: Path, about: dict[str, Any], result: dict[str, Any], routes: Path | None) -> None:
    """JSON, the table beside it, and the experts of each request's tokens where a file is named."""
    from outrider.refactor.atomic import write_file

    experts = result.pop("experts")
    rest = {name: value for name, value in result.items() if name != "table"}
    write_file(out, json.dumps({"program": "outrider bench serve", **about, **rest}, indent=1) + "\n")
    write_file(out.with_suffix(".md"), result["table"])
    if routes:
        import numpy
        from safetensors.numpy import save

        begins = numpy.cumsum([0, *map(len, experts)], dtype=numpy.int64)
        ids = numpy.frombuffer(b"".join(map(bytes, experts)), dtype=numpy.uint8)
        metadata = {"format": "1", "model": about["model"], "load_sha256": result["load"]["sha256"]}
        write_file(routes, save({"experts": ids, "begins": begins}, metadata))
