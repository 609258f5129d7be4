"""Perplexity of prepared text, a corpus from the standard library, and the commands on a tiny model."""

import json
import math

import numpy as np
import pytest
import torch
from outrider.refactor import domains, prepare, stdlib_corpus
from outrider.refactor.data_set import load_data
from outrider.refactor.evaluate import perplexities
from outrider.refactor.tokenizer import train_tokenizer
from typer.testing import CliRunner

VOCAB = 300


@pytest.fixture(name="stdlib", scope="module")
def stdlib_folder(tmp_path_factory):
    """Text, tokenizer and token files of this Python's own standard library."""
    folder = tmp_path_factory.mktemp("stdlib")
    sizes = stdlib_corpus.build(folder / "text", max_bytes=120_000)
    files = domains.from_folder(folder / "text")
    texts = [path.read_text()[:2_000] for path in sorted((folder / "text").rglob("*.txt"))]
    tokenizer = train_tokenizer(texts, VOCAB, folder / "model" / "tokenizer.json")
    prepare.prepare(files, tokenizer, folder / "data", prepare.Options(min_train_tokens=5_000))
    return folder, sizes


def test_every_python_has_code_docstrings_and_licences(stdlib):
    folder, sizes = stdlib
    assert list(sizes) == list(stdlib_corpus.DOMAINS) and min(sizes.values()) > 50_000
    code = "".join(path.read_text() for path in sorted((folder / "text" / "code").iterdir()))
    docstrings = "".join(path.read_text() for path in sorted((folder / "text" / "docstrings").iterdir()))
    assert code.count("def ") > 50 and code.count('"""') < docstrings.count("Return") + 50
    licences = "".join(path.read_text() for path in sorted((folder / "text" / "licences").iterdir()))
    assert "copyright" in licences.lower()
    assert load_data(folder / "data").domains == ["code", "docstrings", "licences"]


def test_docstrings_leave_the_code():
    source = '# Copyright A\n"""Module."""\nx = "kept"\ndef f():\n    """Text\n    more."""\n    return x\n'
    head, body = stdlib_corpus._header(source)
    assert head == "Copyright A"
    assert stdlib_corpus._without_docstrings(body) == 'x = "kept"\ndef f():\n    return x'


class _Counting:
    """Logits that depend on the position in the window and the id; remembers its windows."""

    def __init__(self):
        self.weight = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(1))
        self.tokens = 0

    def __call__(self, ids):
        self.tokens += ids.numel()
        position = torch.arange(ids.shape[1])[None, :, None] / 100
        return self.weight[ids] + position * self.weight[0]


def _document_nats(logits, ids, window):
    expected = 0.0
    for begin in range(0, ids.numel() - 1, window):
        part = ids[begin : begin + window + 1]
        logs = logits(part[None, :-1])[0].log_softmax(-1)
        expected -= logs.gather(1, part[1:, None]).double().sum().item()
    return expected


def test_each_token_but_a_documents_first_is_scored_once(stdlib):
    data = load_data(stdlib[0] / "data")
    logits, window = _Counting(), 512
    found = perplexities(logits, data, split="valid", window=window, batch=3)
    for name, loss in found.items():
        documents = data.splits[name]["valid"].documents()
        assert logits.tokens >= int(loss.tokens.sum()) == sum(ids.size - 1 for ids in documents)
        for nats, ids in zip(loss.nats, documents, strict=True):
            expected = _document_nats(_Counting(), torch.from_numpy(ids.astype(np.int64)), window)
            assert nats == pytest.approx(expected, rel=1e-5)
    with_large_batches = perplexities(_Counting(), data, split="valid", window=window, batch=64)
    for name, loss in found.items():
        assert with_large_batches[name].nats_per_token == pytest.approx(loss.nats_per_token, rel=1e-6)


def test_a_limit_takes_first_windows_spread_over_the_documents(stdlib):
    data = load_data(stdlib[0] / "data")
    documents = data.splits["code"]["train"].documents()
    found = perplexities(_Counting(), data, split="train", names=["code"], window=50, max_tokens=150)["code"]
    assert found.tokens.tolist() == [50] * 3 and (found.text_bytes > 30).all()
    count = len(documents)
    picked = [documents[i][:51] for i in (count // 6, count // 2, 5 * count // 6)]
    for nats, ids in zip(found.nats, picked, strict=True):
        assert nats == pytest.approx(_document_nats(_Counting(), torch.from_numpy(ids.astype(np.int64)), 50), rel=1e-5)


def test_bytes_are_those_of_the_scored_share(stdlib):
    data = load_data(stdlib[0] / "data")
    flat = perplexities(lambda ids: torch.zeros(*ids.shape, VOCAB), data, split="valid")
    for name, loss in flat.items():
        split = data.splits[name]["valid"]
        assert loss.perplexity == pytest.approx(VOCAB, rel=1e-5)
        assert int(loss.tokens.sum()) == split.tokens.size - len(split.starts)
        tokens_per_byte = split.tokens.size / sum(split.text_bytes)
        assert loss.bits_per_byte == pytest.approx(math.log2(VOCAB) * tokens_per_byte, rel=0.01)


def _tiny_model(folder):
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = (folder / "tokenizer.json").read_bytes()
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token="!").save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer)


def test_the_commands_prepare_measure_and_refuse(stdlib, tmp_path):
    from outrider.cli import app

    folder, _ = stdlib
    _tiny_model(folder / "model")
    runner = CliRunner()
    model, data = [str(folder / "model")], ["--data", str(folder / "data")]
    out = tmp_path / "loss.json"
    done = runner.invoke(
        app, ["eval", "perplexity", *model, *data, "--split", "valid", "--max-tokens", "300", "--out", str(out)]
    )
    assert done.exit_code == 0 and "geometric mean of perplexities: " in done.stdout
    assert set(json.loads(out.read_text())) == set(stdlib_corpus.DOMAINS)
    (tmp_path / "tasks").mkdir()
    item = {"kind": "choice", "id": "a", "context": "x = ", "choices": ["1", "None"], "gold": 0}
    (tmp_path / "tasks" / "own.jsonl").write_text(json.dumps(item) + "\n")
    scores = str(tmp_path / "scores.json")
    done = runner.invoke(app, ["eval", "tasks", *model, "--tasks", str(tmp_path / "tasks"), "--out", scores])
    assert done.exit_code == 0 and "own acc_bytes: " in done.stdout
    acc = json.loads((tmp_path / "scores.json").read_text())["own"]["values"]["acc"][0]
    harness = tmp_path / "harness.json"
    for theirs, exit_code in ((acc + 0.0005, 0), (acc + 0.002, 1)):
        harness.write_text(json.dumps({"results": {"outrider_own": {"acc,none": theirs}}}))
        done = runner.invoke(app, ["eval", "compare", "--scores", scores, "--harness", str(harness)])
        assert done.exit_code == exit_code and "own acc: " in done.stdout
    harness.write_text("{}")
    done = runner.invoke(app, ["eval", "compare", "--scores", scores, "--harness", str(harness)])
    assert done.exit_code == 2 and "found nothing, expected outrider_<task>" in done.stderr
    prepared = ["data", "prepare", "--tokenizer", str(folder / "model"), "--data", str(folder / "text")]
    done = runner.invoke(app, [*prepared, "--out", str(folder / "data")])
    assert done.exit_code == 2 and done.stderr.startswith("outrider: error E_EXISTS: ")
    done = runner.invoke(app, [*prepared, "--out", str(tmp_path / "d"), "--calib-tokens", "10000000"])
    assert done.exit_code == 2 and "code: found" in done.stderr and not (tmp_path / "d").exists()
    with (folder / "model" / "tokenizer.json").open("a") as file:
        file.write("\n")
    done = runner.invoke(app, ["eval", "perplexity", *model, *data])
    assert done.exit_code == 2 and "E_VOCAB" in done.stderr and "tokenizer.json: sha256: found" in done.stderr
    done = runner.invoke(app, ["card", str(tmp_path)])
    assert done.exit_code == 2 and "E_CARD" in done.stderr
