"""Runs rows through the core, each in a folder of its own, so that a stopped call goes on where it ended."""

import json
import math
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from outrider import _core
from outrider.refactor.atomic import write_file
from outrider.refactor.run import last_checkpoint
from row_table import Plan, Row, teacher_of

# Loading, evaluation and files of a row lie outside the time that the core itself watches.
RESERVE_S = 20.0
TAUS = "0,0.5,1,2,4"


@dataclass
class Clock:
    """Seconds of one call; 0 is no limit."""

    limit_s: float
    begin: float

    def left(self) -> float:
        return math.inf if self.limit_s <= 0 else self.limit_s - (time.monotonic() - self.begin)


class Runner:
    """`work` keeps models, logs and results of all rows; `log` takes one line at a time.

    Rows whose key is in `kept` keep their last checkpoint, for scores on tasks.
    """

    def __init__(
        self, plan: Plan, work: Path, clock: Clock, log: Callable[[str], None], kept: frozenset[str] = frozenset()
    ) -> None:
        self.plan, self.work, self.clock, self.log, self.kept = plan, work, clock, log, kept

    def folder(self, row: Row) -> Path:
        return self.work / "rows" / self.plan.identity(row)

    def model_of(self, row: Row) -> Path:
        return self.folder(row) / "model"

    def result(self, row: Row) -> dict[str, Any] | None:
        """What a finished row found; None while it is not finished."""
        path = self.folder(row) / "result.json"
        return json.loads(path.read_text()) if path.exists() else None

    def spent(self, row: Row) -> dict[str, Any]:
        """`wall_seconds` of all calls, and the largest `peak_bytes` of one."""
        path = self.folder(row) / "spent.json"
        return json.loads(path.read_text()) if path.exists() else {"wall_seconds": 0.0, "peak_bytes": 0}

    def run(self, row: Row) -> bool:
        """False when the time ended first. A finished row is not run again.

        Raises:
            ValueError: an error line of the core.
        """
        if self.result(row) is not None:
            self.log(f"{row.key}: finished before")
            return True
        seconds = self.clock.left() - RESERVE_S
        if seconds <= 0:
            return False
        options = {"seconds_max": 0 if math.isinf(seconds) else seconds, **self.options(row)}
        begin = time.monotonic()
        _reset_peak(self.plan.device)
        done = json.loads(_core.refactor(json.dumps(options), self._progress(row)))["done"]
        self._note(row, time.monotonic() - begin)
        if done:
            last = last_checkpoint(self.folder(row)) if row.key in self.kept else None
            for path in self.folder(row).glob("checkpoint-*.safetensors"):
                if path != last:
                    path.unlink()
        self.log(f"{row.key}: {'finished' if done else 'stopped'} after {time.monotonic() - begin:.0f} s")
        return done

    def options(self, row: Row) -> dict[str, Any]:
        teacher = teacher_of(row)
        return {
            "checkpoint_steps": 1_000_000,
            "eval_taus": TAUS if row.routed else "",
            **self.plan.options(row, str(self.model_of(teacher)) if teacher else None),
            "out": str(self.folder(row)),
            "write_model": True,
        }

    def bench(self, row: Row | None) -> _core.Workbench:
        """A finished row as its last checkpoint has it; None: the untouched parent.

        Raises:
            InputError: E_READ when the checkpoint was not kept.
        """
        if row is not None:
            path = last_checkpoint(self.folder(row))
            bench = _core.Workbench.open(json.dumps(self.options(row)))
            bench.restore(str(path))
            return bench
        dense = Row("outrider", "dense-cont", 1.0, {"experts.kind": "dense", "routing.kind": "none"})
        bench = _core.Workbench.open(json.dumps(self.plan.options(dense, None)))
        bench.make_experts()
        return bench

    def scores(self, row: Row | None) -> Path:
        """Where the scores of a row on tasks are kept."""
        return self.folder(row) / "tasks.json" if row else self.work / "parent-tasks.json"

    def parent(self) -> dict[str, Any]:
        """Losses of the untouched model, {split: {domain: ...}}; measured once."""
        path = self.work / f"parent-{self.plan.sequence}-{self.plan.eval_tokens}.json"
        if path.exists():
            return json.loads(path.read_text())
        bench = self.bench(None)
        splits = ("valid", "test", "unseen")
        found = {s: json.loads(bench.evaluate(s, all_channels=True, tokens=self.plan.eval_tokens)) for s in splits}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(found) + "\n")
        return found

    def sweep(self, row: Row, rates: list[float], tokens: int) -> list[dict[str, Any]] | None:
        """Geometric mean of perplexities on valid after `tokens` tokens at each rate; None when the time ended."""
        found = []
        for rate in rates:
            changes = (*self.plan.changes, ("*", "expert.rate", rate))
            # The teacher is the one of the whole plan, not one of the sweep.
            short = _SweepRunner(replace(self.plan, tokens=tokens, changes=changes), self)
            if not short.run(row):
                return None
            result = short.result(row)
            assert result is not None
            found.append({"row": row.key, "rate": rate, "tokens": tokens, "valid_ppl_geomean": valid_mean(result)})
            self.log(f"{row.key}: rate {rate:g}: {found[-1]['valid_ppl_geomean']:.3f} on valid")
        return found

    def _progress(self, row: Row) -> Callable[[dict[str, Any]], None]:
        def report(step: dict[str, Any]) -> None:
            if step["step"] + 1 == step["steps"] or step["position"] % 50 == 0:
                place = f"{step['position']} of {step['positions']}"
                self.log(
                    f"{row.key}: {step['stage']} {place}: {step['loss']:.4f}, {step['tokens_per_s']:,.0f} tokens/s"
                )

        return report

    def _note(self, row: Row, seconds: float) -> None:
        before = self.spent(row)
        peak = max(before["peak_bytes"], _peak_bytes(self.plan.device))
        spent = {"wall_seconds": before["wall_seconds"] + seconds, "peak_bytes": peak}
        write_file(self.folder(row) / "spent.json", json.dumps(spent) + "\n")


class _SweepRunner(Runner):
    """Short runs beside those of another plan, whose teachers they use; their models are not kept."""

    def __init__(self, plan: Plan, whole: Runner) -> None:
        super().__init__(plan, whole.work / "sweep", whole.clock, whole.log)
        self._whole = whole

    def model_of(self, row: Row) -> Path:
        return self._whole.model_of(row)

    def run(self, row: Row) -> bool:
        done = super().run(row)
        shutil.rmtree(self.folder(row) / "model", ignore_errors=True)
        return done


def valid_mean(result: dict[str, Any]) -> float:
    """Geometric mean of the domains' perplexities on valid."""
    domains = result["eval"]["valid"]["refactored"].values()
    return math.exp(math.fsum(d["nats"] / d["tokens"] for d in domains) / len(domains))


def seconds_of(folder: Path) -> dict[str, float]:
    """Seconds of the optimizer steps of each kind of stage, from the log of a row."""
    total = {"router": 0.0, "expert": 0.0}
    path = folder / "log.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        step = json.loads(line)
        total[step["stage"]] += step["seconds"]
    return total


def _reset_peak(device: str) -> None:
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_bytes(device: str) -> int:
    """Of the GPU's allocator since the last reset; on the CPU of the whole process since it began."""
    if device != "cpu":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
