"""What finished rows come to: one line of figures each, losses of every document, intervals against `static`."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import row_tasks
from outrider.refactor.stats.perplexity import DomainLoss, compare, domain_loss
from row_runner import Runner, seconds_of, valid_mean
from row_table import Row

# Nats of a document keep this many decimals; a document has some thousand tokens.
DECIMALS = 3
# What rows that are compared have in common.
SAME = ("preset", "active", "loss", "teacher", "nominal_tokens", "seed", "eval_tokens")
_ABOUT = (
    "Perplexity on held-out text, geometric mean over the tuned domains. *To static* is the ratio of geometric means "
    "to the row `static` of the same preset, active share, tokens, loss and teacher, with a 95 % interval of a paired "
    "bootstrap over documents; below 1 is better. Seconds are those of optimizer steps."
)
_ABOUT_THREE = (
    "Ratio to `static-three`, the best on valid of three published rules (mean |h|, mean |h| times the norm of the "
    "output row, fluctuation with a ratio per layer and a compensating bias), without the coverage mask that `static` "
    "may take:"
)
_ABOUT_MORE = (
    "Ratio to `static+`, one mask that is tuned on as many tokens more as the router of `ours` sees; rows that end in "
    "+ have seen as many tokens as it in all:"
)
# Field of the results -> (the row that others are compared with, what its table says).
FURTHER = {
    "comparisons_to_three": ("static-three", _ABOUT_THREE),
    "comparisons_to_more": ("static+", _ABOUT_MORE),
}
_HEAD = (
    *("preset", "active", "row", "loss", "teacher", "tokens", "router tokens", "teacher tokens", "geometric mean"),
    *("to static", "stays, %", "entropy / log N", "tokens/s", "s", "peak, GB"),
)


def parent_row(parent: dict[str, Any]) -> dict[str, Any]:
    zero = {"tokens": 0, "router_tokens": 0, "teacher_tokens": 0, "nominal_tokens": 0, "seconds": 0.0}
    head = {"id": "parent", "preset": None, "active": 1.0, "row": "parent", "loss": "none", "teacher": None}
    return {**head, **zero, **_losses(parent["test"], parent["unseen"])}


def row_of(runner: Runner, row: Row) -> dict[str, Any]:
    """Figures of one finished row; perplexities are of the test split, and of the text of unseen domains."""
    result = runner.result(row)
    assert result is not None, row.key
    counted, spent, seconds = runner.plan.counted_tokens(row), runner.spent(row), seconds_of(runner.folder(row))
    options = result["options"]
    test = result["eval"]["test"]["refactored"]
    out = {
        "id": runner.plan.identity(row),
        "preset": row.preset,
        "active": row.active,
        "row": row.name,
        "loss": "ce" if options["distill"] == 0 else f"ce + {options['distill']:g} kl",
        "teacher": "dense-cont" if row.distilled else None,
        **counted,
        "nominal_tokens": runner.plan.tokens,
        "seed": options["seed"],
        "rate": options["expert.rate"],
        "eval_tokens": options["eval_tokens"],
        **_losses(test, result["eval"]["unseen"]["refactored"]),
        "valid_ppl_geomean": valid_mean(result),
        **_routes(test),
        "seconds": sum(seconds.values()),
        "wall_seconds": spent["wall_seconds"],
        "tokens_per_s": counted["tokens"] / seconds["expert"] if seconds["expert"] else None,
        "router_tokens_per_s": counted["router_tokens"] / seconds["router"] if seconds["router"] else None,
        "peak_bytes": spent["peak_bytes"],
        "parameters": result["parameters"],
        "router_parameters": result["router_parameters"],
    }
    facts = json.loads((runner.folder(row) / "experts.json").read_text())
    out["live_signatures"] = [layer["live_signatures"] for layer in facts["layers"]] or None
    out["statistic"] = facts["statistic"] or None
    out["frontier"] = [
        {"tau": p["tau"], "stay_rate": p["stay_rate"], "ppl_geomean": _losses(p["domains"], {})["ppl_geomean"]}
        for p in result.get("frontier", [])
    ]
    return out


def _losses(test: dict[str, Any], unseen: dict[str, Any]) -> dict[str, Any]:
    nats = {name: d["nats"] / d["tokens"] for name, d in test.items()}
    return {
        "ppl_by_domain": {name: math.exp(value) for name, value in nats.items()},
        "ppl_unseen": {name: math.exp(d["nats"] / d["tokens"]) for name, d in unseen.items()},
        "ppl_geomean": math.exp(math.fsum(nats.values()) / len(nats)),
    }


def _routes(domains: dict[str, Any]) -> dict[str, Any]:
    """Over all domains; texts are equally long, so that tokens weigh the rates of staying."""
    routed = [d for d in domains.values() if "load" in d]
    if not routed:
        return {"stay_rate": None, "entropy_ratio": None, "load": None, "run_lengths": None}
    load = np.sum([d["load"] for d in routed], axis=0)
    share = load[load > 0] / load.sum()
    entropy = float(-(share * np.log(share)).sum() / np.log(load.size)) if load.size > 1 else 1.0
    stays = math.fsum(d["stay_rate"] * d["tokens"] for d in routed) / sum(d["tokens"] for d in routed)
    longest = max(len(d["run_lengths"]) for d in routed)
    runs = [sum(d["run_lengths"][k] for d in routed if k < len(d["run_lengths"])) for k in range(longest)]
    return {"stay_rate": stays, "entropy_ratio": entropy, "load": load.tolist(), "run_lengths": runs}


def documents_of(test: dict[str, Any], unseen: dict[str, Any]) -> dict[str, Any]:
    """{"test": {domain: [tokens of each document, nats of each]}, "unseen": ...}: what a paired bootstrap needs."""

    def compact(domains: dict[str, Any]) -> dict[str, Any]:
        return {
            name: [[row[1] for row in d["documents"]], [round(row[2], DECIMALS) for row in d["documents"]]]
            for name, d in domains.items()
        }

    return {"test": compact(test), "unseen": compact(unseen)}


def is_rerun(row: dict[str, Any], of: dict[str, Any]) -> bool:
    """Whether both are the same row of the comparison, perhaps with other folders or options."""
    return all(row.get(name) == of.get(name) for name in (*SAME, "row"))


def losses_of(documents: dict[str, Any]) -> dict[str, DomainLoss]:
    """The inverse, of one of the two parts."""
    return {name: domain_loss(nats, tokens) for name, (tokens, nats) in documents.items()}


def compare_all(
    rows: list[dict[str, Any]], documents: dict[str, Any], base_row: str = "static"
) -> list[dict[str, Any]]:
    """Each row against `base_row` of the same preset, active share, budget, loss and teacher: ratios of perplexities
    with 95 % intervals, below 1 better than that row."""
    statics = {tuple(row.get(name) for name in SAME): row for row in rows if row["row"] == base_row}
    found = []
    for row in rows:
        static = statics.get(tuple(row.get(name) for name in SAME))
        if static is None or static is row:
            continue
        entry = {"row": row["id"], "against": static["id"]}
        for part in ("test", "unseen"):
            ours, base = (losses_of(documents[r["id"]][part]) for r in (row, static))
            if ours and base:
                intervals = compare(ours, base, seed=0)
                entry[part] = {name: [i.value, i.low, i.high] for name, i in intervals.items()}
        found.append(entry)
    return found


def add_ratios(rows: list[dict[str, Any]], comparisons: list[dict[str, Any]]) -> None:
    """Gives each compared row the ratio of geometric means and its interval, for tables that hold rows only."""
    found = {entry["row"]: entry["test"]["geometric mean"] for entry in comparisons}
    for row in rows:
        value, low, high = found.get(row["id"], (None, None, None))
        row["to_static"], row["to_static_interval"] = value, None if value is None else [low, high]


def markdown(result: dict[str, Any]) -> str:
    """docs/results text: one table of rows, one of intervals."""
    rows, comparisons = result["rows"], {entry["row"]: entry for entry in result["comparisons"]}
    names = list(rows[0]["ppl_by_domain"]) if rows else []
    unseen = list(rows[0]["ppl_unseen"]) if rows else []
    facts = ", ".join(f"{name} {value}" for name, value in result["circumstances"].items())
    parts = [
        "# Refactoring: rows at matched tokens",
        f"Model {result['model']}; {facts}.",
        _ABOUT,
        _table(
            _HEAD,
            [_line(row, comparisons.get(row["id"])) for row in rows],
        ),
        "Perplexity of each domain:",
        _table(
            ["row", *names, *(f"{name} (unseen)" for name in unseen)],
            [
                [_name(row), *(_number(row["ppl_by_domain"].get(n)) for n in names)]
                + [_number(row["ppl_unseen"].get(n)) for n in unseen]
                for row in rows
            ],
        ),
        "Ratio to `static`, domain by domain:",
        _ratios(rows, result["comparisons"], names, unseen),
    ]
    for field, (_, about) in FURTHER.items():
        if result.get(field):
            parts += [about, _ratios(rows, result[field], ["geometric mean", *names], unseen)]
    if result.get("tasks"):
        parts += ["Task sets, points with one standard error (metric, items):", row_tasks.markdown(result["tasks"])]
    if result.get("sweep"):
        lines = [
            [e["row"], f"{e['rate']:g}", f"{e['tokens']:,}", _number(e["valid_ppl_geomean"], 3)]
            for e in result["sweep"]
        ]
        parts += ["Learning rates, chosen on valid:", _table(["row", "rate", "tokens", "valid"], lines)]
    return "\n\n".join(parts) + "\n"


def _ratios(rows: list[dict[str, Any]], comparisons: list[dict[str, Any]], names: list[str], unseen: list[str]) -> str:
    compared = {entry["row"]: entry for entry in comparisons}
    lines = [
        [_name(row)]
        + [_ratio(compared[row["id"]].get("test", {}).get(n)) for n in names]
        + [_ratio(compared[row["id"]].get("unseen", {}).get(n)) for n in unseen]
        for row in rows
        if row["id"] in compared
    ]
    return _table(["row", *names, *(f"{name} (unseen)" for name in unseen)], lines)


def _name(row: dict[str, Any]) -> str:
    return "parent" if row["preset"] is None else row["id"].rpartition("-")[0]


def _line(row: dict[str, Any], comparison: dict[str, Any] | None) -> list[str]:
    tokens = [f"{row[name]:,}" for name in ("tokens", "router_tokens", "teacher_tokens")]
    peak = row.get("peak_bytes")
    stays = row.get("stay_rate")
    return [
        row["preset"] or "",
        f"{row['active']:.0%}",
        row["row"],
        row["loss"],
        row["teacher"] or "",
        *tokens,
        _number(row["ppl_geomean"], 3),
        _ratio(comparison["test"]["geometric mean"]) if comparison else "",
        "" if stays is None else f"{100 * stays:.1f}",
        _number(row.get("entropy_ratio"), 3),
        "" if row.get("tokens_per_s") is None else f"{row['tokens_per_s']:,.0f}",
        _number(row.get("seconds"), 0),
        "" if peak is None else f"{peak / 1e9:.1f}",
    ]


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _ratio(interval: list[float] | None) -> str:
    return "" if interval is None else "{:.4f} ({:.4f} to {:.4f})".format(*interval)


def _table(head: Sequence[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def dump(result: dict[str, Any]) -> str:
    """JSON with one row, comparison or row's documents a line."""

    def flat(value: Any) -> str:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)

    parts = []
    for name, value in result.items():
        if isinstance(value, list):
            inner = ",\n".join(flat(entry) for entry in value)
            parts.append(f'"{name}":[\n{inner}\n]')
        elif name == "documents":
            inner = ",\n".join(f"{flat(key)}:{flat(entry)}" for key, entry in value.items())
            parts.append(f'"{name}":{{\n{inner}\n}}')
        else:
            parts.append(f'"{name}":{flat(value)}')
    return "{" + ",\n".join(parts) + "}\n"
