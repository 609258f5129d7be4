"""From the JSON of single replays to one report."""

from typing import Any

from outrider.serve.replay.figures import markdown

OURS, BASE = "outrider", "chunked_fcfs"
FIGURES = {  # name -> title; less is better
    "weight_bytes_per_token": "weight bytes per token",
    "latency_s_mean": "mean latency",
    "latency_s_p95": "p95 latency",
    "ttft_s_mean": "mean TTFT",
    "tpot_s_mean": "mean time per token",
}


def report(found: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """The whole as JSON, and as Markdown."""
    loads = {name: one for name, one in found.items() if one["program"] == "outrider bench serve"}
    crowds = {name: one for name, one in found.items() if one["program"] == "outrider bench overload"}
    lines = ["# Serving: policies on recorded loads", "", _circumstances(found), ""]
    lines += [_INTRODUCTION, ""]
    comparisons = {name: compared(one["summary"]) for name, one in loads.items()}
    lines += _comparison_table(comparisons)
    for name, one in loads.items():
        lines += ["", f"## {name}", "", _about(one), *_model(one), "", markdown(one["summary"]).rstrip()]
    for name, one in crowds.items():
        lines += ["", f"## {name}", "", *_overload(one)]
    whole = {
        "loads": {name: _kept(one) | {"compared": comparisons[name]} for name, one in loads.items()},
        "overloads": {name: _kept(one) for name, one in crowds.items()},
    }
    return whole, "\n".join(lines) + "\n"


_INTRODUCTION = (
    "Written by `benchmarks/serve/replay.py merge` or `gpu_replay.py`. Tables have medians over repetitions, the JSON "
    "also lowest and highest. Policies took turns in one process, each run with a fresh engine. Goodput is tokens per "
    "second of requests that kept both goals, which are multiples of what a request has alone. The rate is a share of "
    "what `chunked_fcfs` finishes at most. `layerwise` is the same model with a router in every layer, scheduled "
    "as `chunked_fcfs`: it writes other texts of the same lengths."
)


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By rate: ours against the best of the other policies on the same model, and against BASE."""
    out = []
    for share in sorted({row["rate_share"] for row in rows}):
        at = {row["policy"]: row for row in rows if row["rate_share"] == share}
        if OURS not in at:
            continue
        others = {name: row for name, row in at.items() if name not in (OURS, "layerwise")}
        one: dict[str, Any] = {"rate_share": share}
        for figure in FIGURES:
            mine = at[OURS].get(figure, {}).get("median")
            values = {name: row[figure]["median"] for name, row in others.items() if figure in row}
            if not mine or not values:
                continue
            best = min(values, key=lambda name: values[name])
            one[figure] = {"best_other": best, "to_best_other": mine / values[best] - 1}
            if BASE in values:
                one[figure]["to_base"] = mine / values[BASE] - 1
        out.append(one)
    return out


def _comparison_table(comparisons: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [
        f"`{OURS}` against the best other policy of each column (in brackets) and against `{BASE}`, in percent:",
        "",
    ]
    lines += ["| load | rate | " + " | ".join(FIGURES.values()) + " |", "| --- | --- |" + " --- |" * len(FIGURES)]
    for name, rows in comparisons.items():
        for row in rows:
            cells = [_cell(row.get(figure)) for figure in FIGURES]
            lines.append(f"| {name} | {row['rate_share']:g} | " + " | ".join(cells) + " |")
    return lines


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    base = f", {100 * found['to_base']:+.1f}" if "to_base" in found else ""
    return f"{100 * found['to_best_other']:+.1f} ({found['best_other']}){base}"


def _circumstances(found: dict[str, dict[str, Any]]) -> str:
    """Of each, where they are not those of all."""
    texts = {}
    for name, one in found.items():
        texts[name] = ", ".join(f"{key} {value}" for key, value in one.get("circumstances", {}).items())
    if len(set(texts.values())) == 1:
        return next(iter(texts.values())) + "."
    return "; ".join(f"{name}: {text or 'not recorded'}" for name, text in texts.items()) + "."


def _about(one: dict[str, Any]) -> str:
    load, about, alone = one["load"], one["about"], one["alone"]
    rows = ", ".join(f"{count} at {share}" for share, count in one.get("rows_at", {}).items())
    text = f"{load['rows']} requests of {load['name']} ({rows}), {load['prompt_tokens']} prompt and "
    text += (
        f"{load['written_tokens']} written tokens, lengths / {load.get('scale_lengths', 1)}, seed {load.get('seed')}, "
    )
    text += (
        f"{load['dropped']} rows of the trace left out as too long; {about['weights']}, {about['threads']} threads, "
    )
    text += f"temperature {about.get('temperature', 0):g}, "
    text += f"{about['options']}. Saturation {one['saturation_requests_per_s']:.2f} requests/s. Goals: first token "
    text += (
        f"{one['goal']['ttft_s']:.2f} s ({alone['ttft_factor']:g} x p95 alone), then {one['goal']['tpot_s']:.3f} s a "
    )
    text += f"token ({alone['tpot_factor']:g} x alone). {max(row['repetitions'] for row in one['summary'])} repetitions"
    text += ", complete." if one["done"] else ", NOT complete."
    return text + ("" if one["texts_equal"] else " THE POLICIES WROTE DIFFERENT TEXTS.")


def _model(one: dict[str, Any]) -> list[str]:
    """What a shape model is (gpu_replay.py), and what part of a step is not the executor."""
    if "model" not in one:
        return []
    model = one["model"]
    text = f"A shape model: random weights of width {model['d']}, {model['ffn']} channels, {model['layers']} layers, "
    text += f"{model['vocab']} entries; masks resampled from those of {model['of']} ({100 * model['share']:.0f} % of "
    text += f"the channels per expert, {100 * model['overlap']:.0f} % of them shared with another), routes by its "
    text += "router over real text, prompts and what is written. Of the time in steps"
    shares = {name: _share(one["runs"], name) for name in ("router_s", "policy_s", "host_s")}
    return ["", text + "".join(f", {100 * share:.1f} % {name[:-2]}" for name, share in shares.items()) + "."]


def _share(runs: list[dict[str, Any]], name: str) -> float:
    parts = ("executor_s", "router_s", "policy_s", "host_s")
    whole = sum(one["counts"][part] for one in runs for part in parts)
    return sum(one["counts"][name] for one in runs) / whole if whole else 0.0


def _overload(one: dict[str, Any]) -> list[str]:
    verdict, http = one["verdict"], one.get("http")
    lines = ["| rate | goodput tok/s | kept % | refused | ended late | of requests | refusal p99 ms |"]
    lines.append("| --- |" + " ---: |" * 6)
    for row in one["shares"]:
        late = "-" if row["refused_s_p99"] is None else f"{1000 * row['refused_s_p99']:.2f}"
        cells = [f"{row['goodput_tokens_per_s']:.1f}", f"{100 * row['kept_share']:.1f}", f"{row['rejected']}"]
        cells.append(f"{row.get('ended_late', 0)}")
        lines.append(f"| {row['rate_share']:g} | " + " | ".join([*cells, f"{row['requests']}", late]) + " |")
    share = verdict["kept_of_peak"]
    lines += ["", f"At the highest rate {100 * share:.1f} % of the best goodput." if share is not None else ""]
    if http:
        late = "none" if http["refused_s_p99"] is None else f"{1000 * http['refused_s_p99']:.1f} ms"
        lines.append(f"Over HTTP: {http['refused']} of {http['requests']} refused, from request to 429 p99 {late}.")
    return lines


def _kept(one: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in one.items() if name not in ("runs", "table", "experts")}
