"""Task sets: the published files, standard scores of hand-made likelihoods, scorers against plain loops."""

import bz2
import json
import lzma
import math
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from outrider.refactor.errors import InputError
from outrider.refactor.tasks import sources
from outrider.refactor.tasks.harness import compare, task_yaml
from outrider.refactor.tasks.items import Choice, Cloze, Partial, read_items, to_lines
from outrider.refactor.tasks.prepare_tasks import prepare_tasks
from outrider.refactor.tasks.scorers import LogitsScorer
from outrider.refactor.tasks.scoring import TaskScores, score
from outrider.refactor.tasks.shots import with_shots

EVAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "eval"


def _instruction(question, options, answer, word="Answer", gap=" "):
    listed = gap.join(f"{word}{i}: {text}" for i, text in enumerate(options, 1))
    names = "/".join(f"{word.lower()}{i}" for i in range(1, len(options) + 1))
    text = f"Please choose the correct answer to the question: {question}\n\n{listed}\n\nAnswer format: {names}"
    return {"instruction": text, "input": "", "output": f"the correct answer is {answer}", "answer": answer}


@pytest.fixture(name="published")
def published_folder(tmp_path, monkeypatch):
    """Small files in the published forms; the expected counts are those of these files."""
    folder = tmp_path / "eval"
    folder.mkdir()
    science = [
        _instruction("Which one: a, or b?", ["the first.", "the second.", "the third."], "answer2"),
        _instruction("Why?", ["one", "two", "three", "four"], "answer4"),
    ]
    solutions = [_instruction("open a jar", ["twist it ", "wait"], "solution1", "Solution", "\n\n")]
    blanks = [_instruction("Ann saw Bea because _ waved.", ["Ann", "Bea"], "option2", "Option")]
    for name, rows in (("ARC-Easy", science), ("ARC-Challenge", science), ("piqa", solutions), ("winogrande", blanks)):
        (folder / f"{name}.test.json.xz").write_bytes(lzma.compress(json.dumps(rows).encode()))
    hella = "Cooking: A man cuts. he\n2\nflies.\nsings.\nfries.\ncries.\nRunning: She runs.\n0\nfast.\nup.\na.\nb.\n"
    (folder / "hellaswag_val_full.txt.bz2").write_bytes(bz2.compress(hella.encode()))
    (folder / "lambada_test.jsonl.xz").write_bytes(lzma.compress(b'{"text": "He went\\nto see the sea"}\n'))
    _mmlu(tmp_path, folder / "mmlu.tar.xz")
    counts = {"lambada": 1, "hellaswag": 2, "arc_easy": 2, "arc_challenge": 2, "piqa": 1, "winogrande": 1, "mmlu": 3}
    small = {name: replace(source, count=counts[name]) for name, source in sources.SOURCES.items()}
    monkeypatch.setattr(sources, "SOURCES", small)
    return folder


def _mmlu(scratch, target):
    head = "question,choice0,choice1,choice2,choice3,answer\n"
    files = {
        "dev/high_school_art_dev": head + "".join(f"Dev {i}?,a,b,c,d,{i % 4}\n" for i in range(6)),
        "test/high_school_art_test": head + '"Two, or three?",w,x,y,z,2\nLast?,1,2,3,4,0\n',
        "dev/law_dev": head + "D?,a,b,c,d,3\n" * 5,
        "test/law_test": head + "T?,e,f,g,h,1\n",
    }
    with tarfile.open(target, "w:xz") as archive:
        for name, text in files.items():
            path = scratch / "table.csv"
            path.write_text(text)
            archive.add(path, f"mmlu/{name}.csv")


def test_published_files_become_items(published):
    science = sources.load("arc_easy", published)
    assert science[0] == Choice(
        "arc_easy-0", "Question: Which one: a, or b?\nAnswer:", ["the first.", "the second.", "the third."], 1
    )
    assert sources.load("arc_challenge", published)[1].gold == 3
    assert sources.load("piqa", published) == [
        Choice("piqa-0", "Question: open a jar\nAnswer:", ["twist it", "wait"], 0)
    ]
    partial = Partial("winogrande-0", ["Ann saw Bea because Ann", "Ann saw Bea because Bea"], "waved.", 1)
    assert sources.load("winogrande", published) == [partial]
    ending = Choice("hellaswag-0", "Cooking: A man cuts. he", ["flies.", "sings.", "fries.", "cries."], 2)
    assert sources.load("hellaswag", published)[0] == ending
    assert sources.load("lambada", published) == [Cloze("lambada-0", "He went\nto see the", "sea")]


def test_mmlu_puts_five_solved_questions_of_the_subject_first(published):
    items = sources.load("mmlu", published)
    assert [item.id for item in items] == ["mmlu-high_school_art-0", "mmlu-high_school_art-1", "mmlu-law-0"]
    context = items[0].context
    assert context.startswith("The following are multiple choice questions (with answers) about high school art.\n\n")
    assert context.count("Answer:") == 6 and "Dev 4?\nA. a\nB. b\nC. c\nD. d\nAnswer: A\n\n" in context
    assert "Dev 5?" not in context and context.endswith("Two, or three?\nA. w\nB. x\nC. y\nD. z\nAnswer:")
    assert items[0].choices == ["A", "B", "C", "D"] and items[0].gold == 2


def test_a_wrong_count_and_bad_items_are_named(published, monkeypatch):
    monkeypatch.setitem(sources.SOURCES, "piqa", replace(sources.SOURCES["piqa"], count=1_838))
    with pytest.raises(InputError, match=r"E_TASK: .*piqa\.test\.json\.xz: piqa: found 1 items, expected 1838"):
        sources.load("piqa", published)
    for bad, message in (("answer3", "found answer 2, expected 0 to 1"), ("both", "found answer 'both'")):
        rows = [_instruction("Q", ["a", "b"], bad)] * 2
        (published / "ARC-Easy.test.json.xz").write_bytes(lzma.compress(json.dumps(rows).encode()))
        with pytest.raises(InputError, match=message):
            sources.load("arc_easy", published)
    with pytest.raises(InputError, match="found an unknown task, expected lambada, hellaswag"):
        sources.load("boolq", published)
    (published / "lambada_test.jsonl.xz").write_bytes(b"no xz")
    with pytest.raises(InputError, match=r"E_TASK: .*lambada_test\.jsonl\.xz: lambada: found"):
        sources.load("lambada", published)


@pytest.mark.skipif(not EVAL.is_dir(), reason="the published task files are not on this machine (shared/data/eval)")
def test_the_real_files_have_the_published_counts():
    counts = {name: len(sources.load(name, EVAL)) for name in sources.SOURCES if name != "mmlu"}
    assert counts == {
        "lambada": 5_153,
        "hellaswag": 10_042,
        "arc_easy": 2_376,
        "arc_challenge": 1_172,
        "piqa": 1_838,
        "winogrande": 1_267,
    }


def test_prepared_tasks_can_be_read_back(published, tmp_path):
    assert prepare_tasks(published, tmp_path / "out", shots="none")["mmlu"] == 3
    for name in sources.SOURCES:
        assert read_items(tmp_path / "out" / f"{name}.jsonl") == sources.load(name, published)
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with transformers")
    for name, kind in (("piqa", "multiple_choice"), ("winogrande", "multiple_choice"), ("lambada", "loglikelihood")):
        parsed = yaml.safe_load((tmp_path / "out" / "harness" / f"outrider_{name}.yaml").read_text())
        assert parsed["output_type"] == kind and parsed["task"] == f"outrider_{name}"
        assert Path(parsed["dataset_kwargs"]["data_files"]["test"]) == tmp_path / "out" / f"{name}.jsonl"
    assert "acc_bytes" in task_yaml("x", "choice", Path("/x")) and "acc_norm" not in task_yaml(
        "x", "partial", Path("/x")
    )


def test_a_broken_task_file_says_where(tmp_path):
    good = to_lines([Cloze("a", "b", "c")])
    for bad in ('{"kind": "cloze"}', '{"kind": "essay"}', "no json", '["list"]'):
        (tmp_path / "t.jsonl").write_text(good + bad)
        with pytest.raises(InputError, match=r"E_TASK: .*t\.jsonl: line 2: found"):
            read_items(tmp_path / "t.jsonl")


def test_shots_leave_the_same_items_out_of_scoring_each_time():
    items = [Choice(f"i-{i}", f"Question: {i}\nAnswer:", ["yes", "no"], i % 2) for i in range(30)]
    shot = with_shots(items, 5)
    assert len(shot) == 25 and shot == with_shots(items, 5) and shot != with_shots(items, 5, seed=1)
    prefix = shot[0].context.removesuffix(f"Question: {shot[0].id[2:]}\nAnswer:")
    solved = prefix.strip().split("\n\n")
    assert len(solved) == 5 and all(item.context.startswith(prefix) for item in shot)
    numbers = [int(text.split("\n")[0].removeprefix("Question: ")) for text in solved]
    assert {f"i-{n}" for n in numbers}.isdisjoint(item.id for item in shot)
    answers = [text.rpartition("Answer: ")[2] for text in solved]
    assert answers == [["yes", "no"][n % 2] for n in numbers]
    assert with_shots(items, 0) is items
    with pytest.raises(ValueError, match="31 shots need more than 30 items"):
        with_shots(items, 31)


class _Table:
    """Log-likelihoods from a table of continuations."""

    def __init__(self, table):
        self.table, self.asked = table, []

    def loglikelihood(self, requests):
        self.asked += requests
        return [self.table[request] for request in requests]


def test_standard_scores_by_hand():
    choice = Choice("c", "Q", ["ab", "abcdefgh", "éé"], 1)
    partial = Partial("p", ["x a", "x b"], "tail", 0)
    cloze = Cloze("l", "once", "more")
    table = _Table(
        {
            ("Q", " ab"): (-3.0, False),
            ("Q", " abcdefgh"): (-8.0, False),
            ("Q", " éé"): (-3.5, False),
            ("x a", " tail"): (-2.0, True),
            ("x b", " tail"): (-2.0, False),
            ("once", " more"): (-1.25, True),
        }
    )
    # Per character: -1.5, -1, -1.75. Per byte: -1.5, -1, -0.875.
    assert score([choice], table).values == {"acc": [0.0], "acc_norm": [1.0], "acc_bytes": [0.0]}
    assert score([partial], table).values == {"acc": [1.0]}
    assert score([cloze], table).values == {"acc": [1.0], "perplexity": [-1.25]}
    assert table.asked[3:5] == [("x a", " tail"), ("x b", " tail")]


def test_standard_errors_are_those_of_the_mean():
    summary = TaskScores(list("abcd"), {"acc": [1, 1, 1, 0], "perplexity": [-1.0, -2.0, -3.0, -2.0]}).summary()
    assert summary["acc"] == {"value": 0.75, "stderr": pytest.approx(0.25), "items": 4}
    error = math.sqrt(2 / 3 / 4)
    assert summary["perplexity"]["value"] == pytest.approx(math.exp(2))
    assert summary["perplexity"]["stderr"] == pytest.approx(math.exp(2) * error)


def _encode(texts):
    return [_ids_of(text) for text in texts]


def _ids_of(text):
    """A tokenizer whose ids depend on what follows: pairs `ab` join, as real tokenizers join across a cut."""
    ids, at = [], 0
    while at < len(text):
        step = 2 if text[at : at + 2] == "ab" else 1
        ids.append(300 if step == 2 else ord(text[at]))
        at += step
    return ids


class _Markov:
    """Logits that depend on the last two ids, so that every position of a text matters."""

    def __init__(self):
        generator = torch.Generator().manual_seed(4)
        self.first, self.second = torch.randn(2, 301, 301, generator=generator) * 3
        self.rows = 0

    def __call__(self, ids):
        self.rows += ids.shape[0]
        previous = torch.cat((torch.zeros_like(ids[:, :1]), ids[:, :-1]), dim=1)
        return self.first[ids] + self.second[previous]


def _plain_likelihood(logits, context, continuation, window=10**6):
    stripped = context.rstrip()
    start = _ids_of(stripped) if stripped else [7]
    rest = context[len(stripped) :] + continuation
    targets = _ids_of(rest) if not stripped else _ids_of(stripped + rest)[len(start) :]
    whole = [*start, *targets][-(window + 1) :]
    out = logits(torch.tensor([whole[:-1]]))[0].log_softmax(-1)
    places = range(len(whole) - 1 - len(targets), len(whole) - 1)
    return sum(out[p, whole[p + 1]].item() for p in places), all(out[p].argmax() == whole[p + 1] for p in places)


def test_the_logits_scorer_equals_one_text_at_a_time():
    logits = _Markov()
    requests = [
        ("a long context in front", " of this"),
        ("short", " x"),
        ("ends in a space ", "word"),
        ("cut a", "bc"),
        ("", "nothing before"),
        ("short", " yes"),
    ]
    greedy = "".join(chr(int(logits(torch.tensor([[7]]))[0, -1].argmax())))
    requests.append(("", greedy))
    for batch_tokens in (1, 40, 4_096):
        found = LogitsScorer(logits, _encode, prefix=7, batch_tokens=batch_tokens).loglikelihood(requests)
        for request, (value, is_greedy) in zip(requests, found, strict=True):
            expected = _plain_likelihood(logits, *request)
            assert value == pytest.approx(expected[0], rel=1e-5) and is_greedy == expected[1]
    assert found[-1][1] and not found[0][1]


def test_a_long_text_loses_its_beginning_and_equal_inputs_run_once():
    logits = _Markov()
    scorer = LogitsScorer(logits, _encode, prefix=7, max_length=8)
    found = scorer.loglikelihood([("a context of many letters", " end")])
    assert found[0][0] == pytest.approx(_plain_likelihood(logits, "a context of many letters", " end", 8)[0], rel=1e-5)
    logits.rows = 0
    scorer = LogitsScorer(logits, _encode, prefix=7)
    letters = scorer.loglikelihood([("Answer:", letter) for letter in "ABCD"])
    assert logits.rows == 1 and len({value for value, _ in letters}) == 4
    scorer.loglikelihood([("Answer:", text) for text in ("AB", "AC", "BB")])
    assert logits.rows == 3
    with pytest.raises(ValueError, match="a continuation of 9 ids"):
        LogitsScorer(logits, _encode, prefix=7, max_length=8).loglikelihood([("c", "123456789")])


def test_the_comparison_speaks_of_points_and_percent():
    ours = {"acc": {"value": 0.50}, "perplexity": {"value": 10.1}}
    rows = compare(ours, {"acc,none": 0.49, "acc_stderr,none": 0.1, "perplexity,none": 10.0, "alias": "x"})
    assert [row["metric"] for row in rows] == ["acc", "perplexity"]
    assert [row["apart"] for row in rows] == [pytest.approx(1), pytest.approx(1)]
