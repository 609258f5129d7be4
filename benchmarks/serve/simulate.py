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
from dataclasses import replace
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
BYTES_PER_S, STEP_S = 12e9, 1e-3
TOKEN_S = {"weights are all of the time": 2e-5, "between": 2e-4, "tokens are most of the time": 6e-4}
DECODE, RATE = 32, 1.2
PAGES = 256
LIMITS = {"decode_tokens": DECODE, "age_max": 64, "prompt_hold_max": 16}


def routed(core: Any, artifact: Path, parent: Path, rows: list[load.Row], ids: list[list[int]]) -> dict[str, Any]:
    """What the simulator takes: arrivals with experts, bytes of sets, and how alike the masks are."""
    passes = core.CpuPasses(str(artifact), str(parent), "int8", 2, 0, PAGES, PAGES)
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
    *,
    token_s: float,
    running: int,
    limits: dict[str, int],
) -> dict[str, float]:
    run = core.simulate_serving(
        arrivals,
        model["experts"],
        model["ffn_bytes"],
        model["fixed_bytes"],
        BYTES_PER_S,
        token_s,
        STEP_S,
        running,
        policy,
        limits,
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


def cases(core: Any, model: dict[str, Any]) -> list[dict[str, Any]]:
    """By machine, chunk and requests at once: every policy at RATE times what FCFS keeps up with."""
    out = []
    arrivals = model["arrivals"]
    own = (len(arrivals) - 1) / arrivals[-1][0]
    for machine, token_s in TOKEN_S.items():
        for chunk, running in ((512, 32), (512, 64), (512, 256), (128, 64)):
            limits = LIMITS | {"prefill_tokens": chunk}
            setting: dict[str, Any] = {"token_s": token_s, "running": running, "limits": limits}
            at_once = [(0.0, *rest) for _, *rest in arrivals]
            rate = RATE * simulate(core, model, at_once, "chunked_fcfs", **setting)["requests_per_s"]
            due = [(time_s * own / rate, *rest) for time_s, *rest in arrivals]
            rows = {policy: simulate(core, model, due, policy, **setting) for policy in POLICIES}
            free = setting | {"limits": limits | {"prompt_hold_max": 0}}
            rows["outrider, prompts not held"] = simulate(core, model, due, "outrider", **free)
            out.append(
                {"machine": machine, "token_ms": 1000 * token_s, "chunk": chunk, "running": running, "rows": rows}
            )
    return out


def table(found: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| machine | chunk | at once | policy | MB/token | mean latency s | p95 | TTFT s | experts/step | steps "
        "without prompts |"
    ]
    lines.append("| --- | ---: | ---: | --- |" + " ---: |" * 6)
    for case in found:
        for policy, row in case["rows"].items():
            numbers = [f"{row['mb_per_token']:.3f}", f"{row['latency_s_mean']:.3f}", f"{row['latency_s_p95']:.3f}"]
            numbers += [f"{row['ttft_s_mean']:.3f}", f"{row['experts_per_step']:.2f}"]
            numbers.append(f"{row['steps_without_prompts']} of {row['steps']}")
            head = f"| {case['machine']} | {case['chunk']} | {case['running']} | {policy} | "
            lines.append(head + " | ".join(numbers) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("artifacts", nargs="+", help="NAME=FOLDER")
    parser.add_argument("--parent", type=Path, required=True)
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--scale-lengths", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="without suffix: .json and .md are written")
    given = parser.parse_args()
    core, tokenizer = _runtime.core(), ServeTokenizer(given.parent)
    shaped = load.shape(
        given.trace.name,
        load.read_trace(given.trace),
        count=given.rows,
        scale=given.scale_lengths,
        context=2048,
        seed=given.seed,
    )
    whole = [replace(row, prompt_tokens=row.prompt_tokens + row.written_tokens) for row in shaped.rows]
    domains = texts.domain_tokens(given.texts, lambda text: tokenizer.encode(text, special=False))
    ids = texts.prompts_of(load.Load(shaped.name, whole), domains, given.seed)
    about = {"trace": shaped.name, "rows": len(whole), "scale_lengths": given.scale_lengths, "seed": given.seed}
    about |= {"rate": RATE, "decode_tokens": DECODE, "bytes_per_s": BYTES_PER_S, "step_s": STEP_S}
    result: dict[str, Any] = {"circumstances": circumstances(), "about": about, "models": {}}
    lines = ["# Serving, simulated", "", "Written by `benchmarks/serve/simulate.py`: " + str(about) + ".", ""]
    lines.append(
        "A step takes 1 ms, its bytes at 12 GB/s, and the time of its tokens. `bytes_of_n_experts`: share of all "
        "weights that a step of 1, 2, ... experts reads, the mean over sets."
    )
    for name, _, folder in (one.partition("=") for one in given.artifacts):
        model = routed(core, Path(folder), given.parent, shaped.rows, ids)
        found = cases(core, model)
        result["models"][name] = model["about"] | {"cases": found}
        lines += ["", f"## {name}", "", str(model["about"]), "", *table(found)]
    write_file(given.out.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    write_file(given.out.with_suffix(".md"), "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
