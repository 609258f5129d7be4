"""Signatures and expert ids of a refactored model on a text, as `tied_ffn_cuda.py` takes them.

    PYTHONPATH=python python benchmarks/refactor/tied_ffn_inputs.py --adapter python/outrider/shipped/smollm2-135m-75 \\
        --parent MODEL --text DATA/tokens/wikitext2.test.bin --out FOLDER

Writes FOLDER/signatures.npy, uint16 [L, D], and FOLDER/ids.npy, uint8 [T]: texts of 1,024 tokens, one after another.
"""

import argparse
import pathlib

import numpy as np
import torch
from outrider.refactor.artifact import load_artifact
from outrider.refactor.torch_router import TorchRouter, route
from safetensors import safe_open

TEXT = 1_024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=pathlib.Path, required=True)
    parser.add_argument("--parent", type=pathlib.Path, required=True)
    parser.add_argument("--text", type=pathlib.Path, required=True, help="uint16 tokens")
    parser.add_argument("--tokens", type=int, default=4_096)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    artifact = load_artifact(options.adapter)
    table = artifact.router.get("embed.weight")
    if table is None:
        with safe_open(options.parent / "model.safetensors", "pt") as file:
            table = file.get_slice("model.embed_tokens.weight")[:, : artifact.shape.width].float()
    router = TorchRouter(artifact.shape, artifact.experts, artifact.router, table, artifact.folder)
    tokens = torch.from_numpy(np.fromfile(options.text, "<u2", options.tokens).astype(np.int64))
    with torch.no_grad():
        ids = torch.cat([route(router.logits(text[None]), artifact.tau)[0] for text in tokens.split(TEXT)])
    options.out.mkdir(parents=True, exist_ok=True)
    np.save(options.out / "signatures.npy", artifact.signatures.numpy().astype(np.uint16))
    np.save(options.out / "ids.npy", ids.numpy().astype(np.uint8))
    shares = [int((artifact.signatures >> e & 1).sum()) / artifact.signatures.numel() for e in range(artifact.experts)]
    print(f"{len(ids)} tokens, of each expert {torch.bincount(ids, minlength=artifact.experts).tolist()}")
    print(f"shares of the channels {[round(share, 4) for share in shares]}")


if __name__ == "__main__":
    main()
