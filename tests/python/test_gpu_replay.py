"""benchmarks/serve/gpu_replay.py from end to end on the CPU: a small real model, and its routes at other shapes."""

import copy
import json
import pathlib
import sys

import pytest
import torch
from outrider.refactor.artifact import load_artifact
from outrider.refactor.torch_router import TorchRouter, route
from outrider.refactor.traces import embedding_of
from outrider.serve import start
from serve_artifact import make_artifact

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "serve"
sys.path.insert(0, str(FOLDER))

import gpu_replay  # noqa: E402
import shape_inputs  # noqa: E402
import shape_model  # noqa: E402

PLACES = 96
HEAD = "arrival_s,prompt_tokens,output_tokens\n"
TRACE = HEAD + "".join(f"{n / 9},{5 + 7 * (n % 4)},{3 + n % 5}\n" for n in range(12))
TEXTS = {"a.txt": "what is the capital of France? " * 60, "b.txt": "def f(x):\n    return x + 1\n" * 60}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("replay7b")
    (root / "texts").mkdir()
    for name, text in TEXTS.items():
        (root / "texts" / name).write_text(text)
    (root / "trace.csv").write_text(TRACE)
    real = make_artifact(root / "real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shape_inputs, "PLACES", PLACES)
        patch.setattr(shape_inputs, "PIECE", 24)
        sizes = {"rows": 12, "scale": 1, "context": 200, "seed": 0}
        traces = {"azure": root / "trace.csv"}
        return shape_inputs.pack(root / "inputs", "tiny", real, real, traces, root / "texts", **sizes)


@pytest.fixture(scope="module")
def model(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shape") / "model"
    shape_model.make(folder, inputs, "tiny", "cpu")
    return folder


def call(inputs, model, out, *more):
    given = ["run", "--inputs", inputs.folder, "--model", model, "--out", out, "--shape", "tiny", "--threads", 1]
    given += ["--rows", 9, "--rate", 2, "--repetitions", 2, "--device", "reference", "--load", "azure", *more]
    gpu_replay.run(gpu_replay.parser().parse_args(list(map(str, given))))


def test_histograms_keep_their_shares():
    found = shape_model.resampled({"1": 3, "2": 5, "7": 2}, 23)
    counts = dict(zip(*(part.tolist() for part in found.unique(return_counts=True)), strict=True))
    assert counts == {1: 7, 2: 11, 7: 5} and found.tolist() == sorted(found.tolist())
    assert shape_model.resampled({"5": 1}, 4).tolist() == [5] * 4


def test_masks_have_the_parent_s_histogram_at_the_same_depth(inputs, model):
    real = load_artifact(inputs.folder.parent / "real").signatures  # 3 layers
    made = load_artifact(model).signatures
    assert made.shape == (2, 320)
    for layer, of in ((0, 0), (1, 1)):
        for signature in range(32):
            share = float((real[of] == signature).double().mean())
            assert abs(int((made[layer] == signature).sum()) - 320 * share) < 1


def check_texts_and_routes(inputs, model, real):
    """The engine writes the walk; its experts are those that the real router has for the same words."""
    router = TorchRouter(real.shape, real.experts, real.router, embedding_of(real.folder), "real")
    prompt = inputs.prepared("azure", 12).prompts[3]
    engine, _ = start.open_engine(start.ServeOptions(model, device="reference", threads=1))
    try:
        stream = engine.submit(prompt, max_tokens=40)
        events, tokens, experts = [], [], []
        while not events or events[-1]["finish"] is None:
            events += [event for event in engine.poll() if event["stream"] == stream]
        for event in events:
            tokens += event["tokens"]
            experts += event["experts"]
    finally:
        engine.close()
    assert tokens == inputs.written(prompt[-1], 40) and min(tokens) >= inputs.vocab
    words = prompt + [int(inputs.walk[token - inputs.vocab]) for token in tokens]
    expected = route(router.logits(torch.tensor([words])), real.tau)[0].tolist()
    assert experts == expected[: len(experts)] and len(experts) >= len(words) - 1
    assert len(set(experts)) > 1


def test_texts_and_routes_are_those_of_real_text(inputs, model):
    check_texts_and_routes(inputs, model, load_artifact(inputs.folder.parent / "real"))


def test_another_model_gets_the_same_loads(inputs, tmp_path):
    """Of seven experts and a router that reads the model's own table."""
    other, out = make_artifact(tmp_path / "other", "tied", 7), tmp_path / "out"
    call = ["repack", "--inputs", inputs.folder, "--artifact", other, "--name", "seven", "--out", out]
    made = gpu_replay.write_inputs(gpu_replay.parser().parse_args(list(map(str, call))))
    assert (out / "azure.json").read_bytes() == (inputs.folder / "azure.json").read_bytes()
    assert torch.equal(made.walk, inputs.walk) and torch.equal(made.entrances, inputs.entrances)
    assert (made.about["of"], made.about["experts"], made.shape.width) == ("seven", 7, 32)
    assert len(made.about["routes"]["azure"]["prompts"]["expert_load"]) == 7
    facts = shape_model.make(tmp_path / "model", made, "tiny", "cpu")
    assert facts["of"] == "seven" and 0.4 < facts["share"] < 0.6
    check_texts_and_routes(made, tmp_path / "model", load_artifact(other))


def test_a_model_packed_again_has_the_same_inputs(inputs, tmp_path):
    real = inputs.folder.parent / "real"
    shape_inputs.repack(tmp_path / "out", "tiny", real, inputs.folder, None)
    for name in (shape_inputs.ABOUT, shape_inputs.ROUTER, "azure.json"):
        assert (tmp_path / "out" / name).read_bytes() == (inputs.folder / name).read_bytes()


def test_a_wrong_model_is_found_out(inputs, model):
    options = start.ServeOptions(model, device="reference", threads=1)
    gpu_replay.check_texts(options, inputs, [[5, 6, 7]])
    wrong = copy.copy(inputs)
    object.__setattr__(wrong, "entrances", (inputs.entrances + 1) % PLACES)
    with pytest.raises(SystemExit, match="the model wrote"):
        gpu_replay.check_texts(options, wrong, [[5, 6, 7]])


def test_a_folder_is_made_once_and_goes_on(inputs, model, tmp_path):
    folder = tmp_path / "model"
    shape_model.make(folder, inputs, "tiny", "cpu")
    for name in ("model-00001-of-00003.safetensors", "outrider_masks.safetensors"):
        assert (folder / name).read_bytes() == (model / name).read_bytes()
    kept = folder / "model-00002-of-00003.safetensors"
    before = kept.stat().st_mtime_ns
    for name in ("model-00001-of-00003.safetensors", "outrider.json"):
        (folder / name).unlink()
    facts = shape_model.make(folder, inputs, "tiny", "cpu")
    assert kept.stat().st_mtime_ns == before and (folder / "model-00001-of-00003.safetensors").is_file()
    assert facts == json.loads((folder / "outrider.json").read_text())["shape_model"]
    other = copy.copy(inputs)
    object.__setattr__(other, "folder", tmp_path)
    for name in (shape_inputs.ABOUT, shape_inputs.ROUTER):
        (tmp_path / name).write_bytes((inputs.folder / name).read_bytes() + b" ")
    with pytest.raises(SystemExit, match="of other inputs"):
        shape_model.make(folder, other, "tiny", "cpu")


def test_a_replay_goes_on_and_is_reported(inputs, model, tmp_path):
    out = tmp_path / "results"
    call(inputs, model, out, "--seconds", 0.001)
    path = out / "azure_9_at_2.json"
    assert not path.exists(), "nothing begins that late"
    call(inputs, model, out, "--policy", "chunked_fcfs", "--policy", "outrider")
    found = json.loads(path.read_text())
    assert found["done"] and len(found["runs"]) == 4 and found["texts_equal"]
    assert all(one["done"] == 9 and one["rejected"] == 0 for one in found["runs"])
    assert found["runs"][0]["counts"]["executor_s"] > 0 and found["runs"][0]["weight_bytes_per_token"] > 0
    assert {one["experts_sha256"] for one in found["runs"]} == {found["runs"][0]["experts_sha256"]}
    assert found["model"]["shape"] == "tiny" and found["load"]["rows"] == 9
    text = (out / "report.md").read_text()
    assert "A shape model: random weights of width 256" in text and "| 2 | outrider |" in text
    call(inputs, model, out, "--policy", "chunked_fcfs", "--policy", "outrider")
    assert json.loads(path.read_text())["runs"] == found["runs"], "what is there is not run again"
