"""What `outrider serve` does before the first request: options, checks, engine, the lines that it prints."""

import json
import math
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outrider.refactor.artifact import HEADER, MASKS, SUM, check_files, check_parent
from outrider.refactor.errors import InputError
from outrider.refactor.sums import check_sums
from outrider.serve.access import is_loopback
from outrider.serve.auth import Keys
from outrider.serve.hub import EngineHub
from outrider.serve.metrics import Metrics
from outrider.serve.state import ServeState
from outrider.serve.tokens import ServeTokenizer

# Of the engine's `info`, what the first lines show.
SHOWN = (
    "device",
    "threads",
    "kv_pages",
    "kv_page_tokens",
    "decode_tokens",
    "prefill_tokens",
    "distinct_experts",
    "running_max",
)
SHOWN += ("queued_max", "prefix_cache", "tpot_goal_ms")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class ServeOptions:
    """One field per flag of `outrider serve`."""

    model: Path
    host: str = "127.0.0.1"
    port: int = 8000
    parent: Path | None = None
    device: str = "cpu"
    weights: str | None = None  # what the device takes best
    threads: int = 0
    policy: str = "outrider"
    tpot_goal_ms: int = 0
    api_keys: Path | None = None
    share_prefixes: bool = False
    name: str | None = None
    drain_timeout_s: float = 30.0
    layer_router: Path | None = None  # a baseline: experts by layer, instead of the router of the folder
    engine: dict[str, int | float | bool] = field(default_factory=dict)  # further keywords of `_core.ServeEngine`
    loaded: Any = None  # of `load_model`: engines share it, instead of reading the folder each

    def check(self, command: str = "outrider serve") -> None:
        """Raises InputError for what can be seen before the model is read."""
        if self.device not in DEVICES:
            raise InputError("E_USAGE", command, "--device", self.device, "cpu or cuda")
        if self.device == "cuda" and self.weights not in (None, "bfloat16"):
            expected = "bfloat16 with --device cuda, or --device cpu"
            raise InputError("E_USAGE", command, "--weights", self.weights, expected)
        if self.api_keys is None and not is_loopback(self.host):
            found = f"{self.host} without API keys"
            raise InputError("E_USAGE", "outrider serve", "--host", found, "127.0.0.1, or --api-keys FILE")
        if self.share_prefixes and self.api_keys is None:
            expected = "--api-keys FILE beside it: without keys all texts share one prefix cache"
            raise InputError("E_USAGE", "outrider serve", "--share-prefixes", "no API keys", expected)
        if not (self.model / "config.json").is_file() and not (self.model / HEADER).is_file():
            raise InputError("E_READ", self.model, "model", "neither config.json nor a refactored model", "its folder")

    def machine(self) -> dict[str, str]:
        """Device and format of the weights."""
        best = "bfloat16" if self.device == "cuda" else "float32"
        return {"device": self.device, "weights": self.weights or best}

    @property
    def served_name(self) -> str:
        return self.name or self.model.resolve().name


@dataclass(frozen=True)
class Inputs:
    """What can be read, and be wrong, before the engine reads the weights."""

    tokenizer: ServeTokenizer
    keys: Keys | None


def read_inputs(options: ServeOptions) -> Inputs:
    """Raises InputError."""
    check_checksums(options)
    return Inputs(tokenizer_of(options), Keys(options.api_keys) if options.api_keys else None)


def check_checksums(options: ServeOptions) -> None:
    """Of a refactored or imported model: a damaged file ends the start, it never writes a wrong token.

    Raises:
        InputError: E_ARTIFACT, or E_MODEL for an imported folder.
    """
    if any((options.model / name).exists() for name in (HEADER, MASKS, SUM)):
        check_files(options.model)
    for folder in (options.model, options.parent):
        if folder is not None:
            check_sums(folder)


def tokenizer_of(options: ServeOptions) -> ServeTokenizer:
    """That of the folder, or of its parent where the folder has none.

    Raises:
        InputError: E_USAGE, E_TOKENIZER.
    """
    check_parent(options.model, options.parent)
    own = (options.model / "tokenizer.json").is_file() or options.parent is None
    return ServeTokenizer(options.model if own else options.parent)  # type: ignore[arg-type]


def load_model(options: ServeOptions) -> Any:
    """The model read once, for several engines: put it into `loaded`."""
    from outrider import _runtime

    return _runtime.core().ServeModel(str(options.model), **_source(options))


def _source(options: ServeOptions) -> dict[str, str]:
    check_parent(options.model, options.parent)
    given = {"parent": str(options.parent or ""), "device": options.device}
    if options.weights:
        given["weight_format"] = options.weights
    if options.layer_router:
        given["layer_router"] = str(options.layer_router)
    return given


def open_engine(options: ServeOptions) -> tuple[Any, type[Exception]]:
    """The native engine, and the exception by which it refuses requests."""
    from outrider import _runtime

    core = _runtime.core()
    given: dict[str, Any] = {"threads": options.threads, "policy": options.policy}
    if options.loaded is None:
        given |= _source(options)
    if options.tpot_goal_ms:
        given["tpot_goal_ms"] = options.tpot_goal_ms
    try:
        engine = core.ServeEngine(options.loaded or str(options.model), **given, **options.engine)
    except TypeError as error:
        expected = "whole numbers, true or false for " + ", ".join(core.serve_option_names())
        found = str(error).removeprefix("ServeEngine: ")
        raise InputError("E_OPTION", "outrider serve", "--option", found, expected) from None
    return engine, core.ServeRejected


def engine_options(command: str, given: list[str]) -> dict[str, int | float | bool]:
    """NAME=VALUE pairs, VALUE a number, `true` or `false`; raises InputError E_OPTION."""
    options: dict[str, int | float | bool] = {}
    for pair in given:
        name, _, value = pair.partition("=")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = math.nan
        if not name.isidentifier() or not isinstance(options[name], int | float) or options[name] != options[name]:
            raise InputError("E_OPTION", command, "--option", repr(pair), "NAME=NUMBER, =true or =false")
    return options


def make_state(options: ServeOptions, inputs: Inputs, engine: Any, rejected: type[Exception]) -> ServeState:
    """Raises InputError E_VOCAB for a tokenizer that is not the model's."""
    tokenizer, info = inputs.tokenizer, engine.info
    if tokenizer.vocab > info["vocab"]:
        expected = f"at most the {info['vocab']} rows of the embedding"
        raise InputError("E_VOCAB", options.model, "tokenizer", f"{tokenizer.vocab} entries", expected)
    labels = {name: str(info[name]) for name in ("device", "policy", "weight_format", "experts", "context")}
    return ServeState(
        name=options.served_name,
        folder=options.model,
        tokenizer=tokenizer,
        hub=EngineHub(engine, rejected),
        metrics=Metrics(engine.stats, {"model": options.served_name, **labels}),
        keys=inputs.keys,
        share_prefixes=options.share_prefixes,
        drain_timeout_s=options.drain_timeout_s,
    )


def greeting(options: ServeOptions, state: ServeState, port: int) -> str:
    """What is served and where, and a line to paste."""
    info = state.info
    host = f"[{options.host}]" if ":" in options.host else options.host
    base = f"http://{host}:{port}"
    kind = f"{info['experts']} experts" if info["experts"] else "dense"
    lines = [
        f"{state.name}: {kind}, {info['weight_format']}, context {info['context']}, policy {info['policy']}",
        ", ".join(f"{name} {info[name]}" for name in SHOWN if name in info),
        f"{base}/v1  (a page to try it: {base}/)",
        "",
        _curl(state, base),
        "",
    ]
    if not info["experts"]:
        note = f"`outrider refactor {shlex.quote(str(options.model))}` makes a Mixture-of-Experts of it."
        lines.insert(1, f"This is a dense model: each token reads all of its FFN. {note}")
    return "\n".join(lines)


def _curl(state: ServeState, base: str) -> str:
    if state.tokenizer.has_template:
        path, body = "chat/completions", {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    else:
        path, body = "completions", {"prompt": "The capital of France is"}
    text = json.dumps({"model": state.name, **body, "max_tokens": 40, "temperature": 0})
    key = ' -H "Authorization: Bearer $OUTRIDER_API_KEY"' if state.keys else ""
    return f"curl {base}/v1/{path} -H 'Content-Type: application/json'{key} -d {shlex.quote(text)}"
