"""The same overload over HTTP: a server in a process of its own, and a client that sends requests when they are due."""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from outrider.refactor.errors import InputError
from outrider.serve.replay.figures import percentile
from outrider.serve.replay.load_file import Prepared
from outrider.serve.replay.overload import repeated
from outrider.serve.start import ServeOptions

START_S, ANSWER_S = 120.0, 300.0


def measure(options: ServeOptions, prepared: Prepared, rate: float, seconds: float) -> dict[str, Any]:
    """Seconds from a request to its 429, and how the answers split."""
    load, due_s = repeated(prepared, rate, seconds)
    bodies = [
        json.dumps({"prompt": prompt, "max_tokens": row.written_tokens, "temperature": 0, "stream": True}).encode()
        for prompt, row in zip(load.prompts, load.load.rows, strict=True)
    ]
    with server(options) as port:
        answers = asyncio.run(send_all(port, bodies, due_s))
    refused = [took for status, took in answers if status == 429]
    return {
        "requests": len(answers),
        "answered": sum(status == 200 for status, _ in answers),
        "refused": len(refused),
        "other": sorted({status for status, _ in answers} - {200, 429}),
        "refused_s_mean": sum(refused) / len(refused) if refused else None,
        "refused_s_p99": percentile(refused, 0.99),
        "refused_s_max": max(refused, default=None),
    }


@contextmanager
def server(options: ServeOptions) -> Iterator[int]:
    """`outrider serve` with these options, on a free port.

    Raises:
        InputError: E_SERVER when it does not start.
    """
    words = [sys.executable, "-m", "outrider", "serve", str(options.model), "--port", "0"]
    words += ["--device", options.device, "--threads", str(options.threads), "--policy", options.policy]
    words += ["--weights", options.weights] if options.weights else []
    words += ["--parent", str(options.parent)] if options.parent else []
    for name, value in options.engine.items():
        words += ["--option", f"{name}={json.dumps(value)}"]
    with TemporaryDirectory() as folder, (Path(folder) / "said").open("w") as said:
        process = subprocess.Popen(words, stdout=said, stderr=subprocess.STDOUT)
        try:
            yield _port(process, Path(folder) / "said")
        finally:
            process.terminate()
            process.wait(60)


def _port(process: "subprocess.Popen[bytes]", said: Path) -> int:
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", said.read_text("utf-8")):
            return int(found[1])
        time.sleep(0.1)
    raise InputError("E_SERVER", "outrider serve", "start", said.read_text("utf-8")[-200:], "its address")


async def send_all(port: int, bodies: Sequence[bytes], due_s: Sequence[float]) -> list[tuple[int, float]]:
    """Status of each request, and seconds to its status line; answers are read to their end."""
    started = time.monotonic()

    async def one(body: bytes, due: float) -> tuple[int, float]:
        await asyncio.sleep(max(0.0, due - (time.monotonic() - started)))
        return await asyncio.wait_for(_ask(port, body), ANSWER_S)

    return await asyncio.gather(*(one(body, due) for body, due in zip(bodies, due_s, strict=True)))


async def _ask(port: int, body: bytes) -> tuple[int, float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    try:
        began = time.monotonic()
        writer.write(head.encode() + body)
        await writer.drain()
        line = await reader.readline()
        took = time.monotonic() - began
        while await reader.read(65536):
            pass
        return int(line.split()[1]), took
    finally:
        writer.close()
