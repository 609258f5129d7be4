"""quality_card.png: perplexities of all rows, load, run lengths, tasks, and quality against locality."""

import math
from typing import Any, BinaryIO

from outrider.refactor.card.markdown import first_metric, geometric_mean

_COLOURS = ("#888888", "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b")


def draw(card: dict[str, Any], target: BinaryIO) -> None:
    """Draws and saves a PNG without date or version inside, so that the same matplotlib gives the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        tasks = any(row["tasks"] for row in card["rows"])
        more = tasks or card.get("curve")
        figure = Figure(figsize=(13, 12 if more else 8))
        axes = figure.subplots(3 if more else 2, 2, width_ratios=(2, 1))
        _perplexities(axes[0][0], card)
        _means(axes[0][1], card)
        _loads(axes[1][0], card)
        _runs(axes[1][1], card)
        if more:
            (_tasks if tasks else _signatures)(axes[2][0], card)
            _curve(axes[2][1], card)
        figure.suptitle(card["title"])
        figure.tight_layout()
        figure.savefig(target, format="png", dpi=110, metadata={"Software": None})


def _perplexities(axis, card: dict[str, Any]) -> None:
    names = list(card["rows"][0]["domains"])
    width = 0.8 / len(card["rows"])
    for number, row in enumerate(card["rows"]):
        heights = [math.exp(row["domains"][name]["nats"]) for name in names]
        places = [at + (number - (len(card["rows"]) - 1) / 2) * width for at in range(len(names))]
        axis.bar(places, heights, width, label=row["name"], color=_COLOURS[number % len(_COLOURS)])
    axis.set_xticks(range(len(names)), names)
    axis.set_ylabel("perplexity")
    axis.set_title("held-out text of each domain")
    axis.legend(fontsize="small")


def _means(axis, card: dict[str, Any]) -> None:
    rows = list(reversed(card["rows"]))
    values = [geometric_mean(row["domains"]) or 0.0 for row in rows]
    colours = [_COLOURS[number % len(_COLOURS)] for number in reversed(range(len(rows)))]
    bars = axis.barh([row["name"] for row in rows], values, color=colours)
    axis.bar_label(bars, fmt="%.2f", padding=3)
    axis.margins(x=0.2)
    axis.set_title("geometric mean of perplexities")


def _loads(axis, card: dict[str, Any]) -> None:
    routing = card.get("routing")
    axis.set_title("load of the experts")
    if not routing:
        _nothing(axis)
        return
    texts = {"all": routing["all"], **routing["domains"]}
    bottoms = [0.0] * len(texts)
    for expert, name in enumerate(card["experts"]["names"]):
        shares = [100 * use["load"][expert] / (sum(use["load"]) or 1) for use in texts.values()]
        axis.bar(list(texts), shares, bottom=bottoms, label=name, color=f"C{expert % 10}")
        bottoms = [bottom + share for bottom, share in zip(bottoms, shares, strict=True)]
    axis.set_ylabel("% of the tokens")
    axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


def _runs(axis, card: dict[str, Any]) -> None:
    axis.set_title("runs of one expert")
    if not card.get("routing"):
        _nothing(axis)
        return
    counts = card["routing"]["all"]["run_histogram"]
    axis.bar([str(2**k) for k in range(len(counts))], counts, color=_COLOURS[1])
    axis.set_xlabel("tokens, from")
    axis.set_ylabel("runs")


def _curve(axis, card: dict[str, Any]) -> None:
    axis.set_title("quality against locality")
    if not card.get("curve"):
        _nothing(axis)
        return
    for point in card["curve"]:
        axis.plot(100 * point["stay_rate"], point["perplexity"], "o", color=_COLOURS[1])
        axis.annotate(point["label"], (100 * point["stay_rate"], point["perplexity"]), fontsize="small")
    axis.set_xlabel("tokens that keep the expert, %")
    axis.set_ylabel("perplexity")


def _tasks(axis, card: dict[str, Any]) -> None:
    """The first metric of each task in points, with one standard error; perplexities have another scale."""
    names = list(dict.fromkeys(name for row in card["rows"] for name in row["tasks"]))
    metrics = {name: first_metric(card, name) for name in names}
    names = [name for name in names if metrics[name] != "perplexity"]
    width = 0.8 / len(card["rows"])
    for number, row in enumerate(card["rows"]):
        scores = [row["tasks"].get(name, {}).get(metrics[name]) for name in names]
        places = [at + (number - (len(card["rows"]) - 1) / 2) * width for at, s in enumerate(scores) if s]
        heights, errors = ([100 * s[key] for s in scores if s] for key in ("value", "stderr"))
        axis.bar(places, heights, width, yerr=errors, label=row["name"], color=_COLOURS[number % len(_COLOURS)])
    axis.set_xticks(range(len(names)), [f"{name}\n{metrics[name]}" for name in names], fontsize="small")
    axis.set_ylabel("points, one standard error")
    axis.set_title("task sets")


def _signatures(axis, card: dict[str, Any]) -> None:
    if not card.get("masks"):
        _nothing(axis)
        return
    live = card["masks"]["live_signatures"]
    axis.set_title("live signatures of each layer")
    axis.bar(range(len(live)), live, color=_COLOURS[1])
    axis.set_xlabel("layer")


def _nothing(axis) -> None:
    axis.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axis.transAxes)
    axis.set_axis_off()
