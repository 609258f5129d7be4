"""Preparing text: documents, domains, splits, token files, and what bad input says."""

import bz2
import gzip
import json
import lzma

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outrider.refactor import documents, domains, prepare
from outrider.refactor.data_set import load_data
from outrider.refactor.errors import InputError
from outrider.refactor.tokenizer import ModelTokenizer, load_tokenizer, train_tokenizer

WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa"


def _text(seed: int, size: int) -> str:
    random = np.random.default_rng(seed)
    words = WORDS.split()
    lines = [" ".join(random.choice(words, 9)) for _ in range(size // 50)]
    return "\n".join(lines)


@pytest.fixture(name="corpus", scope="module")
def corpus_folder(tmp_path_factory):
    """Two domains, every compression, one file of JSON lines."""
    root = tmp_path_factory.mktemp("corpus")
    for folder in ("first", "second"):
        (root / folder).mkdir()
    (root / "first" / "plain.txt").write_text(_text(1, 200_000))
    (root / "first" / "a.txt.xz").write_bytes(lzma.compress(_text(2, 100_000).encode()))
    (root / "first" / "b.txt.bz2").write_bytes(bz2.compress(_text(3, 100_000).encode()))
    lines = "".join(json.dumps({"text": _text(10 + i, 900)}) + "\n" for i in range(60))
    (root / "second" / "lines.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (root / "second" / "notes.md").write_text("not read")
    return root


@pytest.fixture(name="tokenizer", scope="module")
def small_tokenizer(tmp_path_factory) -> ModelTokenizer:
    return train_tokenizer([_text(1, 20_000)], 290, tmp_path_factory.mktemp("model") / "tokenizer.json")


SMALL = prepare.Options(min_train_tokens=1_000)


def test_token_files_hold_the_text_of_every_split_and_nothing_else(corpus, tokenizer, tmp_path):
    files = domains.from_folder(corpus)
    summary = prepare.prepare(files, tokenizer, tmp_path / "out", SMALL)
    data = load_data(tmp_path / "out")
    assert data.domains == ["first", "second"] and data.vocab == 290
    assert data.tokenizer_sha256 == tokenizer.sha256
    for name, members in files.domains.items():
        found = {split: [] for split in documents.SPLITS}
        split_of = prepare._plan(files, name).split
        for document in prepare.round_robin(corpus, members):
            found[split_of[document.file, document.index]].append(document.text)
        for split, texts in found.items():
            stored = data.splits[name][split]
            assert [tokenizer.tokenizer.decode(d.tolist()) for d in stored.documents()] == texts
            assert stored.text_bytes == [len(text.encode()) for text in texts]
            assert summary["splits"][name][split]["tokens"] == stored.tokens.size
    assert data.splits["first"]["train"].tokens.dtype == np.dtype("<u2")


def test_a_split_that_the_hash_leaves_empty_gets_one_document(corpus):
    files = domains.from_folder(corpus)
    split = prepare._plan(files, "first").split
    moved = [key for key, name in split.items() if documents.split_of(*key) != name]
    by_hash = {documents.split_of(*key) for key in split}
    assert set(split.values()) == set(documents.SPLITS)
    assert len(moved) == len(documents.SPLITS) - len(by_hash) > 0
    assert moved[0] == min(split, key=lambda key: documents.hash_of(*key))


def test_two_runs_write_the_same_bytes(corpus, tokenizer, tmp_path):
    for name in ("one", "two"):
        prepare.prepare(domains.from_folder(corpus), tokenizer, tmp_path / name, SMALL)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(files) == 7
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_files_take_turns_and_max_tokens_ends_a_domain(corpus, tokenizer, tmp_path):
    files = domains.from_folder(corpus)
    order = [document.file for document in prepare.round_robin(corpus, files.domains["first"])]
    assert order[:6] == ["first/a.txt.xz", "first/b.txt.bz2", "first/plain.txt"] * 2
    prepare.prepare(files, tokenizer, tmp_path / "out", prepare.Options(max_tokens=5_000, min_train_tokens=1))
    for splits in load_data(tmp_path / "out").splits.values():
        assert all(split.tokens.size for split in splits.values())
    whole = prepare.prepare(files, tokenizer, tmp_path / "whole", SMALL)["splits"]["second"]["train"]["tokens"]
    assert load_data(tmp_path / "out").splits["second"]["train"].tokens.size < whole / 2


def test_the_separator_follows_each_document(corpus, tokenizer, tmp_path):
    options = prepare.Options(min_train_tokens=1, separator="Z")
    summary = prepare.prepare(domains.from_folder(corpus), tokenizer, tmp_path / "out", options)
    assert summary["separator"] == tokenizer.id_of("Z")
    data = load_data(tmp_path / "out")
    assert all(d[-1] == summary["separator"] for d in data.splits["second"]["train"].documents())


def test_an_unseen_domain_is_test_text_only(corpus, tokenizer, tmp_path):
    table = tmp_path / "table.toml"
    table.write_text('[domains]\nlearned = ["first/*.txt*"]\n[unseen]\nprobe = ["second/lines.jsonl.gz"]\n')
    files = domains.from_table(table, corpus)
    prepare.prepare(files, tokenizer, tmp_path / "out", prepare.Options(unseen_tokens=2_000, min_train_tokens=1))
    data = load_data(tmp_path / "out")
    assert data.domains == ["learned"] and data.unseen == ["probe"]
    assert list(data.splits["probe"]) == ["test"]
    assert not (tmp_path / "out" / "tokens" / "probe.train.bin").exists()


def test_a_tsv_table_and_the_default_table(corpus, tmp_path):
    table = tmp_path / "table.tsv"
    table.write_text("# domain, file\none\tfirst/plain.txt\none\tsecond/*.gz\n")
    assert domains.from_table(table, corpus).domains == {"one": ["first/plain.txt", "second/lines.jsonl.gz"]}
    with pytest.raises(InputError, match=r"no file for redpajama_c4\.txt\.xz, redpajama_github\.txt\.xz, code_go"):
        domains.from_table("default", corpus)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[domains]\nx = "a"', "E_DOMAINS: .*: x: found 'a', expected a list of file names"),
        ("[domains", "E_DOMAINS: .*: table: found "),
        ("[other]", r"E_DOMAINS: .*: other: found an unknown section, expected \[domains\] or \[unseen\]"),
        ("", "E_DOMAINS: .*: domains: found none, expected at least one"),
        ('[domains]\n"a b" = ["first/plain.txt"]', "'a b': found this domain name"),
        ('[domains]\nx = ["../secret"]', "x: found '../secret', expected a file inside"),
        ('[domains]\nx = ["second/notes.md"]', "second/notes.md: found an unknown ending"),
    ],
)
def test_a_bad_table_is_named(corpus, tmp_path, table, message):
    path = tmp_path / "table.toml"
    path.write_text(table)
    with pytest.raises(InputError, match=message):
        domains.from_table(path, corpus)


def test_a_small_domain_says_what_it_has_and_what_it_needs(corpus, tokenizer, tmp_path):
    files = domains.from_folder(corpus)
    with pytest.raises(InputError) as caught:
        prepare.prepare(files, tokenizer, tmp_path / "out", prepare.Options(min_train_tokens=10**6))
    assert str(caught.value).startswith(f"outrider: error E_DOMAIN: {corpus}: first: found ")
    assert "train tokens, expected at least 1000000" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_domain_of_one_document_is_refused(tokenizer, tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "one.txt").write_text("one document")
    with pytest.raises(InputError, match="text: found 1 documents in 1 files, expected at least 3"):
        prepare.prepare(domains.from_folder(tmp_path / "text"), tokenizer, tmp_path / "out", SMALL)


def test_an_existing_folder_is_kept_unless_forced(corpus, tokenizer, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="E_EXISTS"):
        prepare.prepare(domains.from_folder(corpus), tokenizer, out, SMALL)
    assert (out / "mine.txt").read_text() == "mine"
    prepare.prepare(domains.from_folder(corpus), tokenizer, out, SMALL, force=True)
    assert sorted(p.name for p in out.iterdir()) == ["data.json", "tokens"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_noticed_before_writing(corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000})())
    with pytest.raises(InputError, match=r"E_DISK: .*: free space: found 1000 bytes, expected at least \d{6} bytes"):
        prepare.prepare(domains.from_folder(corpus), tokenizer, tmp_path / "out", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_every_failing_write_leaves_nothing_behind(corpus, tokenizer, tmp_path, monkeypatch):
    """Fails the n-th write for every n: of documents, and of data.json."""
    left = 0
    reals = {prepare._Split: "append", prepare: "write_file"}

    def failing(real):
        def call(*arguments):
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        return call

    for owner, name in reals.items():
        monkeypatch.setattr(owner, name, failing(getattr(owner, name)))
    files = domains.from_table(_table(tmp_path / "in", 'only = ["second/lines.jsonl.gz"]'), corpus)
    for number in range(1, 62):
        left = number
        with pytest.raises(OSError, match="No space left"):
            prepare.prepare(files, tokenizer, tmp_path / "out", SMALL)
        assert [path.name for path in tmp_path.iterdir()] == ["in"]
    left = 62
    prepare.prepare(files, tokenizer, tmp_path / "out", SMALL)
    assert left == 1 and (tmp_path / "out" / "data.json").exists()


def _table(folder, line):
    folder.mkdir()
    (folder / "table.toml").write_text(f"[domains]\n{line}\n")
    return folder / "table.toml"


def test_broken_files_are_named(tmp_path):
    (tmp_path / "a.txt.xz").write_bytes(b"no xz")
    with pytest.raises(InputError, match=r"E_DATA: .*a\.txt\.xz: content: found "):
        list(documents.read_documents(tmp_path, "a.txt.xz"))
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"title": "no text"}\n')
    with pytest.raises(InputError, match=r"E_DATA: .*a\.jsonl: line 2: found "):
        list(documents.read_documents(tmp_path, "a.jsonl"))


def test_a_damaged_compressed_file_is_named(tmp_path):
    whole = bytearray(gzip.compress(_text(1, 4_000).encode()))
    whole[len(whole) // 2] ^= 0xFF
    (tmp_path / "a.txt.gz").write_bytes(whole)
    with pytest.raises(InputError, match=r"E_DATA: .*a\.txt\.gz: content: found "):
        list(documents.read_documents(tmp_path, "a.txt.gz"))


def test_json_lines_as_they_come(tmp_path, tokenizer):
    (tmp_path / "text").mkdir()
    lines = [
        b'\xef\xbb\xbf{"text": "behind a mark"}',
        b"",
        b'{"text": "no UTF-8: \xff"}',
        b'{"text": "half \\ud83d, whole \\ud83d\\ude00"}',
        b'{"text": ""}',
        b'{"text": "windows"}\r',
        b"   ",
        json.dumps({"text": "one long line " * 50_000}).encode(),
    ]
    (tmp_path / "text" / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    found = list(documents.read_documents(tmp_path, "text/a.jsonl"))
    assert [(one.index, one.text) for one in found[:4]] == [
        (0, "behind a mark"),
        (2, "no UTF-8: \ufffd"),
        (3, "half \ufffd, whole \U0001f600"),
        (5, "windows"),
    ]
    assert (found[4].index, len(found[4].text), len(found)) == (7, 14 * 50_000, 5)
    prepare.prepare(domains.from_folder(tmp_path / "text"), tokenizer, tmp_path / "out", SMALL)
    for bad in (b'{"text": ' + b"[" * 100_000, b'["text"]', b'{"content": "x"}', b'{"text": 3}', b"text"):
        (tmp_path / "text" / "a.jsonl").write_bytes(b'{"text": "good"}\n' + bad)
        with pytest.raises(InputError, match=r'a\.jsonl: line 2: found .*, expected an object with a string "text"'):
            list(documents.read_documents(tmp_path, "text/a.jsonl"))


def test_links_are_followed_and_those_that_lead_nowhere_are_named(tmp_path):
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    (elsewhere / "deep" / "er").mkdir(parents=True)
    (elsewhere / "deep" / "er" / "a.txt").write_text(_text(1, 1_000))
    (root / "plain").mkdir(parents=True)
    (root / "plain" / "b.txt").symlink_to(elsewhere / "deep" / "er" / "a.txt")
    (root / "linked").symlink_to(elsewhere)
    (elsewhere / "again").symlink_to(root)
    (root / "plain" / "notes.md").symlink_to("nowhere")
    files = domains.from_folder(root)
    assert files.domains == {"linked": ["linked/deep/er/a.txt"], "plain": ["plain/b.txt"]}
    assert [one.text for one in documents.read_documents(root, "linked/deep/er/a.txt")] == [_text(1, 1_000)]
    (root / "plain" / "c.txt").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"E_DATA: .*c\.txt: content: found .*No such file"):
        list(documents.read_documents(root, domains.from_folder(root).domains["plain"][1]))


def test_one_folder_of_any_name_is_a_domain(tmp_path):
    (tmp_path / "my texts, v1.2").mkdir()
    (tmp_path / "my texts, v1.2" / "a.txt").write_text("text")
    assert domains.from_folder(tmp_path / "my texts, v1.2").domains == {"my-texts--v1-2": ["a.txt"]}


def test_a_tokenizer_larger_than_the_model_is_refused(tokenizer):
    config = tokenizer.path.with_name("config.json")
    config.write_text('{"vocab_size": 289}')
    try:
        with pytest.raises(InputError, match=r"E_VOCAB: .*: vocabulary: found id 289, expected ids below 289"):
            load_tokenizer(tokenizer.path.parent)
    finally:
        config.unlink()


def test_damaged_data_sets_are_refused(corpus, tokenizer, tmp_path):
    prepare.prepare(domains.from_folder(corpus), tokenizer, tmp_path / "out", SMALL)
    file = tmp_path / "out" / "tokens" / "first.valid.bin"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(InputError, match=r"first\.valid\.bin: tokens: found \d+ bytes, expected \d+ bytes"):
        load_data(tmp_path / "out")


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.text(max_size=40), max_size=30), repeat=st.integers(1, 400))
def test_chunks_are_small_whole_and_lose_nothing(tmp_path_factory, pieces, repeat):
    text = "".join(pieces) * repeat
    root = tmp_path_factory.mktemp("chunks")
    data = text.encode("utf-8", errors="replace")
    (root / "a.txt").write_bytes(data)
    with (root / "a.txt").open("rb") as stream:
        chunks = list(documents._chunks(root, stream))
    assert "".join(chunks).encode() == data
    assert all(0 < len(chunk.encode()) <= documents.CHUNK_BYTES for chunk in chunks)


def test_the_split_is_90_5_5_and_never_changes():
    counts = dict.fromkeys(documents.SPLITS, 0)
    for index in range(20_000):
        counts[documents.split_of("some/file.txt", index)] += 1
    assert abs(counts["train"] - 18_000) < 150
    assert abs(counts["valid"] - 1_000) < 110 and abs(counts["test"] - 1_000) < 110
    assert [documents.split_of("a.txt", i) for i in (0, 1, 2, 3)] == ["train", "train", "train", "train"]
