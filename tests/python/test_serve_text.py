"""Text that grows token by token is the text of all tokens, and no part of a stop string leaves."""

import json

import pytest
from chat_fixtures import make_tokenizer
from fake_engine import make_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from outrider.serve.choice import Choice
from outrider.serve.errors import ApiError
from outrider.serve.text import Detokenizer, StopMatcher
from outrider.serve.tokens import ServeTokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return ServeTokenizer(make_folder(tmp_path_factory.mktemp("bytes")))


@given(text=st.text(max_size=40))
@settings(max_examples=80, deadline=None)
def test_growing_text_is_the_whole_text(tokenizer, text):
    stream = Detokenizer(tokenizer.decode)
    pieces = [stream.add(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + stream.finish() == text
    for piece in pieces:
        assert len(piece) <= 1  # one byte a token: a character comes whole or not at all


@given(ids=st.lists(st.integers(0, 258), max_size=150))
@settings(max_examples=80, deadline=None)
def test_any_bytes_give_the_text_that_decoding_gives(tokenizer, ids):
    stream = Detokenizer(tokenizer.decode)
    text = "".join([stream.add(token) for token in ids]) + stream.finish()
    if len(ids) <= 60:  # beyond one window of rubbish, characters cut in two may count twice
        assert text == tokenizer.decode(ids)
    else:
        assert text.replace("\ufffd", "") == tokenizer.decode(ids).replace("\ufffd", "")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """As of Llama 2 and Mistral: spaces are part of the names, characters outside the vocabulary are byte tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"abcé", "\u2581a", "\u2581b"]
    vocab = {name: number for number, name in enumerate(names)}
    merges = [("\u2581", "a"), ("\u2581", "b")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    folder = tmp_path_factory.mktemp("pieces")
    tokenizer.save(str(folder / "tokenizer.json"))
    return ServeTokenizer(folder)


@given(prompt=st.text("ab é\N{GRINNING FACE}", max_size=8), text=st.text("ab é\N{GRINNING FACE}", max_size=12))
@settings(max_examples=80, deadline=None)
def test_text_goes_on_from_its_prompt(pieces, prompt, text):
    ids = pieces.encode("a" + prompt + " b" + text)
    place = len(pieces.encode("a" + prompt))
    if ids[:place] != pieces.encode("a" + prompt):
        return
    stream = Detokenizer(pieces.decode, pieces.before_text(ids[:place]))
    parts = [stream.add(token) for token in ids[place:]] + [stream.finish()]
    assert "".join(parts) == " b" + text and not any("\ufffd" in part for part in parts)
    alone = Detokenizer(pieces.decode)
    assert "".join([alone.add(token) for token in ids[place:]]) + alone.finish() == "b" + text


@given(ids=st.lists(st.integers(1, 264), max_size=40))
@settings(max_examples=80, deadline=None)
def test_any_byte_tokens_give_the_text_that_decoding_gives(pieces, ids):
    stream = Detokenizer(pieces.decode)
    assert "".join([stream.add(token) for token in ids]) + stream.finish() == pieces.decode(ids)
    whole = pieces._tokenizer.decode(ids)
    if "\ufffd" not in whole:
        assert pieces.decode(ids).lstrip(" ") == whole.lstrip(" ")  # a space as a byte stays


def test_names_and_bytes_of_tokens(pieces, tokenizer):
    names = {pieces.token_text(token): pieces.token_bytes(token) for token in pieces.encode("a bcé")}
    assert names == {" a": [32, 97], " b": [32, 98], "c": [99], "é": [0xC3, 0xA9]}
    face = "\N{GRINNING FACE}"
    assert [pieces.token_bytes(token) for token in pieces.encode(face)][-4:] == [[byte] for byte in face.encode()]
    assert [tokenizer.token_bytes(token) for token in tokenizer.encode("é")] == [[0xC3], [0xA9]]


def test_endless_rubbish_costs_a_bounded_window(tokenizer):
    sizes = []

    def decode(ids):
        sizes.append(len(ids))
        return tokenizer.decode(ids)

    stream = Detokenizer(decode)
    half = tokenizer.encode("\N{GRINNING FACE}")[1]
    text = "".join(stream.add(half) for _ in range(500)) + stream.finish()
    assert max(sizes) <= 65 and set(text) == {"\ufffd"}


@given(
    pieces=st.lists(st.text("abc", max_size=5), max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_stop_strings_cut_where_they_first_appear(pieces, stops):
    matcher, sent = StopMatcher(stops), ""
    for piece in pieces:
        sent += matcher.add(piece)
        assert not any(stop in sent for stop in stops)
    sent += matcher.finish()
    text = "".join(pieces)
    # Text arrives in pieces: the first stop string to be complete decides.
    ends = sorted((text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text)
    assert (matcher.hit is not None) == bool(ends)
    if ends:
        assert text.startswith(sent) and any(text[len(sent) :].startswith(stop) for stop in stops)
    else:
        assert sent == text


def _event(tokens, **changes):
    event = {"tokens": tokens, "experts": [], "logprobs": [], "finish": None, "cached_tokens": 0, "error": ""}
    return {**event, **changes}


def test_a_choice_ends_at_a_stop_string_inside_an_event(tokenizer):
    ids = tokenizer.encode("one \N{GRINNING FACE} END two")
    choice = Choice([5, 6], tokenizer.decode, [" END"], None)
    delta = choice.add(_event(ids, experts=[0, 0] + [token % 7 for token in ids]))
    assert (delta.text, delta.finish) == ("one \N{GRINNING FACE}", "stop")
    assert "".join(text for text, _ in delta.pieces) == delta.text
    assert delta.pieces[0] == ("o", ids[0] % 7) and delta.pieces[-1] == ("\N{GRINNING FACE}", ids[7] % 7)
    assert choice.written == len("one ") + 4 + len(" END")


def test_text_held_for_a_stop_string_comes_at_the_end(tokenizer):
    choice = Choice([5], tokenizer.decode, ["END"], None)
    assert choice.add(_event(tokenizer.encode("an EN"))).text == "an "
    delta = choice.add(_event([], finish="length"))
    assert (delta.text, delta.finish, [text for text, _ in delta.pieces]) == ("EN", "length", ["E", "N"])


@pytest.mark.parametrize("turns", [1, 3])
def test_chat_template_as_in_transformers(tmp_path, turns):
    import transformers

    make_tokenizer(tmp_path)
    other = transformers.AutoTokenizer.from_pretrained(tmp_path)
    roles = ("user", "assistant")
    messages = [{"role": roles[turn % 2], "content": f"what is {turn} <b>&"} for turn in range(turns)]
    for chat in (messages, [{"role": "system", "content": "be brief"}, *messages]):
        expected = other.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert ServeTokenizer(tmp_path).chat_ids(chat) == expected
    assert ServeTokenizer(tmp_path).encode("what is this") == other("what is this").input_ids


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ messages[7].content.x }}",
        "{% for i in range(10**9) %}{% endfor %}",
    ],
)
def test_templates_that_refuse_or_misbehave(tmp_path, template):
    make_folder(tmp_path, template)
    with pytest.raises(ApiError) as caught:
        ServeTokenizer(tmp_path).chat_ids([{"role": "user", "content": "x"}])
    assert caught.value.status == 400 and caught.value.param == "messages"


def test_template_files_and_named_templates(tmp_path):
    make_folder(tmp_path, None)
    assert not ServeTokenizer(tmp_path).has_template
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "tools", "template": "T"}, {"name": "default", "template": "{{ bos_token }}D"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ServeTokenizer(tmp_path).chat_text([]) == "<|begin|>D"
    (tmp_path / "chat_template.jinja").write_text("F")
    assert ServeTokenizer(tmp_path).chat_text([]) == "F"
