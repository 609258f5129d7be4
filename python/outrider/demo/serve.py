"""The serving demo: a server on this machine, asked through OpenAI's own client."""

import contextlib
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outrider.refactor.artifact import HEADER
from outrider.refactor.errors import InputError

QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Give me three tips for sleeping well.",
)
ANSWER_TOKENS = 60
START_S = 120.0
END_S = 10.0
COLOURS = (
    "cyan",
    "magenta",
    "yellow",
    "green",
    "blue",
    "red",
    "bright_cyan",
    "bright_magenta",
    "bright_yellow",
    "white",
)


@dataclass(frozen=True)
class DemoModel:
    folder: Path
    parent: Path | None = None

    @property
    def arguments(self) -> list[str]:
        return [str(self.folder), *(["--parent", str(self.parent)] if self.parent else [])]


def demo_model(output: Path) -> DemoModel:
    """The shipped adapter beside its parent, or the parent as it is; without a network the small model of a demo."""
    from outrider.demo.real_model import imported, shipped_adapter
    from outrider.model_import import cache_folder, fetch_smollm2

    try:
        parent = imported(fetch_smollm2(), cache_folder() / "smollm2-135m")
    except InputError as error:
        print(f"The real model is left out: {error}")
        return DemoModel(small_model(output))
    adapter = shipped_adapter()
    if adapter is not None:
        return DemoModel(adapter, parent)
    print("No tuned experts of the real model come along: it is served dense.")
    return DemoModel(parent)


def small_model(output: Path) -> Path:
    """The refactored model of the refactoring demo; made where it is missing."""
    if not (output / "refactor" / HEADER).is_file():
        from outrider.demo.refactor import make

        print("A small model of random weights is refactored first; what it writes makes no sense.")
        with tempfile.TemporaryDirectory() as work:
            make(output / "refactor", Path(work), rows=("ours",))
    return output / "refactor"


def run(output: Path, command: Sequence[str] = (sys.executable, "-m", "outrider")) -> int:
    """Exit code: that of the server, which ends when the questions are answered."""
    model = demo_model(output)
    with server([*command, "serve", *model.arguments, "--port", "0"]) as (process, url):
        for question in QUESTIONS:
            ask(url, question)
        process.terminate()
        code = process.wait(END_S)
    print(f"\nThe server ended with exit code {code}")
    return code


@contextlib.contextmanager
def server(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen, str]]:
    """Starts one and waits until it has said where it listens; yields the process and that URL.

    Raises:
        InputError: E_SERVE when it ends before.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        late = threading.Timer(START_S, process.kill)
        late.start()
        try:
            assert process.stdout is not None
            found = None
            for line in process.stdout:
                print(line, end="", flush=True)
                found = re.match(r"(http://\S+/v1)\b", line)
                if found:
                    break
            late.cancel()
            if found is None:
                raise InputError("E_SERVE", " ".join(command[-4:]), "start", "no address", "a server that listens")
            yield process, found[1]
        finally:
            late.cancel()
            process.kill()


def ask(url: str, question: str) -> dict[str, int]:
    """Prints a question and its answer while it comes, each piece in the colour of its expert; returns its usage."""
    import openai
    from rich.console import Console

    console = Console(highlight=False)
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
    model = client.models.list().data[0].id
    console.print(f"\n[bold]{question}[/bold]")
    extra: dict[str, Any] = {"max_tokens": ANSWER_TOKENS, "temperature": 0, "stream": True}
    extra |= {"stream_options": {"include_usage": True}, "extra_body": {"outrider": {"experts": True}}}
    started, first, usage, experts = time.monotonic(), None, None, set()
    for chunk in _stream(client, model, question, extra):
        usage = chunk.usage or usage
        for text, expert in (chunk.model_extra or {}).get("outrider", {}).get("pieces", ()):
            first = first or time.monotonic()
            experts.add(expert)
            style = None if expert is None else COLOURS[expert % len(COLOURS)]
            console.out(text, style=style, end="", highlight=False)
    last = time.monotonic()
    written = usage.completion_tokens if usage else 0
    rate = (written - 1) / max(last - (first or last), 1e-9) if written > 1 else 0.0
    used = f", {len(experts - {None})} experts" if experts - {None} else ""
    to_first = 1000 * ((first or last) - started)
    console.print(f"\n{written} tokens{used}, first after {to_first:.0f} ms, then {rate:.1f} tokens/s", style="dim")
    return {"written": written, "experts": len(experts - {None})}


def _stream(client: Any, model: str, question: str, extra: dict[str, Any]) -> Any:
    """Through the chat template where the model has one."""
    import openai

    try:
        return client.chat.completions.create(model=model, messages=[{"role": "user", "content": question}], **extra)
    except openai.BadRequestError as error:
        if error.code != "no_chat_template":
            raise
        return client.completions.create(model=model, prompt=question, **extra)
