"""Reads the side files of a refactored model. The format is docs/formats/artifact.md."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outrider.refactor.adapter import ADAPTER, Adapter, load_adapter
from outrider.refactor.atomic import write_file
from outrider.refactor.errors import InputError
from outrider.refactor.sums import sha256_of

if TYPE_CHECKING:
    import torch

HEADER = "outrider.json"
MASKS = "outrider_masks.safetensors"
ROUTER = "outrider_router.safetensors"
SUM = "outrider.sha256"


@dataclass(frozen=True)
class RouterShape:
    """The router's form (Read-ME, arXiv 2410.19123); the published one is 512 wide, `none`, `own`, with attention.

    `scale`: whether attention logits are divided by sqrt(head dim). `embed`: a table of its own, or the first `width`
    columns of the backbone's. `attention` off: each token is routed by itself.
    """

    width: int = 512
    heads: int = 4
    scale: str = "none"
    embed: str = "own"
    attention: bool = True
    rope_base: float = 10_000.0


@dataclass(frozen=True)
class Artifact:
    """`signatures` int64 [L, D] in the exported model's channel order: bit i is set when channel c is in expert i.

    `permutation` int64 [L, D], where there is one: exported channel j is channel `permutation[l, j]` of the parent.
    """

    folder: Path
    experts: int
    names: list[str]
    tau: float
    shape: RouterShape
    signatures: "torch.Tensor"
    permutation: "torch.Tensor | None"
    router: dict[str, "torch.Tensor"]
    adapter: Adapter | None = None  # then signatures without permutation are in the parent's order

    def masks(self, *, parent_order: bool = False) -> "torch.Tensor":
        """[N, L, D], 1 where the expert has the channel; `parent_order` undoes the permutation.

        Raises:
            InputError: E_MASKS when the parent's order is asked for and no permutation is stored.
        """
        import torch

        signatures = self.signatures
        if parent_order and not (self.adapter and self.permutation is None):
            if self.permutation is None:
                raise InputError("E_MASKS", self.folder / MASKS, "perm", "no such tensor", "int32 [L, D]")
            signatures = torch.empty_like(signatures).scatter_(1, self.permutation, signatures)
        bits = torch.arange(self.experts).view(-1, 1, 1)
        return (signatures >> bits) & 1


def load_artifact(folder: Path) -> Artifact:
    """Reads and checks outrider.json, masks, router, and the adapter where there is one.

    Raises:
        InputError: E_ARTIFACT for a missing or malformed file or a wrong checksum; E_MASKS, E_ROUTER and E_ADAPTER for
            a tensor.
    """
    folder = Path(folder)
    header = _header(folder / HEADER)
    adapted = (folder / ADAPTER).is_file()
    for name in (MASKS, ROUTER, ADAPTER) if adapted else (MASKS, ROUTER):
        _check_sha256(folder / name, header.get("files", {}).get(name))
    shape = _shape(folder / HEADER, header.get("router", {}))
    experts = header["experts"]
    signatures, permutation = _masks(folder / MASKS, experts)
    router = _tensors(folder / ROUTER)
    names = header.get("names") or [str(i) for i in range(experts)]
    adapter = load_adapter(folder / ADAPTER) if adapted else None
    return Artifact(
        folder, experts, names, float(header.get("tau", 0)), shape, signatures, permutation, router, adapter
    )


def seal(folder: Path) -> None:
    """Puts the checksum of every file into outrider.json, and that of outrider.json beside it."""
    header = json.loads((folder / HEADER).read_text())
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in (HEADER, SUM)]
    header["files"] = {path.name: sha256_of(path, "E_ARTIFACT") for path in files}
    text = json.dumps(header, indent=1) + "\n"
    write_file(folder / HEADER, text)
    write_file(folder / SUM, _sum_line(text.encode()))


def check_parent(folder: Path, parent: Path | None) -> None:
    """Raises InputError E_USAGE for a folder without weights when its parent is not given."""
    weights = any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))
    if parent is None and (folder / HEADER).is_file() and not weights:
        raise InputError("E_USAGE", folder, "--parent", "none for a folder without weights", "--parent PARENT's folder")


def check_files(folder: Path) -> None:
    """Compares every file that `seal` saw with its checksum; hand-made folders have none.

    Raises:
        InputError: E_ARTIFACT.
    """
    if (folder / SUM).exists():
        found, expected = _bytes(folder / SUM), _sum_line(_bytes(folder / HEADER))
        if found != expected:
            raise InputError("E_ARTIFACT", folder / SUM, "sha256", repr(found[:80]), repr(expected))
    files = _header(folder / HEADER).get("files", {})
    named = isinstance(files, dict) and all(Path(name).name == name for name in files)
    if not named:
        raise InputError("E_ARTIFACT", folder / HEADER, "files", repr(files)[:100], "checksums by names of files here")
    for name, expected in files.items():
        _check_sha256(folder / name, expected)


def _sum_line(header: bytes) -> bytes:
    """As `sha256sum` writes it."""
    return f"{hashlib.sha256(header).hexdigest()}  {HEADER}\n".encode()


def _header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        version, experts = header["version"], header["experts"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("E_ARTIFACT", path, "header", repr(error)[:100], "version, experts and router") from error
    if version != 1:
        raise InputError("E_ARTIFACT", path, "version", repr(version), "1")
    if not isinstance(experts, int) or not 1 <= experts <= 16:
        raise InputError("E_ARTIFACT", path, "experts", repr(experts), "1 to 16")
    return header


def _shape(path: Path, fields: dict[str, Any]) -> RouterShape:
    known = RouterShape.__dataclass_fields__
    if unknown := sorted(fields.keys() - known.keys()):
        raise InputError("E_ARTIFACT", path, f"router.{unknown[0]}", "an unknown field", ", ".join(known))
    shape = RouterShape(**fields)
    for field, value, allowed in (("scale", shape.scale, ("none", "sqrt")), ("embed", shape.embed, ("own", "tied"))):
        if value not in allowed:
            raise InputError("E_ARTIFACT", path, f"router.{field}", repr(value), " or ".join(allowed))
    if shape.width < 1 or shape.heads < 1 or shape.width % (2 * shape.heads):
        raise InputError("E_ARTIFACT", path, "router.width", f"{shape.width}", f"a multiple of {2 * shape.heads}")
    return shape


def _masks(path: Path, experts: int) -> tuple["torch.Tensor", "torch.Tensor | None"]:
    import torch

    tensors = _tensors(path)
    signatures = tensors.get("sig")
    if signatures is None or signatures.dim() != 2 or signatures.dtype not in (torch.uint8, torch.uint16):
        found = "no such tensor" if signatures is None else f"{signatures.dtype} {list(signatures.shape)}"
        raise InputError("E_MASKS", path, "sig", found, "uint8 or uint16 [layers, channels]")
    signatures = signatures.to(torch.int64)
    if int(signatures.max()) >= 1 << experts:
        raise InputError(
            "E_MASKS", path, "sig", f"a bit of expert {int(signatures.max()).bit_length() - 1}", f"{experts}"
        )
    permutation = tensors.get("perm")
    if permutation is None:
        return signatures, None
    permutation = permutation.to(torch.int64)
    every = torch.arange(signatures.shape[1]).expand(signatures.shape)
    if permutation.shape != signatures.shape or not torch.equal(permutation.sort(dim=1).values, every):
        raise InputError("E_MASKS", path, "perm", f"{list(permutation.shape)}", "each channel of a layer once")
    return signatures, permutation


def _tensors(path: Path) -> dict[str, "torch.Tensor"]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # the library raises its own and OS errors
        raise InputError("E_ARTIFACT", path, "tensors", str(error)[:100], "a safetensors file") from error


def _check_sha256(path: Path, expected: str | None) -> None:
    if expected is not None and (found := sha256_of(path, "E_ARTIFACT")) != expected:
        raise InputError("E_ARTIFACT", path, "sha256", found, str(expected)[:80])


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError("E_ARTIFACT", path, "file", str(error), "a readable file") from error
