"""The refactoring demo: every stage on a model and text that every machine has."""

import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import outrider.hf
from outrider.refactor import run as refactoring
from outrider.refactor import smoke
from outrider.refactor.data_set import load_data
from outrider.refactor.domains import from_folder
from outrider.refactor.prepare import Options, prepare
from outrider.refactor.refactor_cli import step_bar
from outrider.refactor.tokenizer import load_tokenizer

TOLERANCE = 1e-3  # nats per token


def run(output: Path) -> int:
    """Exit code: 0 when the written model, run by transformers, has the loss that the card says."""
    out = output / "refactor"
    with tempfile.TemporaryDirectory() as folder:
        data, card = make(out, Path(folder))
        print((out / "quality_card.md").read_text(encoding="utf-8"))
        difference = _difference(out, data, card)
    print(f"The same text through transformers and outrider.hf: {difference:.1e} nats per token apart")
    if not difference <= TOLERANCE:
        print(f"expected at most {TOLERANCE}", file=sys.stderr)
        return 1
    return 0


def make(out: Path, work: Path, rows: tuple[str, ...] = refactoring.DEFAULT_ROWS) -> tuple[Path, dict[str, Any]]:
    """Refactors the small model into `out`; returns the text that was used, a folder in `work`, and the card."""
    out.parent.mkdir(parents=True, exist_ok=True)
    model, text = smoke.make(work / "smoke")
    print(f"Refactoring {model.name} (random weights: the figures only show that everything runs) into {out}")
    data = work / "data"
    prepare(from_folder(text), load_tokenizer(model), data, Options(min_train_tokens=1))
    request = refactoring.Request(model=model, data=data, out=out, rows=rows, force=True)
    with step_bar() as progress:
        return data, refactoring.refactor(request, progress)


def _difference(out: Path, data: Path, card: dict[str, Any]) -> float:
    """Largest distance, over the domains, between the card's loss and that of the folder in an independent program."""
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    routed = outrider.hf.apply(network, out)
    row = next(row for row in card["rows"] if row["name"] == "ours")
    length, limit = refactoring.BUDGETS["cpu-smoke"]["sequence"], refactoring.BUDGETS["cpu-smoke"]["eval_tokens"]
    worst = 0.0
    for name, group in load_data(data).splits.items():
        tokens = torch.from_numpy(group["test"].tokens.astype("int64"))
        windows = (len(tokens) - 1) // length
        used = min(windows, limit // length)
        nats = 0.0
        for window in range(used):
            begin = window * windows // used * length
            piece = tokens[begin : begin + length + 1]
            with torch.no_grad():
                logits = network(input_ids=piece[None, :-1]).logits[0]
            nats += torch.nn.functional.cross_entropy(logits, piece[1:], reduction="sum").item()
        found = nats / (used * length)
        worst = max(worst, abs(found - row["domains"][name]["nats"]))
        if math.isnan(found):
            return math.nan
    routed.remove()
    return worst
