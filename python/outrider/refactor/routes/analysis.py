"""What a route trace says: use of the experts in each layer, and what a layer's choice tells of the next layer's."""

from typing import Any

import numpy as np

from outrider.refactor.routes.trace import RouteTrace
from outrider.refactor.stats.information import joint_counts, shared_information, transitions
from outrider.refactor.stats.routing import expert_use

CORRECTION = "Miller-Madow: (cells - rows - columns + 1) / 2n nats taken off, as if the n tokens were independent"


def analyse(trace: RouteTrace) -> dict[str, Any]:
    """Plain numbers, as docs/formats/routes.md lists them. Only first choices count where a token uses several."""
    every = list(trace.domains)
    pairs = [_pair(trace, every, layer) for layer in range(trace.layers - 1)]
    return {
        "format": 1,
        "split": trace.split,
        "experts": trace.experts,
        "sequence": trace.sequence,
        "tokens": sum(ids.shape[1] for ids in trace.domains.values()),
        "per_layer": trace.per_layer,
        "correction": CORRECTION,
        "layers": [_use(trace, every, layer) for layer in range(trace.layers)],
        "pairs": pairs,
        "mean": _means(pairs),
        "domains": {name: _domain(trace, name) for name in every},
    }


def _use(trace: RouteTrace, names: list[str], layer: int) -> dict[str, Any]:
    texts = [text for name in names for text in trace.texts(name, layer)]
    return expert_use(texts, trace.experts).row()


def _pair(trace: RouteTrace, names: list[str], layer: int) -> dict[str, Any]:
    first, second = (np.concatenate([trace.texts(name, at).ravel() for name in names]) for at in (layer, layer + 1))
    joint = joint_counts(first, second, trace.experts)
    shared = shared_information(joint)
    return {
        "layer": layer,
        "nats": shared.nats,
        "nats_plug_in": shared.plug_in,
        "entropy": shared.entropy,
        "share": shared.share,
        "same": float((first == second).mean()),
        "joint": joint.tolist(),
        "transition": transitions(joint).tolist(),
    }


def _means(pairs: list[dict[str, Any]]) -> dict[str, float | None]:
    shares = [pair["share"] for pair in pairs if pair["share"] is not None]
    return {
        "nats": float(np.mean([pair["nats"] for pair in pairs])) if pairs else None,
        "share": float(np.mean(shares)) if shares else None,
    }


def _domain(trace: RouteTrace, name: str) -> dict[str, Any]:
    uses = [_use(trace, [name], layer) for layer in range(trace.layers)]
    pairs = [_pair(trace, [name], layer) for layer in range(trace.layers - 1)]
    return {
        "tokens": trace.domains[name].shape[1],
        "stay_rate": float(np.mean([use["stay_rate"] for use in uses])),
        "entropy": float(np.mean([use["entropy"] for use in uses])),
        "mean": _means(pairs),
    }
