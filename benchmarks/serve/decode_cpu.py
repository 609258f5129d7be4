"""Tokens per second of greedy decoding on the processor: llama.cpp with the dense parent, and ours, in turns.

    PYTHONPATH=python python benchmarks/serve/decode_cpu.py --model DIR --text FILE --refactored NAME=DIR ...

`--model`: the dense parent, `--refactored`: refactored models of it (adapters, or with weights of their own),
`--text`: held-out tokens of the parent's vocabulary, uint16 (`outrider data` writes them as tokens/*.test.bin). All
sides write the same number of tokens behind the same prompts from the text. Where `llama_cpp` can be imported,
llama.cpp runs the dense parent in the same rounds, F32 beside f32 and Q8_0 beside int8, with and without flash
attention; the faster of the two is what ours are compared with. "all logits": ours, too, computes every logit of each
step and takes the largest; the texts have to be the same. The machine should be quiet.
"""

import argparse
import contextlib
import importlib.util
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from decode_checks import along, perplexities
from decode_sides import Llama, Ours, greedy
from llama_files import write_llama_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coexec"))
from measure import circumstances, interleave, markdown_table, ratio_with_interval, save, spread

PROMPT = 32
LLAMA_FORMS = {"f32": "f32", "int8": "q8_0"}
COLUMNS = ["weights", "batch", "side", "step_ms", "pass_ms", "tokens_per_second", "spread", "weight_mb", "share_read"]
COLUMNS += ["experts_a_step", "against", "times_as_fast", "times_interval"]


def parent_of(args, folder):
    return args.model if (Path(folder) / "outrider_adapter.safetensors").exists() else ""


def make_sides(args, form, batch, files):
    """Name -> side."""
    context = PROMPT + args.tokens
    sides = {}
    if form in LLAMA_FORMS and importlib.util.find_spec("llama_cpp"):
        path = Path(files) / f"{LLAMA_FORMS[form]}.gguf"
        if not path.exists():
            write_llama_file(args.model, path, LLAMA_FORMS[form])
        sides["llama.cpp"] = Llama(path, args.threads, batch, context, flash_attention=False)
        sides["llama.cpp, flash attention"] = Llama(path, args.threads, batch, context, flash_attention=True)
    for name, folder in [("dense", args.model), *args.refactored]:
        parent = parent_of(args, folder) if folder != args.model else ""
        sides[f"ours, {name}"] = Ours(folder, parent, form, args.threads, batch, context)
        if form != "int8":  # whose head is in whole numbers already
            everything = Ours(folder, parent, form, args.threads, batch, context, all_logits=True)
            sides[f"ours, {name}, all logits"] = everything
    return sides


def rows_of(form, batch, sides, times, texts):
    rivals = [name for name, side in sides.items() if isinstance(side, Llama)] or ["ours, dense"]
    base = min(rivals, key=lambda name: statistics.median(times[name]))
    dense = sides["ours, dense"]
    for name, side in sides.items():
        row = {
            "weights": form,
            "batch": batch,
            "side": name,
            "step_ms": statistics.median(times[name]),
            "tokens_per_second": 1e3 * batch / statistics.median(times[name]),
            "spread": spread(times[name]),
        }
        if name not in rivals:
            row["against"] = base
            row["times_as_fast"], *row["times_interval"] = ratio_with_interval(times[base], times[name])
        if isinstance(side, Ours):
            row["weight_mb"] = statistics.mean(cost["weight_bytes"] for cost in side.costs) / 1e6
            row["share_read"] = 1e6 * row["weight_mb"] / dense.all_bytes
            row["pass_ms"] = 1e3 * statistics.mean(cost["seconds"] for cost in side.costs)
            row["experts_a_step"] = statistics.mean(side.distinct)
        if name == "ours, dense":
            row["tokens_as_rival"] = float((texts[name] == texts[base]).mean())
        if f"{name}, all logits" in texts and not (texts[name] == texts[f"{name}, all logits"]).all():
            raise SystemExit(f"{name}, {form}, batch {batch}: another text than from all logits")
        yield row


def measure(args, text):
    rows = []
    with tempfile.TemporaryDirectory() as files:
        for form in args.formats.split(","):
            for batch in map(int, args.batches.split(",")):
                prompts = [text[b * PROMPT : (b + 1) * PROMPT] for b in range(batch)]
                sides = make_sides(args, form, batch, files)
                texts = {name: greedy(side, prompts, args.tokens)[1] for name, side in sides.items()}  # and warm
                blocks = {
                    name: lambda side=side, prompts=prompts: greedy(side, prompts, args.tokens)[0]
                    for name, side in sides.items()
                }
                rows += rows_of(form, batch, sides, interleave(blocks, args.blocks), texts)
    return rows


def check(args, text):
    """int8 beside f32 of the same model, along a text of its own and over held-out ones."""
    rows = []
    for name, folder in [("dense", args.model), *args.refactored]:
        parent = parent_of(args, folder)
        prompt = text[:PROMPT]
        side = Ours(folder, parent, "f32", args.threads, 1, PROMPT + args.tokens)
        own_text = greedy(side, [prompt], args.tokens)[1][0]
        row = {"side": name, **along(folder, parent, args.threads, prompt, own_text)}
        rows.append(row | {"perplexity": perplexities(folder, parent, args.threads, text, args.windows)})
    return rows


def named(text):
    name, _, folder = text.partition("=")
    return name, folder


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--refactored", type=named, nargs="*", default=[], metavar="NAME=DIR")
    parser.add_argument("--text", required=True, help="uint16 tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--formats", default="f32,bf16,int8")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--windows", type=int, default=8, help="of held-out text for perplexity; 0: no checks of int8")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def versions():
    with contextlib.suppress(ImportError):
        import llama_cpp

        system = llama_cpp.llama_print_system_info().decode().removeprefix("CPU : ").strip(" |")
        on = " ".join(part.split(" = ")[0] for part in system.split(" | ") if part.endswith(" = 1"))
        return {"llama_cpp_python": llama_cpp.__version__, "llama_cpp_built_with": on}
    return {}


def markdown(result):
    about = ", ".join(f"{key} {value}" for key, value in result["circumstances"].items())
    text = f"Generated by `benchmarks/serve/decode_cpu.py`: {about}.\n\n{markdown_table(result['rows'], COLUMNS)}"
    if "int8" in result:
        flat = [{**row, **{f"perplexity_{k}": v for k, v in row["perplexity"].items()}} for row in result["int8"]]
        text += "\nint8 beside f32 of the same model, along the greedy text of f32 and over held-out text:\n\n"
        text += markdown_table(flat, [name for name in flat[0] if name != "perplexity"])
    return text


def main():
    args = parse()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])  # the same processors for all sides
    text = np.fromfile(args.text, np.uint16).astype(np.int32)
    about = {**circumstances(), **versions(), "threads": args.threads, "tokens": args.tokens, "blocks": args.blocks}
    result = {"circumstances": about, "rows": measure(args, text)}
    if args.windows:
        result["int8"] = check(args, text)
    print(markdown(result))
    if args.json:
        save(args.json, result)
        args.json.with_suffix(".md").write_text(markdown(result))


if __name__ == "__main__":
    main()
