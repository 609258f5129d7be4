"""`outrider serve` over the double of the engine, for tests of the process: the same arguments, FAKE_TOKEN_S apart."""

import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests" / "support")]

import fake_engine  # noqa: E402


class _Engine(fake_engine.FakeEngine):
    def __init__(
        self,
        folder: str,
        parent: str,
        *,
        device: str,
        weight_format: str = "float32",
        threads: int,
        policy: str,
        kv_tokens: int = 160,
        **options: int,
    ) -> None:
        experts = 0 if Path(folder).name == "dense" else 7
        super().__init__(experts=experts, token_s=float(os.environ.get("FAKE_TOKEN_S", "0")))
        self.info |= {"weight_format": weight_format, "policy": policy, "device": device}
        self.info |= {"threads": threads, "kv_pages": kv_tokens // 16}
        assert set(options) <= {"tpot_goal_ms"}, options
        self.info |= options


core = ModuleType("outrider._core")
core.ServeEngine, core.ServeRejected = _Engine, fake_engine.ServeRejected
core.flush = core.shutdown = lambda: None
sys.modules["outrider._core"] = core

if __name__ == "__main__":
    import outrider
    from outrider import cli

    outrider._core = core
    try:
        cli.main()
    finally:
        heavy = [name for name in ("transformers", "matplotlib", "sklearn") if name in sys.modules]
        print(f"imported: {heavy}", file=sys.stderr)
