"""The picture of an analysis: mutual information and stay rate over the depth, and some transition matrices."""

from typing import Any, BinaryIO

_MATRICES = 6


def draw(analysis: dict[str, Any], title: str, target: BinaryIO) -> None:
    """Draws and saves a PNG without date or version inside, so that the same matplotlib gives the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        shown = _evenly(analysis["pairs"], _MATRICES)
        figure = Figure(figsize=(13, 7.5 if shown else 4.5), layout="constrained")
        heights = (3, 2) if shown else (1,)
        top, *bottom = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        left, right = top.subplots(1, 2)
        _information(left, analysis["pairs"])
        _locality(right, analysis["layers"])
        if shown:
            _matrices(bottom[0], shown)
        figure.suptitle(title)
        figure.savefig(target, format="png", dpi=110, metadata={"Software": None})


def _evenly(items: list[Any], count: int) -> list[Any]:
    if len(items) <= count:
        return items
    return [items[round(at * (len(items) - 1) / (count - 1))] for at in range(count)]


def _information(axis, pairs: list[dict[str, Any]]) -> None:
    axis.set_title("what a layer's choice tells of the next layer's")
    if not pairs:
        axis.text(0.5, 0.5, "one id for all layers", ha="center", va="center", transform=axis.transAxes)
        axis.set_axis_off()
        return
    layers = [pair["layer"] for pair in pairs]
    axis.plot(layers, [100 * (pair["share"] or 0.0) for pair in pairs], "o-", label="mutual information")
    axis.plot(layers, [100 * pair["same"] for pair in pairs], "s--", color="#888888", label="same expert index")
    axis.set_ylabel("% of the next layer's entropy; % of tokens")
    axis.set_xlabel("layer")
    axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    axis.legend(fontsize="small")


def _locality(axis, layers: list[dict[str, Any]]) -> None:
    axis.set_title("locality and balance of each layer")
    places = range(len(layers))
    axis.plot(places, [100 * layer["stay_rate"] for layer in layers], "o-", label="tokens that keep the expert, %")
    axis.plot(places, [100 * layer["entropy"] for layer in layers], "s--", label="entropy of the load, % of log N")
    axis.set_xlabel("layer")
    axis.set_ylim(0, 105)
    axis.legend(fontsize="small")


def _matrices(figure, pairs: list[dict[str, Any]]) -> None:
    axes = figure.subplots(1, len(pairs), squeeze=False)[0]
    for axis, pair in zip(axes, pairs, strict=True):
        image = axis.imshow(pair["transition"], vmin=0, vmax=1, cmap="viridis")
        axis.set_title(f"layer {pair['layer']} → {pair['layer'] + 1}", fontsize="small")
        axis.set_xlabel("expert, next layer", fontsize="small")
        axis.tick_params(labelsize="small")
    axes[0].set_ylabel("expert", fontsize="small")
    figure.colorbar(image, ax=list(axes), shrink=0.8, label="share of the row")
