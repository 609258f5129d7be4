"""Which expert each token of prepared text gets, as the files of a refactored model say."""

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from outrider.refactor.artifact import ROUTER, Artifact
from outrider.refactor.data_set import DataSet
from outrider.refactor.errors import InputError
from outrider.refactor.torch_router import TorchRouter, route

EMBEDDING = "model.embed_tokens.weight"
_TEXTS_AT_ONCE = 8


def route_traces(
    artifact: Artifact, data: DataSet, length: int, tokens: int, *, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Domain, tuned or unseen -> expert ids uint8 [texts, length] of the first `tokens` tokens of its test split, cut
    into texts of `length` tokens; a domain with less than one text is left out.

    Raises:
        InputError: E_ARTIFACT, E_ROUTER for files that do not fit.
    """
    backbone = embedding_of(artifact.folder).to(device)
    router = TorchRouter(artifact.shape, artifact.experts, artifact.router, backbone, artifact.folder / ROUTER)
    traces = {}
    for name in (*data.domains, *data.unseen):
        ids = data.splits[name]["test"].tokens[:tokens].astype(np.int64)
        texts = torch.from_numpy(ids[: len(ids) // length * length]).view(-1, length)
        if not len(texts):
            continue
        with torch.no_grad():
            routes = [route(router.logits(part.to(device)), artifact.tau).cpu() for part in texts.split(_TEXTS_AT_ONCE)]
        traces[name] = torch.cat(routes).numpy().astype(np.uint8)
    return traces


def embedding_of(folder: Path) -> torch.Tensor:
    """The table of token embeddings of a HF folder, [V, d]."""
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            if EMBEDDING in file.keys():  # noqa: SIM118 - no mapping
                return file.get_tensor(EMBEDDING)
    raise InputError("E_ARTIFACT", folder, EMBEDDING, "no such tensor", "the table of token embeddings")
