"""Tokens per second of greedy decoding on the CPU executor, dense and refactored, in turns; and beside llama.cpp.

    PYTHONPATH=python python benchmarks/serve/decode_cpu.py --model DIR [--adapter DIR] [--threads 2] [--json FILE]

`--model`: the dense parent; `--adapter`: a refactored model for it (or `--artifact`, one with weights of its own).
Where `llama_cpp` can be imported, llama.cpp runs the dense parent in the same rounds, F32 beside f32 and Q8_0 beside
int8, at batch 1. Every side writes the same number of tokens behind the same prompt. The machine should be quiet.
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from llama_files import write_llama_file
from outrider import _core

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coexec"))
from measure import circumstances, interleave, markdown_table, ratio_with_interval, save, spread

PROMPT, PAGE = 32, 16
LLAMA_FORMS = {"f32": "f32", "int8": "q8_0"}


class Ours:
    """`batch` texts that decode together, each behind a prompt of its own."""

    def __init__(self, folder, parent, form, threads, batch, tokens):
        self.batch, self.tokens = batch, tokens
        pages = -(-(PROMPT + tokens) // PAGE)
        self.pages = [np.arange(pages, dtype=np.int32) + pages * b for b in range(batch)]
        self.passes = _core.CpuPasses(
            folder, parent, form, threads=threads, context=PROMPT + tokens, pages=pages * batch, step_tokens=PROMPT
        )
        self.experts = self.passes.shape["experts"]
        self.costs, self.distinct = [], []

    def _route(self, texts, position, previous):
        if not self.experts:
            return [np.zeros(0, np.uint8)] * self.batch
        runs = [
            _core.CpuRoute(ids, position, pages, last)
            for ids, pages, last in zip(texts, self.pages, previous, strict=True)
        ]
        return np.split(self.passes.route(runs), np.cumsum([len(ids) for ids in texts])[:-1])

    def block(self):
        """Milliseconds per step, router and choice of tokens included, the prompt apart."""
        generator = np.random.default_rng(0)
        prompts = [generator.integers(3, self.passes.shape["vocab"], PROMPT, dtype=np.int32) for _ in self.pages]
        experts = self._route(prompts, 0, [-1] * self.batch)
        rows = []
        for ids, chosen, pages in zip(prompts, experts, self.pages, strict=True):
            logits, _ = self.passes.run([_core.PassRun(ids, chosen, 0, pages, PROMPT - 1)])
            rows.append(logits[0])
        costs, distinct = [], []
        start = time.perf_counter()
        for position in range(PROMPT, PROMPT + self.tokens):
            texts = [np.array([row.argmax()], np.int32) for row in rows]
            experts = self._route(texts, position, [int(e[-1]) if len(e) else -1 for e in experts])
            runs = [
                _core.PassRun(ids, chosen, position, pages)
                for ids, chosen, pages in zip(texts, experts, self.pages, strict=True)
            ]
            rows, cost = self.passes.run(runs)
            costs.append(cost)
            distinct.append(len({int(e[0]) for e in experts if len(e)}))
        elapsed = time.perf_counter() - start
        self.costs, self.distinct = costs, distinct
        return 1e3 * elapsed / self.tokens


class Llama:
    """llama.cpp with one text."""

    def __init__(self, path, threads, tokens):
        import llama_cpp

        self.tokens, self.library = tokens, llama_cpp
        self.model = llama_cpp.Llama(
            str(path),
            n_ctx=PROMPT + tokens + 8,
            n_threads=threads,
            n_threads_batch=threads,
            n_gpu_layers=0,
            verbose=False,
        )

    def _best(self):
        pointer = self.library.llama_get_logits_ith(self.model.ctx, -1)
        return int(np.ctypeslib.as_array(pointer, shape=(self.model.n_vocab(),)).argmax())

    def block(self):
        generator = np.random.default_rng(0)
        prompt = generator.integers(3, self.model.n_vocab(), PROMPT, dtype=np.int32)
        self.model.reset()
        self.model.eval(prompt.tolist())
        start = time.perf_counter()
        for _ in range(self.tokens):
            self.model.eval([self._best()])
        return 1e3 * (time.perf_counter() - start) / self.tokens


def make_sides(args, form, batch, files):
    """Name -> side; what llama.cpp runs first."""
    sides = {}
    if batch == 1 and form in LLAMA_FORMS and importlib.util.find_spec("llama_cpp"):
        path = Path(files) / f"{LLAMA_FORMS[form]}.gguf"
        if not path.exists():
            write_llama_file(args.model, path, LLAMA_FORMS[form])
        sides["llama.cpp dense"] = Llama(path, args.threads, args.tokens)
    sides["dense"] = Ours(args.model, "", form, args.threads, batch, args.tokens)
    if args.adapter:
        sides["refactored"] = Ours(args.adapter, args.model, form, args.threads, batch, args.tokens)
    if args.artifact:
        sides["refactored, own weights"] = Ours(args.artifact, "", form, args.threads, batch, args.tokens)
    return sides


def rows_of(form, batch, sides, times):
    base = next(iter(sides))
    for name, side in sides.items():
        row = {
            "weights": form,
            "batch": batch,
            "side": name,
            "step_ms": statistics.median(times[name]),
            "tokens_per_s": 1e3 * batch / statistics.median(times[name]),
            "spread": spread(times[name]),
        }
        if name != base:
            row["against"] = base
            row["times_as_fast"] = ratio_with_interval(times[base], times[name])
        if isinstance(side, Ours):
            row["weight_mb"] = statistics.mean(cost["weight_bytes"] for cost in side.costs) / 1e6
            row["pass_ms"] = 1e3 * statistics.median(cost["seconds"] for cost in side.costs)
            row["experts_a_step"] = statistics.mean(side.distinct)
        yield row


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter")
    parser.add_argument("--artifact")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--formats", default="f32,bf16,int8")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main():
    args = parse()
    rows = []
    with tempfile.TemporaryDirectory() as files:
        for form in args.formats.split(","):
            for batch in map(int, args.batches.split(",")):
                sides = make_sides(args, form, batch, files)
                for side in sides.values():
                    side.block()  # pages touched, caches warm
                times = interleave({name: side.block for name, side in sides.items()}, args.blocks)
                rows += rows_of(form, batch, sides, times)
    columns = ["weights", "batch", "side", "step_ms", "pass_ms", "tokens_per_s", "spread", "weight_mb"]
    print(markdown_table(rows, [*columns, "experts_a_step", "against", "times_as_fast"]))
    if args.json:
        save(args.json, {**circumstances(), "threads": args.threads, "tokens": args.tokens, "rows": rows})


if __name__ == "__main__":
    main()
