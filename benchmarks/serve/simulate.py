"""What limits batching by experts: real routes and masks, on machines whose speed is a formula (src/sched/simulate.h).

PYTHONPATH=python python benchmarks/serve/simulate.py NAME=ARTIFACT ... --parent MODEL --trace TRACE --texts FOLDER \
    --out docs/results/serve_simulated

Prompts and outputs are real text of the trace's lengths, routed by the artifact's own router. Nothing is timed, so the
same call gives the same figures everywhere.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from outrider import _runtime
from outrider.refactor.atomic import write_file
from outrider.serve.replay import load, texts
from outrider.serve.tokens import ServeTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coexec"))

from measure import circumstances

POLICIES = ("chunked_fcfs", "decode_first", "prefill_first", "readme_greedy", "outrider")
DECODE = 32
PAGES, WHOLE_CONTEXT = 512, 8192
LIMITS = {"decode_tokens": DECODE, "age_max": 64, "prompt_hold_max": 16}


@dataclass(frozen=True)
class Machine:
    """Seconds as in sched::Machine; with `weights_s`, that is what reading all weights takes."""

    name: str
    seconds: dict[str, float]
    settings: tuple[tuple[int, int], ...] = ((512, 32), (512, 64), (512, 256), (128, 64))  # chunk, requests at once
    rates: tuple[float, ...] = (1.2,)  # of what first come, first served keeps up with
    whole: bool = False  # texts have the trace's own lengths


def on_cores(name: str, token_s: float) -> Machine:
    return Machine(name, {"step_s": 1e-3, "bytes_per_s": 12e9, "token_s": token_s})


# The last one has the costs that were fitted to runs of 7B shapes (docs/design/0011-serving-engine.md).
MACHINES = (
    on_cores("weights are all of the time", 2e-5),
    on_cores("between", 2e-4),
    on_cores("tokens are most of the time", 6e-4),
    Machine(
        "prompts have passes of their own",
        {
            "weights_s": 3e-3,
            "prompt_pass_s": 9.4e-3,
            "token_s": 1.15e-5,
            "text_s": 1e-4,
            "context_token_s": 1.9e-7,
        },
        ((512, 64),),
        (0.3, 0.9, 1.2),
        True,
    ),
)


def routed(core: Any, artifact: Path, parent: Path, rows: list[load.Row], ids: list[list[int]]) -> dict[str, Any]:
    """What the simulator takes: arrivals with experts, bytes of sets, and how alike the masks are."""
    parent_of = str(parent) if (artifact / "outrider_adapter.safetensors").exists() else ""
    passes = core.CpuPasses(str(artifact), parent_of, "int8", 2, 0, PAGES, PAGES)
    experts = passes.shape["experts"]
    pages = np.arange(PAGES, dtype=np.int32)
    routes = [np.asarray(passes.route([core.CpuRoute(np.array(one, np.int32), 0, pages)])) for one in ids]
    table = [0, *(passes.ffn_bytes(one) for one in range(1, 1 << experts))]
    flat = np.concatenate(routes)
    by_count = [[table[s] for s in range(1 << experts) if s.bit_count() == n] for n in range(1, experts + 1)]
    return {
        "arrivals": [
            (row.arrival_s, row.prompt_tokens, row.written_tokens, r) for row, r in zip(rows, routes, strict=True)
        ],
        "experts": experts,
        "ffn_bytes": table,
        "fixed_bytes": passes.fixed_bytes,
        "about": {
            "expert_load": (np.bincount(flat, minlength=experts) / len(flat)).round(3).tolist(),
            "stay_rate": round(float(np.mean([np.mean(r[1:] == r[:-1]) for r in routes if len(r) > 1])), 3),
            "bytes_of_n_experts": [
                round((passes.fixed_bytes + sum(v) / len(v)) / (passes.fixed_bytes + table[-1]), 3) for v in by_count
            ],
        },
    }


def simulate(
    core: Any,
    model: dict[str, Any],
    arrivals: list[Any],
    policy: str,
    machine: dict[str, float],
    running: int,
    **limits,
) -> dict[str, float]:
    run = core.simulate_serving(
        arrivals,
        model["experts"],
        model["ffn_bytes"],
        model["fixed_bytes"],
        machine,
        running,
        policy,
        LIMITS | limits,
    )
    latency = sorted(run["latency_s"])
    return {
        "mb_per_token": run["weight_bytes"] / run["tokens"] / 1e6,
        "latency_s_mean": sum(latency) / len(latency),
        "latency_s_p95": latency[math.ceil(0.95 * len(latency)) - 1],
        "ttft_s_mean": sum(run["ttft_s"]) / len(latency),
        "experts_per_step": run["distinct_experts_per_step"],
        "steps": run["steps"],
        "steps_without_prompts": run["steps_without_prompts"],
        "passed_over_max": run["passed_over_max"],
        "requests_per_s": len(latency) / run["seconds"],
    }


def cases(core: Any, model: dict[str, Any], machine: Machine) -> Iterator[dict[str, Any]]:
    """By chunk, requests at once and rate: every policy."""
    arrivals = model["arrivals"]
    own = (len(arrivals) - 1) / arrivals[-1][0]
    seconds = dict(machine.seconds)
    if "weights_s" in seconds:
        seconds["bytes_per_s"] = (model["fixed_bytes"] + model["ffn_bytes"][-1]) / seconds.pop("weights_s")
    for chunk, running in machine.settings:
        of = lambda due, policy, c=chunk, r=running, **more: simulate(  # noqa: E731
            core, model, due, policy, seconds, r, prefill_tokens=c, **more
        )
        most = of([(0.0, *rest) for _, *rest in arrivals], "chunked_fcfs")["requests_per_s"]
        for rate in machine.rates:
            due = [(time_s * own / (rate * most), *rest) for time_s, *rest in arrivals]
            rows = {policy: of(due, policy) for policy in POLICIES}
            rows["outrider, prompts not held"] = of(due, "outrider", prompt_hold_max=0)
            about = {"machine": machine.name, "chunk": chunk, "running": running, "rate": rate}
            yield about | {"requests_per_s_at_most": most, "rows": rows}


def table(found: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| machine | chunk | at once | rate | policy | MB/token | mean latency s | p95 | TTFT s | experts/step | steps "
        "without prompts |"
    ]
    lines.append("| --- | ---: | ---: | ---: | --- |" + " ---: |" * 6)
    for case in found:
        for policy, row in case["rows"].items():
            numbers = [f"{row['mb_per_token']:.3f}", f"{row['latency_s_mean']:.3f}", f"{row['latency_s_p95']:.3f}"]
            numbers += [f"{row['ttft_s_mean']:.3f}", f"{row['experts_per_step']:.2f}"]
            numbers.append(f"{row['steps_without_prompts']} of {row['steps']}")
            head = f"| {case['machine']} | {case['chunk']} | {case['running']} | {case['rate']} | {policy} | "
            lines.append(head + " | ".join(numbers) + " |")
    return lines


def loads(given: argparse.Namespace, tokenizer: ServeTokenizer) -> dict[bool, tuple[list[load.Row], list[list[int]]]]:
    """Rows and the ids of their prompts and outputs, of the trace's own lengths (True) and of shorter ones."""
    trace = list(load.read_trace(given.trace))
    domains = texts.domain_tokens(given.texts, lambda text: tokenizer.encode(text, special=False))
    found = {}
    for whole in (False, True):
        scale, context = (1, WHOLE_CONTEXT) if whole else (given.scale_lengths, 2048)
        rows = given.whole_rows if whole else given.rows
        shaped = load.shape(given.trace.name, trace, count=rows, scale=scale, context=context, seed=given.seed)
        both = [replace(row, prompt_tokens=row.prompt_tokens + row.written_tokens) for row in shaped.rows]
        found[whole] = shaped.rows, texts.prompts_of(load.Load(shaped.name, both), domains, given.seed)
    return found


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser()
    out.add_argument("artifacts", nargs="+", help="NAME=FOLDER")
    out.add_argument("--parent", type=Path, required=True)
    out.add_argument("--trace", type=Path, required=True)
    out.add_argument("--texts", type=Path, required=True)
    out.add_argument("--rows", type=int, default=400)
    out.add_argument("--scale-lengths", type=int, default=8)
    out.add_argument("--whole-rows", type=int, default=200, help="of the trace's own lengths")
    out.add_argument("--seed", type=int, default=0)
    out.add_argument("--out", type=Path, required=True, help="without suffix: .json and .md are written")
    return out


def main() -> None:
    given = parser().parse_args()
    core = _runtime.core()
    prepared = loads(given, ServeTokenizer(given.parent))
    about = {"trace": given.trace.name, "rows": given.rows, "scale_lengths": given.scale_lengths}
    about |= {"whole_rows": given.whole_rows, "seed": given.seed, "decode_tokens": DECODE}
    about["machines"] = {machine.name: machine.seconds for machine in MACHINES}
    result: dict[str, Any] = {"circumstances": circumstances(), "about": about, "models": {}}
    lines = ["# Serving, simulated", "", "Written by `benchmarks/serve/simulate.py`: " + str(about) + ".", ""]
    lines.append(
        "Rates are shares of what first come, first served keeps up with. `bytes_of_n_experts`: share of all weights "
        "that a step of 1, 2, ... experts reads, the mean over sets."
    )
    for name, _, folder in (one.partition("=") for one in given.artifacts):
        models = {whole: routed(core, Path(folder), given.parent, *of) for whole, of in prepared.items()}
        found = [case for machine in MACHINES for case in cases(core, models[machine.whole], machine)]
        result["models"][name] = models[False]["about"] | {"cases": found}
        lines += ["", f"## {name}", "", str(models[False]["about"]), "", *table(found)]
    write_file(given.out.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    write_file(given.out.with_suffix(".md"), "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
