"""Serving on the device: both paths against plain operators, bits against cuts and neighbours, the server itself."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from outrider import _core
from served_process import greeting_of

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).resolve().parents[2]

BASE = {"layers": 2, "width": 512, "heads": 8, "kv_heads": 2, "ffn": 1536, "vocab": 1000, "context": 1024}
SHAPES = {
    "heads of 64": {},
    "heads of 128": {"width": 1024, "heads": 8, "kv_heads": 8},
    "heads of 32": {"heads": 16, "kv_heads": 4},
    "window": {"window": 100},
    "three heads of keys": {"width": 576, "heads": 9, "kv_heads": 3},
}
TOKENS, PROMPT = 530, 500
TOLERANCE = 0.03  # of the largest logit; bf16 rounds in other places


class Text:
    def __init__(self, experts: int, pages, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.ids = generator.integers(0, BASE["vocab"], TOKENS, dtype=np.int32)
        self.experts = generator.integers(0, experts, TOKENS, dtype=np.uint8) if experts else np.zeros(0, np.uint8)
        self.pages = np.array(pages, np.int32)

    def piece(self, first: int, count: int, prompt: int, logits_from: int = 0):
        part = slice(first, first + count)
        own = min(max(prompt - first, 0), count)
        return _core.PassRun(self.ids[part], self.experts[part], first, self.pages, logits_from, own)


def passes_of(shape: dict, experts: int, **form):
    torch.manual_seed(3)
    weights = _core.GpuWeights(**(BASE | shape))
    generator = np.random.default_rng(5)
    draw = lambda: generator.integers(1, 1 << experts, BASE["ffn"], dtype=np.uint16)  # noqa: E731
    packed = _core.GpuModel(weights, experts, [draw() for _ in range(BASE["layers"])] if experts else [])
    return [_core.GpuPasses(packed, pages=120, step_tokens=1100, **one) for one in ({}, {"reference": True})]


def in_pieces(passes, text: Text, other: Text, size: int) -> np.ndarray:
    """Logits of the text run in pieces, each between some tokens of another prompt and of another text."""
    rows = []
    for first in range(0, TOKENS, size):
        count = min(size, TOKENS - first)
        runs = [other.piece(0, 3, 3, 3), text.piece(first, count, PROMPT), other.piece(3, 2, 0, 2)]
        rows.append(passes.run(runs)[0])
    return np.concatenate(rows)


@pytest.mark.parametrize("experts", [0, 5])
@pytest.mark.parametrize("name", SHAPES)
def test_prompts_agree_with_plain_operators_and_with_themselves(name, experts):
    kernels, plain = passes_of(SHAPES[name], experts)
    text, other = Text(experts, range(34), 1), Text(experts, range(40, 74), 2)
    whole = kernels.run([text.piece(0, TOKENS, PROMPT)])[0]
    expected = plain.run([text.piece(0, TOKENS, PROMPT)])[0]
    assert np.isfinite(whole).all()
    assert np.abs(whole - expected).max() < TOLERANCE * np.abs(expected).max()
    decoded = kernels.run([text.piece(0, TOKENS, 0)])[0]
    assert np.abs(whole - decoded).max() < TOLERANCE * np.abs(expected).max()
    for prompt, logits in ((PROMPT, whole), (0, decoded)):
        assert (kernels.greedy([text.piece(0, TOKENS, prompt)])[0][:, 0] == logits.argmax(1)).all()
    text.pages = np.array(range(119, 85, -1), np.int32)
    for size in (7, 64, 100, 300):
        again = in_pieces(kernels, text, other, size)
        differ = np.nonzero((again != whole).any(1))[0]
        assert not differ.size, f"pieces of {size}: rows {differ[:8].tolist()}, {differ.size} in all"


def test_a_model_that_the_kernels_do_not_take_is_named(tmp_path):
    from model_fixtures import make_model
    from test_serve_cpu import VARIANTS

    make_model(VARIANTS["llama"], tmp_path)
    with pytest.raises(ValueError, match=r"E_CUDA: device cuda: head_dim: found 16, expected .*device cpu"):
        _core.ServeEngine(str(tmp_path), device="cuda")


def write_model(folder: Path, *, width: int, heads: int, ffn: int, layers: int, context: int = 2048) -> Path:
    """A routed model of random bf16 weights with a tokenizer of bytes and checksums."""
    from fake_engine import make_folder
    from outrider.refactor.artifact import seal
    from safetensors.torch import save_file
    from test_serve_cpu import ROUTERS, add_experts

    make_folder(folder)
    config = {"model_type": "llama", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    config |= {"num_key_value_heads": heads, "head_dim": width // heads, "intermediate_size": ffn, "vocab_size": 259}
    config |= {"max_position_embeddings": context, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu"}
    config |= {"tie_word_embeddings": False, "eos_token_id": 2, "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    draw = lambda rows, columns: (torch.randn(rows, columns, device="cuda") * columns**-0.5).bfloat16().cpu()  # noqa: E731
    named = {"model.embed_tokens": draw(259, width) * width**0.5, "lm_head": draw(259, width) * 4}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        named |= {f"{at}.self_attn.{p}_proj": draw(width, width) for p in "qkvo"}
        named |= {f"{at}.mlp.{p}_proj": draw(ffn, width) for p in ("gate", "up")}
        named |= {f"{at}.mlp.down_proj": draw(width, ffn)}
        named |= {f"{at}.{p}_layernorm": torch.ones(width).bfloat16() for p in ("input", "post_attention")}
    named["model.norm"] = torch.ones(width).bfloat16()
    save_file({f"{name}.weight": tensor.contiguous() for name, tensor in named.items()}, folder / "model.safetensors")
    add_experts(folder, ROUTERS["own"], experts=5, tau=0.1)
    seal(folder)
    return folder


@contextlib.contextmanager
def served(folder: Path, *arguments: str):
    """`outrider serve` as a process: an OpenAI client, the greeting, the address."""
    openai = pytest.importorskip("openai")
    command = [sys.executable, "-m", "outrider", "serve", str(folder), "--device", "cuda", "--port", "0", *arguments]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'python'}:{os.environ.get('PYTHONPATH', '')}"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            greeting = greeting_of(process)
            url = re.search(r"http://\S+/v1", greeting)[0]
            yield openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60), greeting, url[: -len("/v1")]
            process.terminate()
            assert process.wait(20) == 0, process.stderr.read()
        finally:
            process.kill()


PROMPTS = [f"{word} " * count for word, count in (("what", 3), ("a longer one", 40), ("x", 200), ("of all", 90))]


def ask(client, prompt: str, tokens: int = 48) -> str:
    about = {"model": "model", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    return "".join(chunk.choices[0].text for chunk in client.completions.create(**about, extra_body={}))


def test_the_program_serves_many_at_once_what_it_serves_one_by_one(tmp_path, capsys):
    folder = write_model(tmp_path / "model", width=4096, heads=32, ffn=11008, layers=3)
    with served(folder) as (client, greeting, url):
        assert "device cuda (NVIDIA" in greeting and "bfloat16" in greeting
        with ThreadPoolExecutor(4) as together:
            beside = list(together.map(lambda prompt: ask(client, prompt), PROMPTS))
        assert [ask(client, prompt) for prompt in PROMPTS] == beside
        assert len(set(beside)) == len(PROMPTS)
        line = next(line for line in greeting.splitlines() if line.startswith("curl "))
        if shutil.which("curl"):
            pasted = subprocess.run(["bash", "-c", f"{line}; curl -s {url}/health; curl -s {url}/metrics"],
                                    capture_output=True, text=True, timeout=60)  # fmt: skip
            assert '"finish_reason"' in pasted.stdout and '"status":"ok","device":"cuda (NVIDIA' in pasted.stdout
            assert "outrider_build_info{" in pasted.stdout and "outrider_failed_steps_total 0.0" in pasted.stdout
        with capsys.disabled():
            print("\n" + greeting.split("curl")[0] + repr(beside[0][:60]))
    small = ("--option", "prefill_tokens=96", "--option", "prefix_cache=false", "--option", "running_max=2")
    with served(folder, *small) as (client, _, _), ThreadPoolExecutor(4) as together:
        assert list(together.map(lambda prompt: ask(client, prompt), PROMPTS)) == beside


def test_a_text_is_the_same_where_its_logits_stay_on_the_device(tmp_path):
    folder = write_model(tmp_path / "model", width=512, heads=8, ffn=1024, layers=2)
    prompts = [[(7 * i + k) % 250 + 3 for i in range(20 + 90 * k)] for k in range(4)]

    def written(**asked) -> list[list[int]]:
        engine = _core.ServeEngine(str(folder), device="cuda", weight_format="bfloat16", kv_tokens=8192)
        try:
            for prompt in prompts:
                engine.submit(prompt, max_tokens=48, **asked)
            assert engine.wait_idle(120)
            rows: dict[int, list[int]] = {}
            for event in engine.poll(1000):
                rows.setdefault(event["stream"], []).extend(event["tokens"])
            return [rows[stream] for stream in sorted(rows)]
        finally:
            engine.close()

    alone = written()
    assert alone == written(logprobs=2)
    assert all(len(text) == 48 for text in alone)


def test_pages_that_do_not_fit_are_refused_with_a_number(tmp_path):
    pytest.importorskip("fastapi")
    folder = write_model(tmp_path / "model", width=512, heads=8, ffn=1024, layers=2)
    command = [sys.executable, "-m", "outrider", "serve", str(folder), "--device", "cuda", "--port", "0"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'python'}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [*command, "--option", "kv_tokens=1000000000"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2
    assert re.search(
        r"E_MEMORY: .*GB free beside the weights, expected at least .*ask for at most kv_tokens=", done.stderr
    )


def test_texts_of_the_device_are_those_of_the_cpu_up_to_near_ties(tmp_path):
    folder = write_model(tmp_path / "model", width=512, heads=8, ffn=1024, layers=2)
    prompts = [[(7 * i + k) % 250 + 3 for i in range(20 + 90 * k)] for k in range(4)]

    def told(device: str) -> list[list]:
        engine = _core.ServeEngine(str(folder), device=device, weight_format="bfloat16", kv_tokens=8192)
        try:
            for prompt in prompts:
                engine.submit(prompt, max_tokens=24, logprobs=2)
            assert engine.wait_idle(120)
            rows: dict[int, list] = {}
            for event in engine.poll(1000):
                rows.setdefault(event["stream"], []).extend(event["logprobs"])
            return [rows[stream] for stream in sorted(rows)]
        finally:
            engine.close()

    compared = 0
    for found, expected in zip(told("cuda"), told("cpu"), strict=True):
        for mine, theirs in zip(found, expected, strict=True):
            if theirs[2][0][1] - theirs[2][1][1] < 0.15:
                break
            assert mine[0] == theirs[0] and abs(mine[1] - theirs[1]) < 0.15
            compared += 1
    assert compared > 12, compared
