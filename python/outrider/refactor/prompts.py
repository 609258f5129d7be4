"""Short factual prompts with the answers that SmolLM2-135M-Instruct gives greedily: a quick look at what tuning kept.

They are beginnings of sentences, without a chat template. No measure of quality: the parent answers all of them right
by selection.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Prompt:
    text: str
    answer: str

    def answered_by(self, continuation: str) -> bool:
        """Whether the continuation begins with the answer as a whole word; leading white space does not count."""
        rest = continuation.lstrip()
        return rest.startswith(self.answer) and not rest[len(self.answer) : len(self.answer) + 1].isalnum()


def load_prompts() -> list[Prompt]:
    """All prompts that come along, in the order of their file."""
    text = resources.files("outrider.refactor").joinpath("prompts.jsonl").read_text(encoding="utf-8")
    return [Prompt(**json.loads(line)) for line in text.splitlines()]


def answered(generate: Callable[[str], str], prompts: list[Prompt]) -> list[bool]:
    """Which prompts are answered right; `generate` continues a text greedily by a few tokens."""
    return [prompt.answered_by(generate(prompt.text)) for prompt in prompts]
