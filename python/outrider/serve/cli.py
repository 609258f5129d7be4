"""`outrider serve`. Nothing heavy is imported before the options are known to be good."""

import atexit
import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from outrider.refactor.cli import input_errors
from outrider.refactor.errors import InputError

PACKAGES = ("fastapi", "jinja2", "prometheus_client", "tokenizers", "uvicorn")


def serve_command(
    model: Annotated[Path, typer.Argument(help="A model folder, refactored or dense.")],
    host: Annotated[str, typer.Option(help="The address to listen on; others than loopback need --api-keys.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0: any free one.", min=0, max=65535)] = 8000,
    parent: Annotated[Path | None, typer.Option(help="The parent of a folder without weights.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    weights: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or int8; default: float32, on cuda bfloat16.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Of the host; 0: one per core, with cuda one less.", min=0)] = 0,
    policy: Annotated[str, typer.Option(help="Which tokens share a step; see docs/guide/serving.md.")] = "outrider",
    tpot_goal_ms: Annotated[int, typer.Option(help="Time per token that steps shall keep; 0: no goal.", min=0)] = 0,
    api_keys: Annotated[Path | None, typer.Option(help="File of hashed keys; without it, loopback only.")] = None,
    share_prefixes: Annotated[bool, typer.Option(help="One prefix cache for all keys; needs --api-keys.")] = False,
    name: Annotated[str | None, typer.Option(help="Of the model in the API; default: the folder's.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Further options of the engine, as NAME=VALUE.")] = None,
    drain_timeout: Annotated[float, typer.Option(help="Seconds that running work has at the end.", min=0)] = 30.0,
) -> None:
    """Serves MODEL over an OpenAI-compatible API until Ctrl-C."""
    ended: list[int] = []
    atexit.register(lambda: _leave_with(*ended) if ended else None)  # before torch registers anything, so after it
    with input_errors():
        _require_packages()
        from outrider.serve import start
        from outrider.serve.server import listen, serve

        logging.basicConfig(level=logging.WARNING, format="outrider: %(levelname)s: %(message)s", stream=sys.stderr)
        options = start.ServeOptions(
            model=model,
            host=host,
            port=port,
            parent=parent,
            device=device,
            weights=weights,
            threads=threads,
            policy=policy,
            api_keys=api_keys,
            share_prefixes=share_prefixes,
            name=name,
            drain_timeout_s=drain_timeout,
            tpot_goal_ms=tpot_goal_ms,
            engine=start.engine_options("outrider serve", option or []),
        )
        options.check()
        inputs = start.read_inputs(options)
        with listen(host, port) as sock:
            engine, rejected = start.open_engine(options)
            state = start.make_state(options, inputs, engine, rejected)
            print(start.greeting(options, state, sock.getsockname()[1]), flush=True)
            code = serve(state, sock)
            ended.append(code)
    raise typer.Exit(code)


def _leave_with(code: int) -> None:
    """Once all else has ended: unloading torch takes an interpreter longer than Ctrl-C may."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _require_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in PACKAGES if not find_spec(name)]
    if missing:
        found = f"{', '.join(missing)} not installed"
        raise InputError(
            "E_USAGE", "outrider serve", "packages", found, "`pip install --no-build-isolation '.[serve]'`"
        )
