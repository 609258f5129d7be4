"""The ways to run a form of the step: eager, co-executed, and as device graphs captured by hand."""

import statistics
import time
import warnings

import outrider
import torch
from bridge_model import State
from bridge_routes import groups_of
from bridge_step import Decoder
from outrider import _runtime

WARM_RUNS = 2  # before a capture, so that libraries have their workspaces


class Side:
    """One form in one mode: its own state and caches, and the plan that the next step starts with."""

    def __init__(self, form, mode, model, batch, routes):
        self.mode, self.model = mode, model
        self.decoder = Decoder(form, model, State(model, batch, routes))
        self.plan = self.decoder.first_plan(routes)
        self.call = self.decoder.step
        if mode == "coexec":
            self.call = outrider.coexec(self.decoder.step, name=f"{form}-{batch}")
        elif mode == "graph":
            self.call = GraphStep(self.decoder)
            with torch.no_grad():  # no capture is timed
                for groups in {groups_of(ids) for ids in routes}:
                    self.call.prepare(groups)
        self.host_reads = None
        self.cuda_syncs = None

    def step(self):
        """Decodes one token a row and returns the sampled tokens."""
        with torch.no_grad():
            tokens, self.plan = self.call(self.plan)
        return tokens

    def wait(self):
        """Waits for everything that was handed over, to coexec or to the device."""
        if self.mode == "coexec":
            outrider.flush()
        if self.model.device == "cuda":
            torch.cuda.synchronize()

    def block(self, steps):
        """Milliseconds per step of a block, work at its end included."""
        self.wait()
        reads = self.decoder.read.count
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        self.wait()
        elapsed_ms = (time.perf_counter() - start) * 1e3 / steps
        self.host_reads = (self.decoder.read.count - reads) / steps
        self.leave()
        return elapsed_ms

    def leave(self):
        """Ends what coexec keeps open between steps, so that another side's steps do not count as the program's."""
        if self.mode == "coexec":
            _runtime.core().leave()

    def count_cuda_syncs(self, steps):
        """Synchronising calls per step that torch's own debug mode sees in this thread; eager and graph only."""
        if self.model.device != "cuda" or self.mode == "coexec":
            return
        self.wait()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                for _ in range(steps):
                    self.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        self.cuda_syncs = sum("synchroniz" in str(warning.message) for warning in caught) / steps


class GraphStep:
    """The pre-gated step as CUDA graphs captured by hand, one per plan. Capturing changes no state."""

    def __init__(self, decoder):
        if decoder.form != "pregated":
            raise ValueError(f"a graph without reads needs the form pregated, not {decoder.form}")
        self.decoder, self.graphs, self.pool = decoder, {}, None

    def __call__(self, groups):
        self.prepare(groups)
        graph, answer, self.decoder.state.logits = self.graphs[groups]
        graph.replay()
        tokens, ids = self.decoder.read(answer)
        return tokens, groups_of(ids)

    def prepare(self, groups):
        """Captures the graph of a plan unless it exists."""
        if groups not in self.graphs:
            self.graphs[groups] = self._capture(groups)

    def _capture(self, groups):
        changed = self.decoder.state.changed()
        kept = [tensor.clone() for tensor in changed]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_RUNS):
                self.decoder.body(groups)
        torch.cuda.current_stream().wait_stream(stream)
        for tensor, value in zip(changed, kept, strict=True):
            tensor.copy_(value)
        torch.cuda.synchronize()
        del kept
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            answer = self.decoder.body(groups)
        self.pool = self.pool or graph.pool()
        return graph, answer, self.decoder.state.logits


def coexec_columns(rows):
    """What coexec reports of the timed steps; None everywhere for other modes."""
    names = ("covered_share", "fetches", "host_ms", "host_wait_ms", "runner_ms", "outer_share", "recorded_steps")
    if not rows:
        return dict.fromkeys((*names, "diverged_steps", "reasons"))
    median = statistics.median
    reasons = {divergence["code"] for row in rows for divergence in row["divergences"]}
    reasons |= {row["note"].split(":")[0] for row in rows if row["note"]}
    return {
        "covered_share": sum(r["covered_ops"] for r in rows) / max(1, sum(r["device_ops"] for r in rows)),
        "fetches": statistics.fmean(r["fetches"] for r in rows),
        "host_ms": median(r["host_us"] - r["host_wait_us"] for r in rows) / 1e3,
        "host_wait_ms": median(r["host_wait_us"] for r in rows) / 1e3,
        "runner_ms": median(r["runner_busy_us"] for r in rows) / 1e3,
        "outer_share": sum(r["lane"] == "outer" for r in rows) / len(rows),
        "recorded_steps": sum(r["recorded"] for r in rows),
        "diverged_steps": sum(bool(r["divergences"]) for r in rows),
        "reasons": ", ".join(sorted(reasons)),
    }
