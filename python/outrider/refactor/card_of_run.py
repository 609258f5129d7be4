"""The quality card of a finished run, from what its rows measured."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from outrider.refactor.artifact import MASKS, ROUTER, Artifact, load_artifact
from outrider.refactor.card.rows import Cost, Measured, make_row
from outrider.refactor.data_set import DataSet, load_data
from outrider.refactor.stats.masks import mask_overlaps
from outrider.refactor.stats.perplexity import Losses, domain_loss
from outrider.refactor.stats.routing import expert_use
from outrider.refactor.tasks.scoring import TaskScores
from outrider.refactor.traces import route_traces


@dataclass(frozen=True)
class Run:
    """`results`: result.json of each row; `parent`: losses of the untouched model, {"test": ..., "unseen": ...};
    `seconds`: of tuning, per row; `tasks`: row -> task -> scores; `teachers`: row -> tokens its teacher was tuned on.
    """

    model: Path
    folder: Path  # of the refactored model
    data: Path
    preset: str
    results: dict[str, dict[str, Any]]
    parent: dict[str, Any]
    seconds: dict[str, float]
    environment: dict[str, str]
    tasks: Mapping[str, Mapping[str, TaskScores]] = field(default_factory=dict)
    teachers: Mapping[str, int] = field(default_factory=dict)
    device: str = "cpu"


def make_card(run: Run) -> dict[str, Any]:
    """All rows that were run, `ours` and the others against `static` where there is one."""
    data = load_data(run.data)
    measured = {
        name: _measured(result["eval"], "refactored", data, run.tasks.get(name, {}))
        for name, result in run.results.items()
    }
    static = measured.get("static")
    parent = _measured(
        {split: {"": losses} for split, losses in run.parent.items()}, "", data, run.tasks.get("parent", {})
    )
    rows = [make_row("parent", parent, Cost(1.0), static=static)]
    for name, result in run.results.items():
        against = None if name == "static" else static
        cost = _cost(result, run.seconds[name], run.teachers.get(name))
        rows.append(make_row(name, measured[name], cost, static=against))
    ours = run.results["ours"]
    options = ours["options"]
    artifact = load_artifact(run.folder)
    kept = artifact.masks().sum(-1)  # [N, L]
    channels = int(kept.sum(-1).amax())
    return {
        "format": 1,
        "title": f"{run.model.name}: {options['experts.keep']:.0%} of the FFN per token, preset {run.preset}",
        "parent": {
            "name": run.model.name,
            "sha256": _sha256(sorted(run.model.glob("*.safetensors"))),
            "parameters": ours["parameters"],
        },
        "experts": {
            "count": artifact.experts,
            "names": artifact.names,
            "channels": channels,
            "channels_per_layer": kept.amax(0).tolist(),
            "selection": _selection(options),
            "tau": artifact.tau,
        },
        "router": {
            "width": options["router.width"],
            "scale": options["router.scale"],
            "embed": options["router.embed"],
            "attention": options["router.attn"],
            "parameters": ours["router_parameters"],
            "loss": options["router.loss"],
        },
        "sizes": _sizes(run, ours, channels),
        "rows": rows,
        "routing": _routing(run, artifact, data),
        "masks": mask_overlaps(artifact.signatures.numpy(), artifact.experts),
        "curve": _curve(ours) or None,
        "environment": run.environment,
    }


def _measured(evaluated: dict[str, Any], mode: str, data: DataSet, tasks: Mapping[str, TaskScores]) -> Measured:
    """From {split: {mode: losses}}; results of earlier versions have no unseen text."""
    parts = {split: _losses(evaluated.get(split, {}).get(mode, {}), data) for split in ("test", "unseen")}
    return Measured(parts["test"], parts["unseen"], dict(tasks))


def _losses(losses: dict[str, Any], data: DataSet) -> Losses:
    """Bytes are those of a document times the share of its tokens that was scored."""
    by_domain = {}
    for name, loss in losses.items():
        documents = np.array(loss["documents"], dtype=np.float64).reshape(-1, 3)
        split = data.splits[name]["test"]
        lengths = np.diff([*split.starts, len(split.tokens)])
        which = documents[:, 0].astype(np.int64)
        sizes = np.array(split.text_bytes)[which] * documents[:, 1] / lengths[which]
        by_domain[name] = domain_loss(documents[:, 2], documents[:, 1], np.rint(sizes))
    return by_domain


def _cost(result: dict[str, Any], seconds: float, teacher_tokens: int | None) -> Cost:
    """A teacher of unknown history counts as tuned on the row's own tokens; the untouched parent costs nothing."""
    options, tokens = result["options"], result["tokens"]
    tuning = tokens.get("expert", 0)
    distilled = options["distill"] > 0
    if teacher_tokens is None:
        teacher_tokens = tuning if distilled and options["teacher"] != "parent" else 0
    return Cost(
        active=1.0 if options["experts.kind"] == "dense" else options["experts.keep"],
        loss="ce" if not distilled else f"ce + {options['distill']:g} kl",
        teacher=Path(options["teacher"]).name if distilled else None,
        tuning_tokens=tuning,
        router_tokens=tokens.get("router", 0),
        teacher_tokens=teacher_tokens,
        seconds=seconds,
        seeds=(options["seed"],),
    )


def _selection(options: dict[str, Any]) -> str:
    if options["experts.kind"] == "coverage":
        return f"coverage, granularity {options['coverage.granularity']}"
    return f"{options['experts.kind']}, statistic {options['experts.statistic']}"


def _routing(run: Run, artifact: Artifact, data: DataSet) -> dict[str, Any]:
    """Use of the experts on the test text of each domain, in texts as long as those of the evaluation."""
    options = run.results["ours"]["options"]
    traces = route_traces(artifact, data, options["sequence"], options["eval_tokens"], device=run.device)
    ids = {name: list(traces[name]) for name in data.domains}
    used = {name: expert_use(texts, artifact.experts).row() for name, texts in ids.items()}
    every = [text for texts in ids.values() for text in texts]
    agreement = None
    if artifact.names == data.domains:  # an expert of each domain
        right = sum(int((traces[name] == number).sum()) for number, name in enumerate(data.domains))
        agreement = right / sum(traces[name].size for name in data.domains)
    return {"all": expert_use(every, artifact.experts).row(), "domains": used, "domain_agreement": agreement}


def _curve(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Perplexity against staying over tau: what a longer run of one expert costs."""
    points = []
    for point in result.get("frontier", []):
        nats = [loss["nats"] / loss["tokens"] for loss in point["domains"].values()]
        perplexity = math.exp(math.fsum(nats) / len(nats))
        points.append({"label": f"tau {point['tau']:g}", "stay_rate": point["stay_rate"], "perplexity": perplexity})
    return points


def _sizes(run: Run, ours: dict[str, Any], channels: int) -> dict[str, int]:
    config = json.loads((run.model / "config.json").read_text())
    dropped = (config["num_hidden_layers"] * config["intermediate_size"] - channels) * 3 * config["hidden_size"]
    weights = sum(path.stat().st_size for path in run.folder.glob("model*.safetensors"))
    masks, router = ((run.folder / name).stat().st_size for name in (MASKS, ROUTER))
    return {
        "active_parameters": ours["parameters"] - dropped + ours["router_parameters"],
        "dense_bytes": weights,
        "artifact_bytes": weights + masks + router,
        "router_bytes": router,
        "masks_bytes": masks,
    }


def _sha256(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
