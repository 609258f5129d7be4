"""A tiny refactored model that can be served: random weights, masks and router, a tokenizer of bytes, checksums."""

import copy
from pathlib import Path

from fake_engine import make_folder
from model_fixtures import make_model
from outrider.refactor.artifact import seal
from test_serve_cpu import ROUTERS, VARIANTS, add_experts


def make_artifact(folder: Path, router: str = "own", experts: int = 5) -> Path:
    make_folder(folder)
    config = copy.deepcopy(VARIANTS["llama"])
    config.vocab_size = 259  # of the tokenizer
    make_model(config, folder)
    add_experts(folder, ROUTERS[router], experts=experts, tau=0.1)
    seal(folder)
    return folder
