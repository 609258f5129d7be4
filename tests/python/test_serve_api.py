"""The API through OpenAI's own client."""

import openai
import pytest
from fake_engine import make_folder
from serve_fixtures import running, wait_for, writes

ASK = [{"role": "user", "content": "Where?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("serve") / "m")


@pytest.fixture(scope="module")
def server(folder):
    with running(folder, script=writes(folder, "In Paris \N{GRINNING FACE}, of course.")) as found:
        yield found


def test_chat_answer(server):
    answer = server.client().chat.completions.create(model="tiny", messages=ASK, user="me", metadata={"a": "b"})
    assert answer.choices[0].message.content == "In Paris \N{GRINNING FACE}, of course."
    assert answer.choices[0].finish_reason == "stop" and answer.model == "tiny"
    text = server.state.tokenizer.chat_text(ASK)
    assert answer.usage.prompt_tokens == len(server.state.tokenizer.encode(text, special=False))
    assert answer.usage.completion_tokens == len("In Paris , of course.") + 4
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_stream_with_usage(server):
    stream = server.client().chat.completions.create(
        model="tiny", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "In Paris \N{GRINNING FACE}, of course."
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices].count("stop") == 1
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 25
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert all("outrider" not in chunk.model_extra for chunk in chunks)


def test_experts_come_when_asked_for(server):
    stream = server.client().chat.completions.create(
        model="tiny", messages=ASK, stream=True, extra_body={"outrider": {"experts": True}}
    )
    pieces = [piece for chunk in stream for piece in chunk.model_extra.get("outrider", {}).get("pieces", [])]
    assert "".join(text for text, _ in pieces) == "In Paris \N{GRINNING FACE}, of course."
    assert pieces[0] == ["I", server.state.tokenizer.encode("I")[0] % 7]


def test_stop_strings_across_characters_of_several_bytes(server):
    for stop, expected in (("\N{GRINNING FACE},", "In Paris "), ([", of", "zzz"], "In Paris \N{GRINNING FACE}")):
        answer = server.client().chat.completions.create(model="tiny", messages=ASK, stop=stop)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (expected, "stop")
        stream = server.client().chat.completions.create(model="tiny", messages=ASK, stop=stop, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == expected
    wait_for(lambda: server.engine.stats()["running"] == 0)


def test_token_limits(server):
    for limits in ({"max_tokens": 5}, {"max_completion_tokens": 5}):
        answer = server.client().chat.completions.create(model="tiny", messages=ASK, **limits)
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("In Pa", "length")


def test_half_a_character_at_the_limit(server):
    answer = server.client().chat.completions.create(model="tiny", messages=ASK, max_tokens=11)
    assert answer.choices[0].message.content == "In Paris \N{REPLACEMENT CHARACTER}"


def test_sampling_reaches_the_engine(server):
    extra = {"top_k": 5, "repetition_penalty": 1.1, "outrider": {"deadline_ms": 9000, "priority": 1}}
    server.client().chat.completions.create(
        model="tiny",
        messages=ASK,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.1,
        frequency_penalty=-0.2,
        seed=-1,
        max_tokens=3,
        extra_body=extra,
    )
    params = [value for name, value in server.engine.calls if name == "submit"][-1]
    assert params.pop("limit", None) is None
    assert params == {
        "max_tokens": 3,
        "temperature": 0.5,
        "top_k": 5,
        "top_p": 0.9,
        "presence_penalty": 0.1,
        "frequency_penalty": -0.2,
        "repetition_penalty": 1.1,
        "seed": (1 << 64) - 1,
        "stop_ids": [2],
        "logprobs": -1,
        "echo_logprobs": False,
        "deadline_ms": 9000,
        "priority": 1,
    }


def test_several_choices_have_their_own_seeds(folder):
    with running(folder) as server:
        ask = {"model": "tiny", "prompt": "abcdefgh", "n": 3, "seed": 2, "max_tokens": 30}
        texts = [choice.text for choice in server.client().completions.create(**ask).choices]
        assert texts == ["cdefghab", "defghabc", "efghabcd"]
        again = server.client().completions.create(**ask, stream=True)
        found = ["", "", ""]
        for chunk in again:
            found[chunk.choices[0].index] += chunk.choices[0].text
        assert found == texts


def test_chat_logprobs(server):
    answer = server.client().chat.completions.create(
        model="tiny", messages=ASK, logprobs=True, top_logprobs=2, max_tokens=10
    )
    rows = answer.choices[0].logprobs.content
    assert [row.token for row in rows[:3]] == ["I", "n", " "] and rows[0].logprob == -0.25
    assert [len(row.top_logprobs) for row in rows] == [2] * 10
    assert rows[9].bytes == [0xF0] and rows[2].bytes == [32]
    stream = server.client().chat.completions.create(
        model="tiny", messages=ASK, logprobs=True, max_tokens=12, stream=True
    )
    rows = [row for chunk in stream if chunk.choices[0].logprobs for row in chunk.choices[0].logprobs.content]
    assert len(rows) == 12


def test_completions_of_texts_and_ids(server):
    client, ids = server.client(), server.state.tokenizer.encode("Hello")
    for prompt, count in (("Hello", 1), (ids, 1), (["Hello", "You"], 2), ([ids, ids, ids], 3)):
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=4)
        assert [choice.text for choice in answer.choices] == ["In P"] * count
        assert [choice.index for choice in answer.choices] == list(range(count))
    assert answer.usage.prompt_tokens == 15 and answer.usage.completion_tokens == 12
    assert len(client.completions.create(model="tiny", prompt="Hello").choices[0].text) <= 16


def test_echo_and_logprobs_as_evaluation_programs_ask(server):
    ids = server.state.tokenizer.encode("Hello you")
    for limit in (0, 1):
        answer = server.client().completions.create(
            model="tiny", prompt=[ids, ids[:1]], max_tokens=limit, echo=True, logprobs=1, temperature=0
        )
        first, second = answer.choices
        assert first.text == "Hello you" + "I" * limit and first.finish_reason == "length"
        assert first.logprobs.token_logprobs == [None] + [-0.25] * (8 + limit)
        assert first.logprobs.tokens[:3] == ["H", "e", "l"] and first.logprobs.text_offset[:3] == [0, 1, 2]
        assert first.logprobs.top_logprobs[0] is None and first.logprobs.top_logprobs[1] == {"e": -0.25}
        assert second.logprobs.token_logprobs == [None] + [-0.25] * limit
        assert answer.usage.completion_tokens == 2 * limit


def test_offsets_count_characters_of_several_bytes_once(server):
    ids = server.state.tokenizer.encode("a\N{GRINNING FACE}éb")
    answer = server.client().completions.create(model="tiny", prompt=ids, max_tokens=0, echo=True, logprobs=0)
    found = answer.choices[0]
    assert found.text == "a\N{GRINNING FACE}éb" and found.logprobs.text_offset == [0, 1, 1, 1, 1, 2, 2, 3]


def test_echo_in_a_stream(server):
    stream = server.client().completions.create(
        model="tiny", prompt="Hello", max_tokens=3, echo=True, logprobs=0, stream=True
    )
    chunks = [chunk.choices[0] for chunk in stream]
    assert "".join(chunk.text for chunk in chunks) == "HelloIn "
    offsets = [offset for chunk in chunks if chunk.logprobs for offset in chunk.logprobs.text_offset]
    assert offsets == list(range(8))


def test_models_and_tokenize(server):
    assert [model.id for model in server.client().models.list()] == ["tiny"]
    assert server.client().models.retrieve("tiny").model_extra["max_model_len"] == 4096
    with pytest.raises(openai.NotFoundError):
        server.client().models.retrieve("other")
    ids = server.state.tokenizer.encode("Hé")
    status, _, body = server.request("POST", "/tokenize", {"prompt": "Hé"})
    assert status == 200 and body.decode() == f'{{"tokens":{str(ids).replace(" ", "")},"count":3,"max_model_len":4096}}'
    assert server.request("POST", "/tokenize", {"messages": ASK})[0] == 200


def test_model_without_template(tmp_path):
    with running(make_folder(tmp_path / "m", None)) as server:
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            server.client().chat.completions.create(model="tiny", messages=ASK)
        assert server.client().completions.create(model="tiny", prompt="ab", temperature=0).choices[0].text == "ab"
