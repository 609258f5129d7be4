"""Task scores of models in the core, against transformers on the same weights; the tasks of a refactoring."""

import json
import shutil

import outrider.hf
import pytest
import torch
import transformers
from outrider import _core
from outrider.cli import app
from outrider.refactor import run, smoke
from outrider.refactor.domains import from_folder
from outrider.refactor.errors import InputError
from outrider.refactor.prepare import Options, prepare
from outrider.refactor.tasks.chosen import QUICK_ITEMS, TaskChoice, picked, score_all
from outrider.refactor.tasks.items import Choice, Cloze, Partial, to_lines
from outrider.refactor.tasks.scorers import BatchScorer, LogitsScorer, bench_scorer, model_logits
from outrider.refactor.tasks.scoring import score
from outrider.refactor.tokenizer import load_tokenizer
from typer.testing import CliRunner

ROWS = {
    "routed": {"experts.count": 4},
    "static": {"experts.kind": "static", "experts.statistic": "fluctuation", "routing.kind": "none"},
    "dense": {"experts.kind": "dense", "routing.kind": "none"},
}
CHOICES = [
    Choice("c-0", "def add(a, b):\n    return", ["a + b", "None", "a file"], 0),
    Choice("c-1", "import", ["os", "the licence"], 0),
]
PARTIALS = [Partial("p-0", ["The list", "The string"], "is sorted by its keys.", 0)]
CLOZES = [Cloze("z-0", "This function returns a new", "list"), Cloze("z-1", "x", "y")]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Model folder and prepared text."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("scores")
    model, text = smoke.make(root / "made", max_bytes=1 << 17)
    prepare(from_folder(text), load_tokenizer(model), root / "data", Options(min_train_tokens=1))
    return model, root / "data"


def bench_of(inputs, **changes):
    model, data = inputs
    options = {"model": str(model), "data": str(data), "router.width": 32, "coverage.rounds": 2, "sequence": 64}
    options |= {"calibration.tokens": 128, "calibration.samples": 2, "batch": 2, "experts.keep": 0.5}
    bench = _core.Workbench.open(json.dumps(options | changes))
    bench.make_experts()
    return bench


def encode_with(model):
    return load_tokenizer(model).encode


@pytest.fixture(scope="module")
def routed(inputs, tmp_path_factory):
    """Untuned experts in the core, and the same as transformers runs their files."""
    bench = bench_of(inputs, **ROWS["routed"])
    folder = tmp_path_factory.mktemp("exported") / "model"
    bench.export(str(folder))
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    outrider.hf.apply(network, folder)
    return bench, network


def test_the_core_answers_as_transformers_does(inputs, routed):
    bench, network = routed
    model = inputs[0]
    ours = bench_scorer(bench, model)
    ours._prefix = 1  # a model of random weights names no first token
    theirs = LogitsScorer(model_logits(network), encode_with(model), prefix=1, max_length=512)
    for items in (CHOICES, PARTIALS, CLOZES):
        found, expected = score(items, ours), score(items, theirs)
        requests = [request for item in items for request in item.requests()]
        values = zip(ours.loglikelihood(requests), theirs.loglikelihood(requests), strict=True)
        for (value, greedy), (other, other_greedy) in values:
            assert value == pytest.approx(other, abs=1e-3) and greedy == other_greedy
        assert found.values.keys() == expected.values.keys()


@pytest.mark.parametrize("row", ROWS)
def test_an_answer_does_not_depend_on_the_batch(inputs, row):
    bench = bench_of(inputs, **ROWS[row])
    random = torch.Generator().manual_seed(3)
    queries = []
    for length in (3, 40, 17, 1):
        ids = torch.randint(512, (length,), generator=random).tolist()
        queries.append((ids, [ids[-1:], [5, 6][: min(2, length)]]))
    together = bench.score(queries)
    for query, answers in zip(queries, together, strict=True):
        alone = bench.score([query])[0]
        for (value, greedy), (other, other_greedy) in zip(answers, alone, strict=True):
            assert value == pytest.approx(other, abs=1e-4) and greedy == other_greedy
    assert all(value < 0 for row in together for value, _ in row)
    if row != "dense":
        assert bench.score(queries, all_channels=True) != together


@pytest.mark.parametrize("row", ROWS)
def test_a_shared_beginning_changes_no_answer(inputs, row):
    bench = bench_of(inputs, **ROWS[row])
    random = torch.Generator().manual_seed(4)
    front = torch.randint(512, (70,), generator=random).tolist()
    queries = []
    for length in (1, 9, 30):
        rest = torch.randint(512, (length,), generator=random).tolist()
        queries.append((front + rest, [rest[-1:], front[-3:] + rest[:1]]))
    queries.append((front, [front[-20:]]))  # its target begins within what the others share
    together = bench.score(queries)
    apart = [bench.score([query])[0] for query in queries]
    for answers, others in zip(together, apart, strict=True):
        for (value, greedy), (other, other_greedy) in zip(answers, others, strict=True):
            assert value == pytest.approx(other, abs=1e-4) and greedy == other_greedy


def test_texts_with_one_beginning_are_batched_together():
    seen = []

    def answer(queries):
        seen.append([len(inputs) for inputs, _ in queries])
        return [[(-1.0, False)] * len(targets) for _, targets in queries]

    scorer = BatchScorer(answer, lambda texts: [[ord(c) for c in text] for text in texts], prefix=0, batch_tokens=1_000)
    shared = [("s" * 60 + "x" * i, " y") for i in range(10)]
    others = [(chr(100 + i) * (50 + 7 * i), " y") for i in range(5)]
    assert len(scorer.loglikelihood([*shared, *others])) == 15
    sizes = [max(batch) for batch in seen]
    assert sum(map(len, seen)) == 15 and all(len(batch) * max(batch) <= 1_000 for batch in seen)
    assert [len(batch) for batch in seen] == [5, 10], "the others are batched among themselves"
    assert sizes == [79, 70]


def test_the_sum_is_the_loss_of_the_text(inputs):
    bench = bench_of(inputs, **ROWS["dense"])
    model = _core.Model.load(str(inputs[0]))
    ids = list(range(40, 60))
    logits = model.logits(torch.tensor([ids]))[0].log_softmax(-1)
    expected = sum(logits[t, ids[t + 1]].item() for t in range(10, 19))
    [[(value, greedy)]] = bench.score([(ids[:-1], [ids[11:]])])
    assert value == pytest.approx(expected, rel=1e-5)
    assert greedy == all(int(logits[t].argmax()) == ids[t + 1] for t in range(10, 19))


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (([], [[1]]), "query 0: found 0 tokens, expected 1 to 512"),
        (([1], [[]]), "found a target of 0 tokens"),
        (([1], [[1, 2]]), "found a target of 2 tokens, expected 1 to 1"),
        (([1, 600], [[1]]), "expected ids from 0 to 511"),
        (([1] * 513, [[1]]), "found 513 tokens"),
    ],
)
def test_bad_queries_are_named(inputs, query, says):
    with pytest.raises(ValueError, match="error E_OPTION") as raised:
        bench_of(inputs, **ROWS["dense"]).score([query])
    assert says in str(raised.value)


def test_quick_is_the_same_200_items_always():
    items = [Cloze(f"z-{i}", "a", "b") for i in range(1_000)]
    some = picked(items, "quick")
    assert len(some) == QUICK_ITEMS and some == picked(list(items), "quick")
    numbers = [int(item.id[2:]) for item in some]
    assert numbers == sorted(numbers) and numbers[-1] > 900, "spread over all"
    assert picked(items, "full") == items and picked(items[:50], "quick") == items[:50]


def test_kept_scores_are_not_computed_again(tmp_path):
    class Fixed:
        def __init__(self):
            self.calls = 0

        def loglikelihood(self, requests):
            self.calls += 1
            return [(-float(len(text)), False) for _, text in requests]

    scorer, path = Fixed(), tmp_path / "kept.json"
    first = score_all({"c": CHOICES}, lambda: scorer, path)
    again = score_all({"c": CHOICES, "z": CLOZES}, lambda: scorer, path)
    assert scorer.calls == 2 and again["c"] == first["c"]
    score_all({"c": CHOICES[:1]}, lambda: scorer, path)
    assert scorer.calls == 3, "other items are other scores"


@pytest.fixture
def tasks(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, items in {"piqa": CHOICES, "winogrande": PARTIALS, "lambada": CLOZES}.items():
        (folder / f"{name}.jsonl").write_text(to_lines(items))
    return folder


def test_a_refactoring_with_tasks_has_them_on_its_card(inputs, tasks, tmp_path):
    named = shutil.copytree(inputs[0], tmp_path / "named")
    config = json.loads((named / "config.json").read_text()) | {"eos_token_id": 0}
    (named / "config.json").write_text(json.dumps(config))
    small = ["rounds=1", "router.steps=1", "router.last_steps=0", "expert.steps=1", "eval_tokens=256"]
    small += ["coverage.rounds=2", "experts.count=4"]
    out = tmp_path / "out"
    arguments = ["refactor", str(named), "--data", str(inputs[1]), "--out", str(out), "--task-data", str(tasks)]
    done = CliRunner().invoke(app, [*arguments, *(word for text in small for word in ("--option", text))])
    assert done.exit_code == 0, done.output
    card = json.loads((out / "quality_card.json").read_text())
    for row in card["rows"]:
        assert row["tasks"].keys() == {"lambada", "piqa", "winogrande"}
        assert row["tasks"]["piqa"]["acc_norm"]["items"] == 2
        compared = row["name"] != "static"
        assert (row["tasks_against_static"] is not None) == compared
    assert "## Tasks" in (out / "quality_card.md").read_text()
    scores = json.loads((out / "tasks.json").read_text())
    assert scores.keys() == {"parent", "dense-cont", "static", "ours"}
    assert scores["ours"]["lambada"]["ids"] == ["z-0", "z-1"]


def test_tasks_without_items_are_refused_before_anything_runs(inputs, tmp_path):
    arguments = ["refactor", str(inputs[0]), "--data", str(inputs[1]), "--out", str(tmp_path / "out"), "--tasks"]
    for mode, says in (("quick", "--task-data DIR"), ("all", "none or quick or full")):
        done = CliRunner().invoke(app, [*arguments, mode])
        assert done.exit_code == 2 and says in done.stderr, done.output
    with pytest.raises(InputError, match=r"no \.jsonl file"):
        TaskChoice("quick", tmp_path).items()
    assert not list(tmp_path.iterdir())


def test_default_of_tasks_depends_on_what_is_given(inputs, tasks, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(run, "refactor", lambda request, *_, **__: seen.append(request.tasks.mode))
    base = ["refactor", str(inputs[0]), "--data", str(inputs[1]), "--out", str(tmp_path / "out")]
    for more in ([], ["--task-data", str(tasks)], ["--task-data", str(tasks), "--budget", "gpu-1"]):
        CliRunner().invoke(app, base + more)
    assert seen == ["none", "quick", "full"]
