"""quality_card.md: tables for people, from the JSON and nothing else."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

PICTURE_NAME = "quality_card.png"

WARNING = (
    "**The model files alone are not this model.** They hold all channels, and a program that loads them without "
    "Outrider runs every channel for every token, which is a different function with other results. Serve them with "
    "Outrider, or call `outrider.hf.apply(model, DIR)` in HF transformers."
)
_TASK_NOTE = (
    "Scores are percent with their standard error; `perplexity` is of the last word. HellaSwag and ARC-Challenge take "
    "their examples from items left out of scoring. There is no LogiQA and no CoQA here, so no average of these tasks "
    "may stand beside a published average of seven. At this size MMLU can be near chance (25)."
)
# The metric that the harness reports first for a task.
_FIRST_METRICS = ("acc_norm", "acc", "perplexity")


def render(card: dict[str, Any]) -> str:
    """Markdown of a checked card; the same card gives the same text."""
    parts = [f"# Quality card: {card['title']}", WARNING, f"![perplexity, load and run lengths]({PICTURE_NAME})"]
    parts += _perplexity(card) + _cost(card) + _loss_details(card, "domains", "Text of the domains")
    parts += _loss_details(card, "unseen", "Text of no domain") + _tasks(card) + _model(card) + _routing(card)
    parts += _masks(card) + _curve(card) + _environment(card)
    return "\n\n".join(parts) + "\n"


def geometric_mean(losses: dict[str, dict[str, Any]]) -> float | None:
    """Of the perplexities of one row; None without domains."""
    if not losses:
        return None
    return math.exp(math.fsum(loss["nats"] for loss in losses.values()) / len(losses))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}"


def _ratio(interval: dict[str, float] | None) -> str:
    if interval is None:
        return ""
    return f"{interval['value']:.4f} ({interval['low']:.4f} to {interval['high']:.4f})"


def _perplexity(card: dict[str, Any]) -> list[str]:
    names = list(card["rows"][0]["domains"])
    if not names:
        return []
    rows = [
        [
            row["name"],
            *(_number(math.exp(row["domains"][name]["nats"])) for name in names),
            _number(geometric_mean(row["domains"])),
            _ratio((row.get("against_static") or {}).get("geometric mean")),
        ]
        for row in card["rows"]
    ]
    text = "Perplexity on held-out text. The last column is the ratio to `static` of the geometric means, with a 95 % "
    text += "interval of a paired bootstrap over documents; below 1 is better than `static`."
    return ["## Perplexity", text, table(["row", *names, "geometric mean", "to static"], rows), *_against_static(card)]


def _against_static(card: dict[str, Any]) -> list[str]:
    names = list(card["rows"][0]["domains"])
    rows = [
        [row["name"], *(_ratio(row["against_static"].get(name)) for name in names)]
        for row in card["rows"]
        if row.get("against_static")
    ]
    return [table(["to static", *names], rows)] if rows else []


def _cost(card: dict[str, Any]) -> list[str]:
    rows = [
        [
            row["name"],
            _percent(row["active"], 0),
            row["loss"],
            row.get("teacher") or "",
            *(f"{row['tokens'][kind]:,}" for kind in ("tuning", "router", "teacher")),
            _number(row["seconds"], 0),
            ", ".join(map(str, row["seeds"])),
        ]
        for row in card["rows"]
    ]
    head = ["row", "active FFN, %", "loss", "teacher", "tuning tokens", "router tokens", "teacher tokens", "s", "seeds"]
    notes = [f"* `{row['name']}`: {row['note']}" for row in card["rows"] if row.get("note")]
    return ["## What each row cost", table(head, rows), *(["\n".join(notes)] if notes else [])]


def _loss_details(card: dict[str, Any], part: str, title: str) -> list[str]:
    names = list(card["rows"][0][part])
    if not names:
        return []
    rows = [
        [
            row["name"],
            *(
                _number(row[part][name]["nats"], 4) + _in_brackets(row[part][name].get("bits_per_byte"))
                for name in names
            ),
        ]
        for row in card["rows"]
    ]
    tokens = [f"{card['rows'][0][part][name]['tokens']:,}" for name in names]
    text = "Nats per token (bits per byte)."
    return [f"## {title}", text, table(["row", *names], [*rows, ["tokens scored", *tokens]])]


def _in_brackets(bits: float | None) -> str:
    return "" if bits is None else f" ({bits:.4f})"


def _tasks(card: dict[str, Any]) -> list[str]:
    names = list(dict.fromkeys(name for row in card["rows"] for name in row["tasks"]))
    if not names:
        return []
    metrics = {name: first_metric(card, name) for name in names}
    rows = []
    for row in card["rows"]:
        scores = (row["tasks"].get(name, {}).get(metric) for name, metric in metrics.items())
        cells = [_score(score, metric) for score, metric in zip(scores, metrics.values(), strict=True)]
        rows.append([row["name"], *cells])
    head = ["row", *(f"{name}, {metric}" for name, metric in metrics.items())]
    parts = ["## Tasks", _TASK_NOTE, table(head, rows)]
    differences = [
        [
            row["name"],
            *(_difference((row["tasks_against_static"].get(name) or {}).get(m), m) for name, m in metrics.items()),
        ]
        for row in card["rows"]
        if row.get("tasks_against_static")
    ]
    if differences:
        parts += ["Points above `static` (perplexity: ratio), with 95 % intervals.", table(head, differences)]
    return parts


def first_metric(card: dict[str, Any], name: str) -> str:
    """The metric of a task that comes first in tables, of those that the rows have."""
    found = {metric for row in card["rows"] for metric in row["tasks"].get(name, {})}
    return next((metric for metric in _FIRST_METRICS if metric in found), min(found, default=""))


def _score(score: dict[str, Any] | None, metric: str) -> str:
    if score is None:
        return ""
    scale = 1 if metric == "perplexity" else 100
    return f"{scale * score['value']:.2f} ± {scale * score['stderr']:.2f}"


def _difference(interval: dict[str, float] | None, metric: str) -> str:
    if interval is None or metric == "perplexity":
        return _ratio(interval)
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * interval[key] for key in ("value", "low", "high")))


def _model(card: dict[str, Any]) -> list[str]:
    parent, experts, router, sizes = (card[key] for key in ("parent", "experts", "router", "sizes"))
    ratio = sizes["artifact_bytes"] / sizes["dense_bytes"] if sizes["dense_bytes"] else 0.0
    channels = experts["channels_per_layer"]
    low, high = min(channels, default=0), max(channels, default=0)
    spread = f"{low}" if low == high else f"{low} to {high}"
    whole = f"{experts['channels']:,}, " if "channels" in experts else ""  # cards of earlier versions do not say it
    facts = [
        ("parent", f"{parent['name']}, {parent['parameters']:,} parameters"),
        ("parent sha256", f"`{parent['sha256']}`"),
        ("experts", f"{experts['count']}: {', '.join(experts['names'])}"),
        ("channels of an expert", f"{whole}at most {spread} in each of {len(channels)} layers"),
        ("selection", experts["selection"]),
        ("hysteresis tau, nats", f"{experts['tau']:g}"),
        ("router", f"{router['width']} {router['embed']} {router['scale']}, {router['parameters']:,} parameters"),
        ("router attention", "on" if router["attention"] else "off"),
        ("router loss", router["loss"]),
        ("active parameters", f"{sizes['active_parameters']:,}"),
        ("artifact, bytes", f"{sizes['artifact_bytes']:,} ({ratio:.3f} of the dense model)"),
        ("router and masks, bytes", f"{sizes['router_bytes']:,} and {sizes['masks_bytes']:,}"),
    ]
    return ["## The model", "\n".join(f"* {name}: {value}" for name, value in facts)]


def _routing(card: dict[str, Any]) -> list[str]:
    routing = card.get("routing")
    if not routing:
        return []
    head = ["text", "entropy / log N", "max / min load", "stays, %", "run, mean", "run, p50", "run, p90", "load, %"]
    rows = [_use(name, use) for name, use in {"all": routing["all"], **routing["domains"]}.items()]
    parts = ["## Routing", table(head, rows)]
    if routing.get("domain_agreement") is not None:
        parts.append(f"Tokens whose expert is their document's domain: {_percent(routing['domain_agreement'])} %.")
    histogram = ", ".join(f"{2**k}: {count:,}" for k, count in enumerate(routing["all"]["run_histogram"]))
    return [*parts, f"Runs by length (from this length on): {histogram}."]


def _use(name: str, use: dict[str, Any]) -> list[str]:
    total = sum(use["load"]) or 1
    load = " ".join(_percent(count / total, 0) for count in use["load"])
    imbalance = "never used" if use.get("imbalance") is None else _number(use["imbalance"])
    runs = (_number(use["run_mean"]), str(use["run_p50"]), str(use["run_p90"]))
    return [name, _number(use["entropy"], 3), imbalance, _percent(use["stay_rate"]), *runs, load]


def _masks(card: dict[str, Any]) -> list[str]:
    masks = card.get("masks")
    if not masks:
        return []
    live, names = masks["live_signatures"], card["experts"]["names"]
    text = f"Of all channels {_percent(masks['permanent'])} % are in every expert, {_percent(masks['union'])} % in at "
    text += f"least one, {_percent(masks['dead'])} % in none. Live signatures per layer: {min(live)} to {max(live)}. "
    swaps = [share for i, row in enumerate(masks["swap"]) for j, share in enumerate(row) if i != j]
    if swaps:
        text += f"Going from one expert to another brings in {_percent(sum(swaps) / len(swaps))} % of the channels. "
    text += "The table says which share (%) of the row's expert the column's expert has too."
    rows = [[name, *map(_percent, shares)] for name, shares in zip(names, masks["pairs"], strict=True)]
    return ["## Masks", text, table(["expert", *names], rows)]


def _curve(card: dict[str, Any]) -> list[str]:
    if not card.get("curve"):
        return []
    rows = [[p["label"], _percent(p["stay_rate"]), _number(p["perplexity"])] for p in card["curve"]]
    return ["## Quality against locality", table(["setting", "stays, %", "perplexity"], rows)]


def _environment(card: dict[str, Any]) -> list[str]:
    return ["## Made with", "\n".join(f"* {name}: {value}" for name, value in card["environment"].items())]
