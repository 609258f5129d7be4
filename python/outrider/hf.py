"""Runs a refactored model inside HF transformers: the reference that the C++ engine is compared with.

::

    model = AutoModelForCausalLM.from_pretrained(DIR)   # alone: all channels on, another function
    routed = outrider.hf.apply(model, DIR)
    model.generate(...)                                 # each token runs its expert
    routed.remove()
"""

import re
from pathlib import Path

import torch

from outrider.refactor.adapter import restore
from outrider.refactor.artifact import MASKS, ROUTER, load_artifact
from outrider.refactor.errors import InputError
from outrider.refactor.torch_router import TorchRouter, route

_DOWN = re.compile(r"(?:^|\.)layers\.(\d+)\.mlp\.down_proj$")


def apply(model: torch.nn.Module, folder: str | Path, *, channels: str = "exported") -> "Routed":
    """Masks the input of every `mlp.down_proj` by the token's expert, which a router outside the model chooses.

    `model` is a Llama-like HF model; `channels` says in which order its FFN channels lie: `exported` as in `folder`,
    `parent` as before the export. With an adapter in `folder`, `model` is the parent, and its weights are corrected as
    well. Applying twice is an error; `Routed.remove` undoes it.

    Raises:
        InputError: E_ARTIFACT, E_MASKS, E_ROUTER, E_ADAPTER for a file that does not fit, E_MODEL for a model that does
            not.
    """
    if channels not in ("exported", "parent"):
        raise InputError("E_USAGE", "outrider.hf.apply", "channels", repr(channels), "exported or parent")
    artifact = load_artifact(Path(folder))
    masks = artifact.masks(parent_order=channels == "parent" or artifact.adapter is not None)
    downs = _down_projections(model)
    sizes = [down.in_features for down in downs]
    if sizes != [masks.shape[2]] * masks.shape[1]:
        found = f"{masks.shape[1]} layers of {masks.shape[2]} channels"
        raise InputError("E_MASKS", artifact.folder / MASKS, "sig", found, f"{len(sizes)} of {sorted(set(sizes))}")
    backbone = model.get_input_embeddings().weight
    router = TorchRouter(artifact.shape, artifact.experts, artifact.router, backbone, artifact.folder / ROUTER)
    before = artifact.adapter.add_to(model) if artifact.adapter else {}
    return Routed(model, downs, router, masks, artifact.tau, before)


def _down_projections(model: torch.nn.Module) -> list[torch.nn.Module]:
    found = {}
    for name, module in model.named_modules():
        match = _DOWN.search(name)
        if match:
            found[int(match[1])] = module
    if sorted(found) != list(range(len(found))) or not found:
        raise InputError("E_MODEL", type(model).__name__, "mlp.down_proj", f"layers {sorted(found)}", "all layers")
    if any(hasattr(module, "_outrider_routed") for module in found.values()):
        raise InputError("E_MODEL", type(model).__name__, "hooks", "a router already", "Routed.remove() first")
    return [found[layer] for layer in range(len(found))]


class Routed:
    """The hooks on one model. `ids` int64 [B, S] are the experts of the tokens of the last forward pass.

    Incremental decoding works with any cache that has `get_seq_length`; the router then reads the whole text again.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        downs: list[torch.nn.Module],
        router: TorchRouter,
        masks: torch.Tensor,
        tau: float,
        before: dict[str, torch.Tensor],
    ) -> None:
        self.router, self.tau = router, tau
        self._model, self._before = model, before
        self.ids: torch.Tensor | None = None
        self._masks = masks
        self._text: torch.Tensor | None = None
        self._downs = downs
        decoder = getattr(model, model.base_model_prefix, model)
        self._handles = [decoder.register_forward_pre_hook(self._before_model, with_kwargs=True)]
        for layer, down in enumerate(downs):
            down._outrider_routed = self
            self._handles.append(down.register_forward_pre_hook(_masking(self, layer)))

    def remove(self) -> None:
        """Takes hooks and adapter off; the model then computes its dense function again."""
        for handle in self._handles:
            handle.remove()
        for down in self._downs:
            if hasattr(down, "_outrider_routed"):
                del down._outrider_routed
        self._handles = []
        restore(self._model, self._before)
        self._before = {}

    def experts_of(self, ids: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
        """Expert ids [B, S] of token ids [B, S]; `real` [B, S] is False for padding."""
        with torch.no_grad():
            return route(self.router.logits(ids, real), self.tau, real)

    def masked(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [..., D] of the tokens of this pass -> the same with the channels of other experts set to 0."""
        assert self.ids is not None
        masks = self._masks[:, layer].to(hidden.device, hidden.dtype)
        return hidden * masks[self.ids.to(hidden.device)].view(hidden.shape)

    def _before_model(self, _, arguments: tuple, keywords: dict) -> None:
        ids = keywords.get("input_ids", arguments[0] if arguments else None)
        if ids is None:
            raise InputError("E_MODEL", "outrider.hf", "input_ids", "none", "token ids: the router reads nothing else")
        cache = keywords.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        if past:
            if self._text is None or self._text.shape[0] != ids.shape[0] or self._text.shape[1] < past:
                raise InputError(
                    "E_MODEL", "outrider.hf", "past_key_values", f"{past} tokens", "those of the last call"
                )
            self._text = torch.cat((self._text[:, :past], ids), dim=1)
        else:
            self._text = ids
        self.ids = self.experts_of(self._text, self._real(keywords.get("attention_mask")))[:, past:]

    def _real(self, mask: torch.Tensor | None) -> torch.Tensor | None:
        if mask is None:
            return None
        assert self._text is not None
        if mask.shape != self._text.shape:
            raise InputError(
                "E_MODEL", "outrider.hf", "attention_mask", f"{list(mask.shape)}", f"{list(self._text.shape)}"
            )
        return mask.bool()


def _masking(routed: Routed, layer: int):
    return lambda _, arguments: (routed.masked(layer, arguments[0]), *arguments[1:])
