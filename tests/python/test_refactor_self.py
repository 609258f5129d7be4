"""Text that a model writes itself, as data to tune on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import transformers
from chat_fixtures import make_chat_model, make_tokenizer
from outrider import _core
from outrider.cli import app
from outrider.refactor import run
from outrider.refactor.chat_form import chat_form, text_start
from outrider.refactor.data_set import load_data
from outrider.refactor.errors import InputError
from outrider.refactor.prompts import load_prompts
from outrider.refactor.self_filter import SelfFilter, distinct_share, loops
from outrider.refactor.self_names import names_in
from outrider.refactor.self_text import SelfOptions, token_count, write_self_text
from typer.testing import CliRunner

OPTIONS = SelfOptions(tokens=3000, length=64, rows=8, seed=5, answer_temperature=1.0, top_k=0, top_p=1.0)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("chat") / "parent")


@pytest.fixture(scope="module")
def written(parent, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("self") / "data"
    return out, write_self_text(parent, out, OPTIONS)


def tokenizer_of(folder: Path):
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_the_form_of_a_chat_template(parent):
    tokenizer = tokenizer_of(parent)
    form = chat_form(tokenizer, parent)
    assert tokenizer.decode(form.start) == "<|begin|>system\nBe brief<|end|>\n<|begin|>user\n"
    assert (form.user_end, form.assistant_end) == (2, 2)
    assert tokenizer.decode(form.to_assistant) == "\n<|begin|>assistant\n"
    assert tokenizer.decode(form.to_user) == "\n<|begin|>user\n"
    question, answer = ([2], form.to_assistant, 0.0), ([2], form.to_user, 0.5)
    assert form.turns(2, questions=True, temperature=0.5) == [question, answer, question, ([2], [], 0.5)]
    assert form.turns(1, questions=False) == [([2], [], 0.0)]
    assert text_start(tokenizer, None) == 1
    assert text_start(tokenizer, form) == 2, "the token that begins conversations begins no other text"


def test_templates_that_cannot_be_used_are_named(tmp_path):
    make_tokenizer(tmp_path / "none", None)
    assert chat_form(tokenizer_of(tmp_path / "none"), "here") is None
    make_tokenizer(tmp_path / "plain", "{% for message in messages %}[{{ message['content'] }}]{% endfor %}")
    with pytest.raises(InputError, match=r"E_TEMPLATE: here: end of the user's turn: found '\]"):
        chat_form(tokenizer_of(tmp_path / "plain"), "here")
    make_tokenizer(tmp_path / "last", "{{ messages[-1]['content'] }}<|end|>")
    with pytest.raises(InputError, match=r"E_TEMPLATE: here: chat template: found turns that are"):
        chat_form(tokenizer_of(tmp_path / "last"), "here")


def test_texts_are_conversations_of_the_template_and_other_texts(parent, written):
    out, summary = written
    data, tokenizer = load_data(out), tokenizer_of(parent)
    form = chat_form(tokenizer, parent)
    assert data.domains == ["chat", "text"]
    chats = [text.tolist() for split in data.splits["chat"].values() for text in split.documents()]
    for ids in chats:
        assert ids[: len(form.start)] == form.start
        rest = ids[len(form.start) :]
        answer = rest.index(2) + 1
        assert rest[answer : answer + len(form.to_assistant)] == form.to_assistant
        assert 2 not in rest[answer + len(form.to_assistant) : -1]
        assert len(ids) == 64 or ids[-1] == 2
    for split in data.splits["text"].values():
        assert all(text[0] == 2 and not set(text[1:-1].tolist()) & {0, 1, 2} for text in split.documents())
    tokens = {name: sum(len(split.tokens) for split in splits.values()) for name, splits in data.splits.items()}
    assert 2250 <= tokens["chat"] < 2250 + 64
    assert 750 <= tokens["text"] < 750 + 64
    for name, row in summary["self"]["texts"].items():
        kept = sum(len(split.documents()) for split in data.splits[name].values())
        assert row["kept"] == kept
        assert row["written"] == kept + sum(row["dropped"].values())
    assert summary["self"]["parent_sha256"] == _core.weights_sha256(str(parent))
    for splits in data.splits.values():
        for split in splits.values():
            sizes = [len(tokenizer.decode(text.tolist()).encode()) for text in split.documents()]
            assert sizes == split.text_bytes


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_rows(parent, written, tmp_path):
    again = SelfOptions(tokens=3000, length=64, rows=3, seed=5, answer_temperature=1.0, top_k=0, top_p=1.0)
    write_self_text(parent, tmp_path / "again", again)
    other = SelfOptions(tokens=3000, length=64, rows=8, seed=6, answer_temperature=1.0, top_k=0, top_p=1.0)
    write_self_text(parent, tmp_path / "other", other)
    files = sorted(path.relative_to(written[0]) for path in written[0].rglob("*") if path.is_file())
    assert len(files) == 7
    for name in files:
        first = (written[0] / name).read_bytes()
        assert first == (tmp_path / "again" / name).read_bytes()
        assert first != (tmp_path / "other" / name).read_bytes()


def test_questions_of_a_file_are_answered(parent, tmp_path):
    questions = ["what is the capital", "and the other thing in other words"]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in questions))
    options = SelfOptions(
        tokens=800, length=64, rows=4, text_share=0, prompts=path, answer_temperature=1.0, top_k=0, top_p=1.0
    )
    summary = write_self_text(parent, tmp_path / "data", options)
    assert summary["domains"] == ["chat"]
    assert [source["file"] for source in summary["sources"]] == ["prompts.jsonl"]
    tokenizer = tokenizer_of(parent)
    seen = set()
    for split in load_data(tmp_path / "data").splits["chat"].values():
        for text in split.documents():
            whole = tokenizer.decode(text.tolist())
            question = whole.split("user\n")[1].split("<|end|>")[0]
            assert question in questions
            assert "<|end|>\n<|begin|>assistant\n" in whole
            seen.add(question)
    assert seen == set(questions)


def test_names_are_words_with_a_capital_that_begin_no_sentence_and_that_two_texts_have():
    texts = [
        "In Kenya, near Lake Victoria, it rains. Rain falls in Kenya.",
        "The rivers of Kenya reach Lake Victoria. Many go to see Mount Kenya National Park there.",
        "we say that Monday and NASA came; and Mount Kenya National Park is not far from Monday",
        "she read The Old Man And The Sea",
        "he read The Old Man And The Sea, too",
    ]
    assert names_in(texts) == ["Kenya", "Lake Victoria", "Mount Kenya National Park"]
    assert names_in([]) == []


def test_texts_about_the_names_of_the_others(parent, tmp_path, monkeypatch):
    import outrider.refactor.self_text as module

    asked = []
    names = ["capital", "other words"]
    monkeypatch.setattr(module, "names_in", lambda texts: asked.append(list(texts)) or names)
    options = replace(OPTIONS, name_share=0.5)
    summary = write_self_text(parent, tmp_path / "data", options)
    assert summary["domains"] == ["chat", "text", "names"]
    data, tokenizer = load_data(tmp_path / "data"), tokenizer_of(parent)
    tokens = {name: sum(len(split.tokens) for split in splits.values()) for name, splits in data.splits.items()}
    assert [1125 <= tokens["chat"] < 1189, 375 <= tokens["text"] < 439, 1500 <= tokens["names"] < 1564] == [True] * 3
    begun = set()
    for split in data.splits["names"].values():
        for text in split.documents():
            assert text[0] == text_start(tokenizer, chat_form(tokenizer, parent))
            begun |= {name for name in names if tokenizer.decode(text[1:].tolist()).strip().startswith(name)}
    assert begun == set(names)
    assert len(asked) == 1
    texts = sum(len(split.documents()) for name in ("chat", "text") for split in data.splits[name].values())
    assert len(asked[0]) == texts
    monkeypatch.setattr(module, "names_in", lambda texts: [])
    with pytest.raises(InputError, match=r"E_SELF: .*: names: found no name in \d+ texts"):
        write_self_text(parent, tmp_path / "other", options)
    assert not (tmp_path / "other").exists()


def test_several_turns(parent, tmp_path):
    options = SelfOptions(
        tokens=2000, length=200, rows=4, text_share=0, turns=3, answer_temperature=1.0, top_k=0, top_p=1.0
    )
    write_self_text(parent, tmp_path / "data", options)
    tokenizer = tokenizer_of(parent)
    texts = [
        tokenizer.decode(text.tolist())
        for split in load_data(tmp_path / "data").splits["chat"].values()
        for text in split.documents()
    ]
    assert max(text.count("<|begin|>user\n") for text in texts) == 3
    assert all(text.count("<|begin|>") <= 7 for text in texts), "nowhere but before a turn"


def test_loops_and_repeats_are_dropped_and_counted():
    random = np.random.default_rng(0)
    free = random.integers(1000, size=300).tolist()
    assert distinct_share(free) == 1
    assert not loops(free)
    assert loops([1, 2, 3] * 40)
    assert loops(free + [7, 8, 9, 10] * 30), "a loop at the end"
    assert not loops(list(range(60)) + list(range(30)))
    keeper = SelfFilter(lambda ids: " ".join(map(str, ids)), ["41 42  43"])
    assert keeper.keeps(free, 3, sound=True)
    assert not keeper.keeps(free, 3, sound=True)
    assert not keeper.keeps(free[:100], 3, sound=False)
    assert not keeper.keeps(free[:18], 3, sound=True)
    assert not keeper.keeps([1, 2, 3, 4] * 10, 0, sound=True)
    assert not keeper.keeps([*range(41, 44), *range(100, 120)], 0, sound=True)
    assert keeper.dropped == {"duplicate": 1, "unsound": 1, "short": 1, "loop": 1, "evaluation": 1}


def test_no_text_contains_a_prompt_that_models_are_measured_by(parent, tmp_path, monkeypatch):
    import outrider.refactor.self_text as module
    from outrider.refactor.prompts import Prompt

    tokenizer = tokenizer_of(parent)
    write_self_text(parent, tmp_path / "free", OPTIONS)
    texts = [text.tolist() for text in load_data(tmp_path / "free").splits["chat"]["train"].documents()]
    wanted = tokenizer.decode(texts[0], skip_special_tokens=True)[-12:].upper()
    monkeypatch.setattr(module, "load_prompts", lambda: [Prompt(wanted, "")])
    summary = write_self_text(parent, tmp_path / "checked", OPTIONS)
    assert summary["self"]["texts"]["chat"]["dropped"]["evaluation"] >= 1
    assert all(prompt.text for prompt in load_prompts()), "an empty one would drop everything"
    for split in load_data(tmp_path / "checked").splits["chat"].values():
        for text in split.documents():
            assert wanted.casefold() not in tokenizer.decode(text.tolist(), skip_special_tokens=True).casefold()


def test_a_parent_that_says_one_thing_only_is_refused(parent, tmp_path):
    options = SelfOptions(tokens=500, length=64, rows=4, temperature=1e-6, text_share=1)
    with pytest.raises(
        InputError, match=r"E_SELF: .*: text: found 25 tokens in \d+ texts \(\d+ duplicate\), expected 500"
    ):
        write_self_text(parent, tmp_path / "data", options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "count"), [("250000", 250_000), ("2_500", 2500), ("20k", 20_000), ("0.5M", 500_000), ("7M", 7_000_000)]
)
def test_counts_of_tokens(text, count):
    assert token_count("here", text) == count


@pytest.mark.parametrize("text", ["", "M", "many", "-3", "0", "0.5", "nan", "infM"])
def test_what_is_no_count(text):
    with pytest.raises(InputError, match="E_USAGE: here: tokens: found"):
        token_count("here", text)


def test_the_console_program(parent, tmp_path):
    out = str(tmp_path / "data")
    arguments = ["data", "self", str(parent), "--out", out, "--tokens", "0.5k", "--length", "64", "--top-k", "0"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "chat: " in done.stdout
    assert "tokens/s" not in done.stdout
    assert "/s" in done.stderr
    for wrong, says in (
        (["--text-share", "1.5"], "--text-share"),
        (["--name-share", "1"], "--name-share"),
        (["--length", "9"], "--length"),
        (["--tokens", "none"], "a whole number"),
        (["--prompts", str(tmp_path / "nothing.jsonl")], "nothing.jsonl"),
        (["--length", "500"], "expected 2 to 256"),
    ):
        other = str(tmp_path / "other")
        failed = CliRunner().invoke(app, ["data", "self", str(parent), "--out", other, "--tokens", "1k", *wrong])
        assert failed.exit_code == 2, failed.output
        assert failed.stderr.startswith("outrider: error E_")
        assert says in failed.stderr
        assert failed.stderr.count("\n") == 1
        assert not Path(other).exists()


def test_refactor_without_data(parent, tmp_path):
    changes = (
        ("rounds", 1),
        ("router.steps", 1),
        ("router.last_steps", 0),
        ("expert.steps", 2),
        ("sequence", 32),
        ("router.width", 32),
        ("experts.count", 2),
        ("calibration.samples", 2),
        ("calibration.tokens", 32),
        ("eval_tokens", 64),
    )
    request = run.Request(
        model=parent, data=Path("self:9k"), out=tmp_path / "moe", rows=("static", "ours"), changes=changes
    )
    assert request.options()["teacher"] == "parent"
    assert request.options()["distill"] == 1.0
    card = run.refactor(request)
    assert [row["teacher"] for row in card["rows"]] == [None, "parent", "parent"]
    assert set(card["rows"][2]["domains"]) == {"chat", "text"}
    plain = run.Request(model=parent, data=tmp_path, out=tmp_path / "x", changes=(("distill", 0.0), ("teacher", "")))
    assert plain.options()["teacher"] == ""


def test_the_core_checks_what_it_is_given(parent):
    model = _core.Model.load(str(parent))
    with pytest.raises(ValueError, match="E_PROMPT: prompt: found id 300"):
        model.sample_texts([[300]], [([2], [], 0.0)], lambda *_: True, 1, length=8)
    with pytest.raises(KeyError, match="mine"):
        model.sample_texts([[5]], [([2], [], 0.0)], _fail, 1, length=8)


def _fail(*_):
    raise KeyError("mine")
