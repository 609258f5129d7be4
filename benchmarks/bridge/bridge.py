"""The bridge: one imperative MoE decoding step with a layer-wise router, a sync-free grouped GEMM, and pre-gated.

    python benchmarks/bridge/bridge.py --device cpu --shapes tiny --output bridge.json
    python benchmarks/bridge/bridge.py --device cuda --shapes smollm2,llama7b --output docs/results/bridge_h100.json

Each form runs eagerly and under `coexec`; on CUDA the pre-gated form also runs as graphs captured by hand, as the
bound. All sides of a model and batch run in turns, on the same drawn routes. Rows are written as they are measured, and
a run goes on where an interrupted one stopped. README.md beside this file says what is computed and how it is counted.
"""

import argparse
import dataclasses
import gc
import json
import os
import pathlib
import statistics
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "benchmarks/coexec")]

import measure  # noqa: E402
import outrider  # noqa: E402
import torch  # noqa: E402
from bridge_model import SHAPES, Model  # noqa: E402
from bridge_routes import RouteOptions, draw_routes, measured_stay_rate  # noqa: E402
from bridge_sides import Side, coexec_columns  # noqa: E402
from bridge_step import FORMS  # noqa: E402

COLUMNS = (
    "model context batch router mode mixes stay_rate host_syncs cuda_syncs ms ratio_to_eager interval covered_share "
    "fetches"
)
COLUMNS = [
    *COLUMNS.split(),
    "host_ms",
    "runner_ms",
    "outer_share",
    "paths",
    "recorded_steps",
    "diverged_steps",
    "reps",
    "spread",
]
COLUMNS = [*COLUMNS, "bitwise", "same_tokens"]
SYNC_STEPS = 8


def comparison(sides, steps):
    """Runs all sides side by side from their first step; returns (form, mode) -> its exactness columns.

    `bitwise`: the logits of every step equal those of the eager side of the same form. `same_tokens`: share of sampled
    tokens that equal the layer-wise form's; forms differ in their matrix kernels, so that rounding may tip a choice.
    """
    equal = dict.fromkeys(sides, True)
    same, drawn = dict.fromkeys(sides, 0), 0
    for _ in range(steps):
        tokens, logits = {}, {}
        for key, side in sides.items():
            tokens[key] = side.step()
            side.wait()
            side.leave()
            logits[key] = side.decoder.state.logits
        drawn += len(tokens["layerwise", "eager"])
        for form, mode in sides:
            equal[form, mode] &= torch.equal(logits[form, "eager"], logits[form, mode])
            pairs = list(zip(tokens["layerwise", "eager"], tokens[form, mode], strict=True))
            same[form, mode] += sum(a == b for a, b in pairs)
    return {key: {"bitwise": equal[key], "same_tokens": same[key] / drawn} for key in sides}


def make_sides(model, batch, routes, with_graph):
    """(form, mode) -> side, from the same weights and the same first state."""
    keys = [(form, mode) for form in FORMS for mode in ("eager", "coexec")]
    if with_graph and model.device == "cuda":
        keys.append(("pregated", "graph"))
    return {key: Side(*key, model, batch, routes) for key in keys}


def timed_rows(sides, arguments):
    """Blocks of all sides in turns; returns (form, mode) -> (milliseconds per block, rows of coexec's report)."""
    reports = {key: [] for key in sides}

    def block(key):
        outrider.clear()
        elapsed = sides[key].block(arguments.block_steps)
        reports[key] += outrider.report() if key[1] == "coexec" else []
        return elapsed

    turns = {key: lambda key=key: block(key) for key in sides}
    times = measure.interleave(turns, arguments.blocks)
    return {key: (times[key], reports[key]) for key in sides}


def measure_case(model, batch, states, arguments):
    """The rows of one model, batch and kind of routes."""
    outrider.reset()
    options = RouteOptions(model.shape.experts, batch, arguments.route_steps, arguments.stay_rate, states)
    routes = draw_routes(options)
    sides = make_sides(model, batch, routes, with_graph=states > 0)
    exact = comparison(sides, arguments.compare_steps)
    for side in sides.values():
        for _ in range(arguments.warm_up_steps):
            side.step()
        side.wait()
        side.leave()
        side.count_cuda_syncs(SYNC_STEPS)
    measured = timed_rows(sides, arguments)
    rows = []
    for (form, mode), (times, report) in measured.items():
        side = sides[form, mode]
        ratio, low, high = measure.ratio_with_interval(measured[form, "eager"][0], times)
        rows.append(
            {
                "model": model.shape.name,
                "batch": batch,
                "router": form,
                "mode": mode,
                "states": states,
                "context": model.shape.context,
                "mixes": len({tuple(ids) for ids in routes}),
                "stay_rate": measured_stay_rate(routes),
                "host_syncs": side.host_reads,
                "cuda_syncs": side.cuda_syncs,
                "ms": statistics.median(times),
                "ratio_to_eager": None if mode == "eager" else ratio,
                "interval": None if mode == "eager" else [low, high],
                "paths": len(side.decoder.paths),
                "reps": arguments.blocks,
                "block_steps": arguments.block_steps,
                "spread": measure.spread(times),
                **coexec_columns(report),
                **exact[form, mode],
            }
        )
    outrider.reset()
    return rows


def cases(arguments):
    """(shape name, batch, states) of everything asked for; a batch of one has no free routes of its own."""
    for shape in arguments.shapes:
        for batch in arguments.batches:
            for states in arguments.states:
                if states > 0 or batch > 1:
                    yield shape, batch, states


def save(path, result, arguments):
    """Writes the result and the same as a table."""
    measure.save(path, result)
    about = ", ".join(f"{key} {value}" for key, value in result["circumstances"].items())
    text = f"Generated by `benchmarks/bridge/bridge.py`: {about}.\n\n"
    text += measure.markdown_table(result["rows"], COLUMNS)
    text += "\n" + "".join(f"- {note}\n" for note in arguments.note)
    path.with_suffix(".md").write_text(text)


def parse(argv):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def names(text):
        return text.split(",")

    def counts(text):
        return [int(part) for part in text.split(",")]

    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shapes", type=names, default=["tiny"], help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--batches", type=counts, default=[1, 32])
    parser.add_argument("--states", type=counts, default=[8, 0], help="mixes that recur; 0: each row has its own chain")
    parser.add_argument("--context", type=int, default=0, help="tokens of a full cache; 0: those of the shape")
    parser.add_argument("--stay-rate", type=float, default=0.7, help="probability that a chain keeps its state")
    parser.add_argument("--blocks", type=int, default=7, help="interleaved blocks per side, 7 at least")
    parser.add_argument("--block-steps", type=int, default=20)
    parser.add_argument("--warm-up-steps", type=int, default=100, help="per side, before the first block")
    parser.add_argument("--compare-steps", type=int, default=24, help="steps whose logits are compared bit by bit")
    parser.add_argument("--route-steps", type=int, default=512, help="steps after which the drawn routes repeat")
    parser.add_argument("--budget-s", type=float, default=540.0, help="start no case after this many seconds")
    parser.add_argument("--note", action="append", default=[], help="a line below the table")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    arguments = parser.parse_args(argv)
    if arguments.blocks < 7:
        parser.error(f"--blocks: an interval needs 7 blocks at least, got {arguments.blocks}")
    if unknown := [name for name in arguments.shapes if name not in SHAPES]:
        parser.error(f"--shapes: {', '.join(unknown)}; known are {', '.join(SHAPES)}")
    return arguments


def main(argv=None):
    """Measures the cases that the output file does not hold yet, while the time lasts; returns the result."""
    arguments = parse(argv)
    torch.set_num_threads(1)
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32
    started = time.perf_counter()
    result = {"circumstances": measure.circumstances() | {"load": round(os.getloadavg()[0], 2)}, "rows": []}
    if arguments.output.exists():
        result = json.loads(arguments.output.read_text())
    done = {(row["model"], row["batch"], row["states"]) for row in result["rows"]}
    for shape, batch, states in cases(arguments):
        if (shape, batch, states) in done:
            continue
        if time.perf_counter() - started > arguments.budget_s:
            print(f"no time left for {shape}, batch {batch}, states {states}: run again to go on")
            break
        known = SHAPES[shape]
        known = dataclasses.replace(known, context=arguments.context or known.context)
        # Weights of its own for each case: a graph captured by hand keeps their addresses, and coexec copies those.
        for row in measure_case(Model(known, arguments.device, dtype), batch, states, arguments):
            result["rows"].append(row)
            print({name: row.get(name) for name in COLUMNS}, flush=True)
        save(arguments.output, result, arguments)
        gc.collect()
    print(f"{time.perf_counter() - started:.0f} s")
    return result


if __name__ == "__main__":
    main()
