"""Tokens per second and peak memory of each stage of a refactoring, on random weights and random text of a real shape.

PYTHONPATH=python python benchmarks/refactor/throughput.py --shape smollm2-135m --output throughput.json
PYTHONPATH=python python benchmarks/refactor/throughput.py --shape llama-7b --tune adapter:16 --rows outrider
... --profile ROW prints where the time of one expert step of that row goes
... --rows outrider,coexec --warm-up 16: co-executed steps are recorded three times, run op by op, become graphs, and
smaller graphs where the loss was read in each of them; then they are what they stay
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy
import torch
from outrider import _core
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "coexec"))

from measure import circumstances, save

SHAPES = {
    "smollm2-135m": {"d": 576, "ffn": 1536, "layers": 30, "heads": 9, "kv": 3, "vocab": 49152, "tied": True},
    "llama-7b": {"d": 4096, "ffn": 11008, "layers": 32, "heads": 32, "kv": 32, "vocab": 32000, "tied": False},
    "tiny": {"d": 64, "ffn": 172, "layers": 3, "heads": 4, "kv": 2, "vocab": 512, "tied": True},
}
DOMAINS = 7
ROUTED = {"experts.kind": "coverage", "routing.kind": "router"}
ROWS = {
    "dense": {"experts.kind": "dense", "routing.kind": "none"},
    "static": {"experts.kind": "static", "experts.statistic": "l1_out", "routing.kind": "none"},
    "outrider": ROUTED,
    "distilled": ROUTED | {"teacher": "parent", "distill": 1.0},
    "coexec": ROUTED | {"coexec": True},
    "deterministic": ROUTED | {"deterministic": True},
    "deterministic-coexec": ROUTED | {"deterministic": True, "coexec": True},
    "readme": {"experts.kind": "published", "routing.kind": "router", "router.loss": "code", "router.width": 512,
               "router.scale": "none", "router.embed": "own"},
}  # fmt: skip


def make_model(folder: Path, shape: dict, device: str) -> int:
    """Normal weights of deviation 0.02 in bfloat16, one shard per layer; returns the number of parameters."""
    folder.mkdir()
    head_dim = shape["d"] // shape["heads"]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": shape["d"],
        "intermediate_size": shape["ffn"], "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"], "num_key_value_heads": shape["kv"], "vocab_size": shape["vocab"],
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 1e5, "hidden_act": "silu",
        "tie_word_embeddings": shape["tied"], "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator(device).manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        made = torch.randn(*size, generator=generator, device=device, dtype=torch.float32) * 0.02
        return made.to(torch.bfloat16).cpu()

    d, kv = shape["d"], shape["kv"] * head_dim
    sizes = {"self_attn.q_proj": (d, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d),
             "self_attn.o_proj": (d, d), "mlp.gate_proj": (shape["ffn"], d), "mlp.up_proj": (shape["ffn"], d),
             "mlp.down_proj": (d, shape["ffn"])}  # fmt: skip
    ones = torch.ones(d, dtype=torch.bfloat16)
    shards = [{"model.embed_tokens.weight": draw(shape["vocab"], d), "model.norm.weight": ones}]
    if not shape["tied"]:
        shards[0]["lm_head.weight"] = draw(shape["vocab"], d)
    for layer in range(shape["layers"]):
        shard = {f"model.layers.{layer}.{name}.weight": draw(*size) for name, size in sizes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shard[f"model.layers.{layer}.{norm}.weight"] = ones.clone()
        shards.append(shard)
    weight_map, count = {}, 0
    for number, shard in enumerate(shards):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
        count += sum(tensor.numel() for tensor in shard.values())
    index = {"metadata": {"total_size": 2 * count}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return count


def make_data(folder: Path, vocab: int, tokens: int) -> None:
    """Random tokens, frequent ones more often; documents of 1,000."""
    (folder / "tokens").mkdir(parents=True)
    random = numpy.random.default_rng(0)
    domains = [f"d{number}" for number in range(DOMAINS)]
    splits: dict[str, dict] = {name: {} for name in domains}
    for name in domains:
        for split, count in (("train", tokens), ("valid", tokens // 4), ("test", tokens // 4)):
            ids = (vocab * random.random(count) ** 3).astype("<u2")
            ids.tofile(folder / "tokens" / f"{name}.{split}.bin")
            splits[name][split] = {"tokens": count, "documents": list(range(0, count, 1000))}
    header = {"format": 1, "vocab": vocab, "dtype": "uint16", "domains": domains, "splits": splits}
    (folder / "data.json").write_text(json.dumps(header))


def sync(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else 0


def measure(options: dict, warm_up: int, steps: int, profile: bool) -> dict:
    """Seconds and peak bytes of opening and calibration, tokens/s of router and expert steps (median of `steps`
    behind `warm_up`)."""
    device = options["device"]
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    bench = _core.Workbench.open(json.dumps(options))
    sync(device)
    opened = time.monotonic()
    bench.make_experts()
    sync(device)
    out = {"open_s": opened - started, "experts_s": time.monotonic() - opened, "experts_peak_bytes": peak(device)}
    stages = ["expert"] if options["routing.kind"] == "none" else ["router", "expert"]
    for stage in stages:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        rates = []
        for step in range(warm_up + steps):
            begin = time.monotonic()
            tokens = bench.step(stage, 0, step, warm_up + steps)["tokens"]
            sync(device)
            rates.append(tokens / (time.monotonic() - begin))
        out[f"{stage}_tokens_per_s"] = statistics.median(rates[warm_up:])
        out[f"{stage}_peak_bytes"] = peak(device)
    begin = time.monotonic()
    tokens = sum(d["tokens"] for d in json.loads(bench.evaluate("test", tokens=options["eval_tokens"])).values())
    out["eval_tokens_per_s"] = tokens / (time.monotonic() - begin)
    if profile:
        print_profile(bench, steps)
    return out


def print_profile(bench: object, steps: int) -> None:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as recorded:
        bench.step("expert", 0, 0, steps)
        torch.cuda.synchronize()
    print(recorded.key_averages().table(sort_by="self_cuda_time_total", row_limit=28, max_name_column_width=50))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--tune", default="full")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--micro-batch", default="8", help="one size, or several by commas: each is measured")
    parser.add_argument("--sequence", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=1, help="steps of each stage that are not measured")
    parser.add_argument("--profile", help="a row")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        count = make_model(root / "model", SHAPES[arguments.shape], arguments.device)
        make_data(root / "data", SHAPES[arguments.shape]["vocab"], max(200_000, 20 * arguments.sequence))
        for row in arguments.rows.split(","):
            for micro_batch in map(int, arguments.micro_batch.split(",")):
                options = ROWS[row] | {
                    "model": str(root / "model"), "data": str(root / "data"), "device": arguments.device,
                    "dtype": "bfloat16" if arguments.device == "cuda" else "float32", "tune": arguments.tune,
                    "batch": arguments.batch, "micro_batch": micro_batch, "sequence": arguments.sequence,
                    "eval_tokens": 8 * arguments.sequence, "calibration.samples": 2, "calibration.tokens": 512,
                    "expert.rate": 1e-6,
                }  # fmt: skip
                if arguments.shape == "tiny":
                    options["router.width"] = 32
                measured = measure(options, arguments.warm_up, arguments.steps, row == arguments.profile)
                results.append({"shape": arguments.shape, "parameters": count, "row": row, "tune": arguments.tune,
                                "micro_batch": micro_batch, "sequence": arguments.sequence} | measured)  # fmt: skip
                print(json.dumps(results[-1]), flush=True)
    if arguments.output:
        save(arguments.output, {"circumstances": circumstances(), "rows": kept(arguments.output, results)})


def kept(path: Path, rows: list[dict]) -> list[dict]:
    """`rows` behind those that the file already has of other shapes, rows or sizes."""
    before = json.loads(path.read_text())["rows"] if path.is_file() else []
    names = ("shape", "row", "tune", "micro_batch", "sequence")
    new = {tuple(row[name] for name in names) for row in rows}
    return [row for row in before if tuple(row[name] for name in names) not in new] + rows


if __name__ == "__main__":
    main()
