"""The quality card of a finished run, from what its rows measured."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from outrider.refactor.artifact import MASKS, ROUTER, Artifact, load_artifact
from outrider.refactor.card.rows import Cost, Measured, make_row
from outrider.refactor.data_set import load_data
from outrider.refactor.errors import InputError
from outrider.refactor.stats.masks import mask_overlaps
from outrider.refactor.stats.perplexity import domain_loss
from outrider.refactor.stats.routing import expert_use

EMBEDDING = "model.embed_tokens.weight"
_TEXTS_AT_ONCE = 8


@dataclass(frozen=True)
class Run:
    """`results`: result.json of each row; `parent`: losses of the untouched model; `seconds`: of tuning, per row."""

    model: Path
    folder: Path  # of the refactored model
    data: Path
    preset: str
    results: dict[str, dict[str, Any]]
    parent: dict[str, Any]
    seconds: dict[str, float]
    environment: dict[str, str]


def make_card(run: Run) -> dict[str, Any]:
    """All rows that were run, `ours` and the others against `static` where there is one."""
    measured = {name: _measured(result["eval"]["test"]["refactored"]) for name, result in run.results.items()}
    static = measured.get("static")
    rows = [make_row("parent", _measured(run.parent), Cost(1.0), static=static)]
    for name, result in run.results.items():
        against = None if name == "static" else static
        rows.append(make_row(name, measured[name], _cost(result, run.seconds[name]), static=against))
    ours = run.results["ours"]
    options = ours["options"]
    artifact = load_artifact(run.folder)
    kept = artifact.masks().sum(-1).amax(0)  # [L]
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
            "channels_per_layer": kept.tolist(),
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
        "sizes": _sizes(run, ours, kept.tolist()),
        "rows": rows,
        "routing": _routing(run, artifact),
        "masks": mask_overlaps(artifact.signatures.numpy(), artifact.experts),
        "environment": run.environment,
    }


def _measured(losses: dict[str, Any]) -> Measured:
    by_domain = {}
    for name, loss in losses.items():
        documents = np.array(loss["documents"], dtype=np.float64).reshape(-1, 3)
        by_domain[name] = domain_loss(documents[:, 2], documents[:, 1])
    return Measured(by_domain)


def _cost(result: dict[str, Any], seconds: float) -> Cost:
    options, tokens = result["options"], result["tokens"]
    tuning = tokens.get("expert", 0)
    return Cost(
        active=1.0 if options["experts.kind"] == "dense" else options["experts.keep"],
        loss="ce" if options["distill"] == 0 else f"ce + {options['distill']} * kl",
        teacher=options["teacher"] or None,
        tuning_tokens=tuning,
        router_tokens=tokens.get("router", 0),
        teacher_tokens=tuning if options["distill"] else 0,
        seconds=seconds,
        seeds=(options["seed"],),
    )


def _selection(options: dict[str, Any]) -> str:
    if options["experts.kind"] == "coverage":
        return f"coverage, granularity {options['coverage.granularity']}"
    return f"{options['experts.kind']}, statistic {options['experts.statistic']}"


def _routing(run: Run, artifact: Artifact) -> dict[str, Any]:
    """Use of the experts on the test text of each domain, in texts as long as those of the evaluation."""
    from outrider.refactor.torch_router import TorchRouter, route

    options = run.results["ours"]["options"]
    router = TorchRouter(artifact.shape, artifact.experts, artifact.router, _embedding(run.folder), run.folder)
    data, length = load_data(run.data), options["sequence"]
    ids = {}
    for name in data.domains:
        tokens = data.splits[name]["test"].tokens[: options["eval_tokens"]].astype(np.int64)
        texts = torch.from_numpy(tokens[: len(tokens) // length * length]).view(-1, length)
        with torch.no_grad():
            routes = [route(router.logits(part), artifact.tau) for part in texts.split(_TEXTS_AT_ONCE)]
        ids[name] = list(torch.cat(routes).numpy())
    used = {name: expert_use(texts, artifact.experts).row() for name, texts in ids.items()}
    every = [text for texts in ids.values() for text in texts]
    return {"all": expert_use(every, artifact.experts).row(), "domains": used, "domain_agreement": None}


def _embedding(folder: Path) -> torch.Tensor:
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            if EMBEDDING in file.keys():  # noqa: SIM118 - no mapping
                return file.get_tensor(EMBEDDING)
    raise InputError("E_ARTIFACT", folder, EMBEDDING, "no such tensor", "the table of token embeddings")


def _sizes(run: Run, ours: dict[str, Any], kept: list[int]) -> dict[str, int]:
    config = json.loads((run.model / "config.json").read_text())
    dropped = sum(config["intermediate_size"] - count for count in kept) * 3 * config["hidden_size"]
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
