"""The import of the real model against an independent GGUF runtime, whose answers are kept as a fixture."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from outrider import _core
from outrider.model_import import fetch_smollm2, import_gguf
from outrider.refactor.errors import InputError

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "gguf_runtime"


RUNS = ("stored", "expanded")


def test_the_fixture_is_what_its_description_says():
    arrays = np.load(FOLDER / "smollm2_135m_q4_1.npz")
    assert arrays["ids"].shape == (2, 1_024) and arrays["ids"].max() < 49_152
    facts = json.loads((FOLDER / "facts.json").read_text())
    for run in RUNS:
        ids, logs, following = (arrays[f"{run}_{name}"] for name in ("ids", "logs", "next"))
        assert ids.shape == logs.shape == (2, 1_024, 5) and following.shape == (2, 1_023)
        logs = logs.astype(np.float64)
        assert (np.diff(logs, axis=-1) <= 0).all() and (logs < 0.01).all() and (np.exp(logs).sum(-1) < 1.01).all()
        assert following.max() <= 0
        assert math.exp(-following.mean(dtype=np.float64)) == pytest.approx(facts["perplexity"][run], rel=1e-6)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 300_000


@pytest.mark.long
def test_our_import_agrees_with_the_runtime(tmp_path):
    try:
        path = fetch_smollm2()
    except InputError as error:
        pytest.skip(f"the model cannot be fetched: {error}")
    import_gguf(path, tmp_path / "model", dtype="float32")
    arrays = np.load(FOLDER / "smollm2_135m_q4_1.npz")
    ids = torch.from_numpy(arrays["ids"].astype(np.int64))
    logs = _core.Model.load(str(tmp_path / "model")).logits(ids).log_softmax(-1)
    best = logs.argmax(-1).numpy()
    ours = -logs[:, :-1].gather(-1, ids[:, 1:, None]).double().mean().item()
    for run, least in (("stored", 0.95), ("expanded", 0.99)):
        agreement = (best == arrays[f"{run}_ids"][..., 0]).mean()
        apart = math.exp(ours + arrays[f"{run}_next"].mean(dtype=np.float64)) - 1
        print(f"\n{run}: {ids.numel()} tokens, {agreement:.2%} equal best tokens, perplexity {apart:+.3%} apart")
        assert agreement >= least, run
        assert abs(apart) <= 0.005, run
