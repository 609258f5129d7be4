"""The refactoring demo on a real model: parent, untuned static prune and the shipped adapter, side by side."""

import json
import shutil
import time
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from outrider.generate_cli import load_text_tokenizer, prompt_ids
from outrider.model_import import cache_folder, fetch_smollm2, import_gguf
from outrider.refactor.artifact import HEADER
from outrider.refactor.atomic import write_file
from outrider.refactor.errors import InputError
from outrider.refactor.prompts import load_prompts
from outrider.refactor.prompts_cli import answer_prompts
from outrider.refactor.self_text import SelfOptions, write_self_text

SHIPPED = "smollm2-135m-75"
ACTIVE = 0.75
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Give me three tips for sleeping well.",
    "Write two sentences about autumn.",
)
ANSWER_TOKENS = 40
PROMPTS = 12  # spread over the list
OWN_TOKENS = 3_000  # of the parent's own text, to calibrate the static prune on
DTYPE = "bfloat16"


@dataclass
class Side:
    """One model of the comparison."""

    name: str
    model: Any
    answers: list[str] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    prompts: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def shipped_adapter() -> Path | None:
    """The folder of the adapter that comes along with the package; None when this version has none."""
    folder = Path(str(resources.files("outrider"))) / "shipped" / SHIPPED
    return folder if (folder / HEADER).is_file() else None


def run(output: Path) -> int:
    """Exit code: 0 also where the real model cannot be had, which is said."""
    try:
        gguf = fetch_smollm2()
    except InputError as error:
        print(f"The comparison on the real model is left out: {error}")
        return 0
    from outrider import _core

    parent = imported(gguf, cache_folder() / "smollm2-135m")
    tokenizer = load_text_tokenizer(parent)
    sides = [Side("parent", _core.Model.load(str(parent), DTYPE))]
    static = static_prune(parent, output / "real")
    sides.append(
        Side(f"static prune, {ACTIVE:.0%} of each FFN, untuned", _core.Model.load_routed(str(static), "", DTYPE))
    )
    adapter = shipped_adapter()
    if adapter is None:
        print("No tuned adapter comes along with this version: only the parent and its static prune are shown.")
    else:
        routed = _core.Model.load_routed(str(adapter), str(parent), DTYPE)
        sides.append(Side(f"ours, {ACTIVE:.0%} of each FFN, with the adapter", routed))
    compare(sides, tokenizer)
    shutil.rmtree(static)
    result = {side.name: {"answers": side.answers, "tokens_per_s": side.rate, **side.prompts} for side in sides}
    write_file(output / "real" / "answers.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(f"All answers: {output / 'real' / 'answers.json'}")
    return 0


def imported(gguf: Path, folder: Path) -> Path:
    """The model folder of the fetched file; made once."""
    if not folder.is_dir():
        print(f"Importing {gguf.name} into {folder}")
        import_gguf(gguf, folder, dtype="bfloat16")
    return folder


def static_prune(parent: Path, work: Path) -> Path:
    """The parent with one mask for all tokens, chosen on text that the parent writes; a folder for the core."""
    from outrider import _core

    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    started = time.monotonic()
    options = SelfOptions(tokens=OWN_TOKENS, text_share=0, length=128, dtype=DTYPE, rows=64)
    print(f"The parent writes {OWN_TOKENS} tokens of its own, to choose the channels of a static prune", flush=True)
    summary = write_self_text(parent, work / "text", options)
    tokens = sum(split["tokens"] for splits in summary["splits"].values() for split in splits.values())
    print(f"{tokens} tokens in {time.monotonic() - started:.0f} s", flush=True)
    bench = _core.Workbench.open(
        json.dumps(
            {
                "model": str(parent),
                "data": str(work / "text"),
                "experts.kind": "static",
                "experts.statistic": "l1_out",
                "experts.keep": ACTIVE,
                "routing.kind": "none",
                "calibration.samples": 4,
                "calibration.tokens": 128,
                "sequence": 16,
                "dtype": DTYPE,
            }
        )
    )
    bench.make_experts()
    bench.export(str(work / "static"))
    shutil.rmtree(work / "text")
    return work / "static"


def compare(sides: list[Side], tokenizer: Any) -> None:
    """Lets every side answer, and prints what it says, how fast, and how many short prompts it still answers."""
    for question in QUESTIONS:
        print(f"\n{question}")
        ids = prompt_ids(tokenizer, question, chat=True)
        for side in sides:
            answer = _answer(side, tokenizer, ids)
            side.answers.append(answer)
            print(f"  {side.name}:\n    " + "\n    ".join(answer.strip().splitlines()), flush=True)
    prompts = load_prompts()
    some = prompts[:: len(prompts) // PROMPTS][:PROMPTS]
    print()
    for side in sides:
        side.prompts = answer_prompts(side.model, tokenizer, some)
        agreed = side.prompts["agreed"]
        print(
            f"{side.name}: {side.rate:.1f} tokens/s, {agreed} of {len(some)} short factual prompts answered", flush=True
        )


def _answer(side: Side, tokenizer: Any, ids: list[int]) -> str:
    made: list[int] = []
    started = time.monotonic()
    side.model.generate(ids, made.append, ANSWER_TOKENS, side.model.end_ids)
    side.seconds += time.monotonic() - started
    side.tokens += len(made)
    return tokenizer.decode(made, skip_special_tokens=True)
