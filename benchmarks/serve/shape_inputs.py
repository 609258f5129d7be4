"""What a replay at large shapes takes from a real model: its router, the histograms of its masks, loads of real text.

Small enough to carry to a machine that has none of it. A shape model writes real text, too, so that its router sees
some: `walk` is token ids of real documents, piece behind piece, and a shape model has an entry of its vocabulary for
every place of it, behind those of the tokenizer. What it writes is the walk, from the place on that `entrances` has for
the last token of the prompt (shape_model.py).
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from outrider.refactor.artifact import Artifact, RouterShape, load_artifact
from outrider.refactor.atomic import write_file
from outrider.refactor.torch_router import TorchRouter, route
from outrider.refactor.traces import embedding_of
from outrider.serve.replay import load, texts
from outrider.serve.replay.load_file import Prepared, read_load, write_load
from outrider.serve.tokens import ServeTokenizer
from safetensors.torch import load_file, save_file

FORMAT = 1
ABOUT, ROUTER = "inputs.json", "router.safetensors"
PLACES, PIECE = 16_384, 512  # tokens of the walk, and of one document in a row
SAMPLE = 48  # requests whose routes are described


@dataclass(frozen=True)
class Inputs:
    """`router`: with a table of its own for the tokenizer's ids; `histograms`: by layer, signature -> channels."""

    folder: Path
    about: dict[str, Any]
    shape: RouterShape
    router: dict[str, torch.Tensor]
    walk: torch.Tensor
    entrances: torch.Tensor

    @property
    def vocab(self) -> int:
        return len(self.entrances)

    def next_ids(self) -> torch.Tensor:
        """int64: the id that a shape model writes behind each of its ids."""
        places = torch.arange(1, len(self.walk) + 1) % len(self.walk)
        return self.vocab + torch.cat((self.entrances.long(), places))

    def whole_router(self) -> dict[str, torch.Tensor]:
        """With rows for the places of the walk: those of their tokens."""
        table = self.router["embed.weight"]
        return self.router | {"embed.weight": torch.cat((table, table[self.walk.long()]))}

    def prepared(self, name: str, rows: int) -> Prepared:
        """The first `rows` requests of a load."""
        return read_load(self.folder / f"{name}.json").first(rows)

    def written(self, last: int, tokens: int) -> list[int]:
        """Ids behind the id `last`."""
        ids, following = [], self.next_ids().tolist()
        for _ in range(tokens):
            last = following[last]
            ids.append(last)
        return ids


def read_inputs(folder: Path) -> Inputs:
    about = json.loads((folder / ABOUT).read_text())
    if about["format"] != FORMAT:
        raise SystemExit(f"{folder / ABOUT}: format: found {about['format']}, expected {FORMAT}")
    tensors = load_file(folder / ROUTER)
    table = torch.zeros(about["vocab"], about["router"]["width"])
    table[tensors.pop("table_ids").long()] = tensors.pop("table").float()
    walk, entrances = tensors.pop("walk"), tensors.pop("entrances")
    router = tensors | {"embed.weight": table}
    return Inputs(folder, about, RouterShape(**about["router"]), router, walk, entrances)


def pack(
    out: Path,
    name: str,
    adapter: Path,
    parent: Path,
    traces: dict[str, Path],
    text_folder: Path,
    *,
    rows: int,
    scale: int,
    context: int,
    seed: int,
) -> Inputs:
    """Writes the folder `out` from a refactored model, which reports call `name`, and recorded loads."""
    out.mkdir(parents=True, exist_ok=True)
    artifact, tokenizer = load_artifact(adapter), ServeTokenizer(parent)
    domains = texts.domain_tokens(text_folder, lambda text: tokenizer.encode(text, special=False))
    used = _loads(out, traces, domains, rows, scale, context, seed)
    walk = _walk(domains, seed)
    table = _table(artifact, parent)
    ids = torch.tensor(sorted(used | set(walk.tolist())), dtype=torch.int32)
    generator = torch.Generator().manual_seed(seed)
    entrances = torch.randint(0, PLACES, (len(table),), generator=generator, dtype=torch.int32)
    return _write(out, name, artifact, table, {"table_ids": ids, "walk": walk, "entrances": entrances}, list(traces))


def repack(out: Path, name: str, folder: Path, inputs: Path, parent: Path | None) -> Inputs:
    """Writes the folder `out` from the refactored model in `folder` and the loads, the walk and its entrances of
    `inputs`. `parent`: of an adapter with a tied router; any other folder has its table itself.
    """
    before, artifact = read_inputs(inputs), load_artifact(folder)
    table = _table(artifact, parent)
    if len(table) != before.vocab:
        raise SystemExit(f"{folder}: found {len(table)} ids, expected {before.vocab} as in {inputs}")
    out.mkdir(parents=True)  # no folder that a model may have been made from
    loads = list(before.about["routes"])
    for one in loads:
        shutil.copyfile(inputs / f"{one}.json", out / f"{one}.json")
    stored = load_file(inputs / ROUTER)
    kept = {key: stored[key] for key in ("table_ids", "walk", "entrances")}
    return _write(out, name, artifact, table, kept, loads)


def _write(
    out: Path,
    name: str,
    artifact: Artifact,
    table: torch.Tensor,
    texts_: dict[str, torch.Tensor],
    loads: list[str],
) -> Inputs:
    """All but the loads, which are there. `texts_`: `table_ids`, `walk` and `entrances`."""
    # As it is stored: a table in bfloat16 loses nothing.
    tensors = {key: tensor for key, tensor in artifact.router.items() if key != "embed.weight"}
    save_file(tensors | texts_ | {"table": table[texts_["table_ids"].long()].contiguous()}, out / ROUTER)
    about = {
        "format": FORMAT,
        "of": name,
        "experts": artifact.experts,
        "tau": artifact.tau,
        "vocab": len(table),
        "router": {**artifact.shape.__dict__, "embed": "own"},
        "histograms": [_histogram(layer) for layer in artifact.signatures],
    }
    write_file(out / ABOUT, json.dumps(about, indent=1) + "\n")
    inputs = read_inputs(out)
    about["routes"] = {one: describe(inputs, inputs.prepared(one, SAMPLE)) for one in loads}
    write_file(out / ABOUT, json.dumps(about, indent=1) + "\n")
    return read_inputs(out)


def _loads(
    out: Path, traces: dict[str, Path], domains: dict[str, list[int]], rows: int, scale: int, context: int, seed: int
) -> set[int]:
    """Writes the loads; the ids that their prompts have."""
    used: set[int] = set()
    for name, path in traces.items():
        source = load.read_trace(path)
        shaped = load.shape(path.name, source, count=rows, scale=scale, context=context, seed=seed)
        about = {"seed": seed, "scale_lengths": scale, "context": context, "domains": sorted(domains)}
        prepared = Prepared(shaped, texts.prompts_of(shaped, domains, seed), about)
        write_load(out / f"{name}.json", prepared)
        used.update(*map(set, prepared.prompts))
    return used


def _walk(domains: dict[str, list[int]], seed: int) -> torch.Tensor:
    """Pieces of all domains in turns, each from a drawn place on."""
    generator = torch.Generator().manual_seed(seed + 1)
    names, ids = sorted(domains), []
    for number in range(PLACES // PIECE):
        text = domains[names[number % len(names)]]
        first = int(torch.randint(0, max(1, len(text) - PIECE), (1,), generator=generator))
        piece = text[first : first + PIECE]
        ids += [piece[place % len(piece)] for place in range(PIECE)]
    return torch.tensor(ids, dtype=torch.int32)


def _table(artifact: Artifact, parent: Path | None) -> torch.Tensor:
    """A tied router reads the table that was tuned with it, which an adapter has of its parent."""
    if artifact.shape.embed == "own":
        return artifact.router["embed.weight"]
    if artifact.adapter is not None and parent is None:
        raise SystemExit(f"{artifact.folder}: an adapter with a tied router, expected its parent, too")
    return embedding_of(parent if artifact.adapter else artifact.folder)[:, : artifact.shape.width]


def _histogram(signatures: torch.Tensor) -> dict[str, int]:
    found, counts = signatures.unique(return_counts=True)
    return {str(int(s)): int(n) for s, n in zip(found, counts, strict=True)}


def describe(inputs: Inputs, prepared: Prepared) -> dict[str, Any]:
    """Share of each expert's tokens, and how often the expert stays, in prompts and in what is written."""
    router = inputs.whole_router()
    chosen = TorchRouter(inputs.shape, inputs.about["experts"], router, router["embed.weight"], inputs.folder)
    parts: dict[str, list[torch.Tensor]] = {"prompts": [], "written": []}
    with torch.no_grad():
        for prompt, row in zip(prepared.prompts, prepared.load.rows, strict=True):
            ids = prompt + inputs.written(prompt[-1], row.written_tokens)
            experts = route(chosen.logits(torch.tensor([ids])), inputs.about["tau"])[0]
            parts["prompts"].append(experts[: len(prompt)])
            parts["written"].append(experts[len(prompt) :])
    return {name: _routes_of(found, inputs.about["experts"]) for name, found in parts.items()}


def _routes_of(texts_: list[torch.Tensor], experts: int) -> dict[str, Any]:
    ids = torch.cat(texts_)
    stays = torch.cat([one[1:] == one[:-1] for one in texts_]).float()
    load_of = torch.bincount(ids, minlength=experts) / len(ids)
    return {"tokens": len(ids), "stay_rate": round(float(stays.mean()), 3),
            "expert_load": [round(float(share), 3) for share in load_of]}  # fmt: skip
