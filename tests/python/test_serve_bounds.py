"""Requests and readers that could cost others their time: wrong lists, slow and stopped readers, early ends."""

import asyncio
import json
import socket
import time

import pytest
from fake_engine import FakeEngine, ServeRejected, make_folder
from outrider.refactor.errors import InputError
from outrider.serve import auth, body, completions, hub, protocol, sampling, schema, start
from outrider.serve.errors import ApiError
from serve_fixtures import ids_of, running, wait_for, writes

ASK = [{"role": "user", "content": "Where?"}]
MANY = 20_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("bounds") / "m")


def _post(path: str, value: dict, *more: str) -> bytes:
    raw = json.dumps(value).encode()
    head = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(raw)}", *more]
    return "\r\n".join([*head, "", ""]).encode() + raw


@pytest.mark.parametrize(
    ("parse", "value", "says"),
    [
        (schema.parse_chat, {"messages": [{"role": "user", "content": [1] * MANY}]}, "messages.0.content"),
        (schema.parse_chat, {"messages": [1] * MANY}, "messages.0"),
        (schema.parse_tokenize, {"messages": [{"role": "user", "content": [1] * MANY}]}, "messages.0.content"),
        (schema.parse_completion, {"prompt": [0.5] * MANY}, "prompt"),
        (schema.parse_completion, {"prompt": [[0.5] * MANY]}, "prompt"),
        (schema.parse_completion, {"prompt": [-1] * MANY}, "prompt"),
        (schema.parse_completion, {"prompt": [None] * MANY}, "prompt"),
        (schema.parse_completion, {"prompt": "a", "stop": [1] * MANY}, "stop"),
    ],
)
def test_a_list_of_wrong_items_is_refused_at_its_first(parse, value, says, monkeypatch):
    errors = []
    refusal = schema._refusal
    monkeypatch.setattr(schema, "_refusal", lambda found: errors.append(len(found)) or refusal(found))
    with pytest.raises(ApiError) as error:
        parse(value)
    assert error.value.param == says and len(error.value.message) < 1000
    assert errors[0] <= 25, "one error for each item"


def test_objects_of_many_members_are_refused():
    with pytest.raises(ApiError, match="at most 1024"):
        body.parse_object(json.dumps({"messages": [{f"a{i}": 0 for i in range(2000)}]}).encode())
    assert len(body.parse_object(json.dumps({f"a{i}": 0 for i in range(1024)}).encode())) == 1024


@pytest.mark.parametrize("header", ["0", "9" * 19, "0" * 11 + "1" + "9" * 4400, "86400001", "-1", "1.5", "²"])
def test_deadlines_that_are_none(header):
    with pytest.raises(ApiError, match="86400000"):
        sampling.deadline_of(header)


def test_what_waits_behind_a_stop_string_is_dropped(folder):
    """Events that had come before the stop was seen are no part of the text."""
    with running(folder, script=writes(folder, "ab!" + "z" * 50)) as server:
        mailbox = hub.Mailbox(server.state.hub)
        mailbox._open, mailbox._submitted = {1: 0, 2: 1}, 2
        event = {"tokens": [5, 6], "finish": None}
        for stream in (1, 2, 1, 1):
            mailbox.put({"stream": stream} | event)
        mailbox.cancel(0)
        assert [index for index, _ in mailbox._events] == [1] and mailbox._waiting_tokens == 2
        answer = server.client().completions.create(model="tiny", prompt="x", stop="!", max_tokens=60, logprobs=0)
        assert answer.choices[0].text == "ab" and answer.choices[0].finish_reason == "stop"


def test_a_stream_that_is_read_slowly_has_one_end(folder):
    text = "a" * 400 + "STOP" + "z" * 600
    with running(folder, script=writes(folder, text)) as server, server.connect() as connection:
        asked = {"prompt": "x", "stop": "STOP", "max_tokens": 1004, "stream": True, "logprobs": 5}
        connection.sendall(_post("/v1/completions", asked, "Connection: close"))
        time.sleep(0.3)  # all that will be written waits by now
        raw = b"".join(iter(lambda: connection.recv(65536), b""))
        assert raw.count(b'"finish_reason":"stop"') == 1 and b"zz" not in raw
        assert b"outrider_e2e_seconds_count 1.0" in server.request("GET", "/metrics")[2]


@pytest.mark.parametrize("text", ["aSTxé😀bc", "STSTSTé", "éééSTO"])
def test_offsets_of_a_stream_are_those_of_the_whole(folder, text):
    with running(folder, script=writes(folder, text), token_s=0.002) as server:
        ask = {"model": "tiny", "prompt": "x", "stop": "STOP", "max_tokens": 64, "logprobs": 0}
        whole = server.client().completions.create(**ask).choices[0].logprobs.text_offset
        streamed = []
        for chunk in server.client().completions.create(**ask, stream=True):
            streamed += chunk.choices[0].logprobs.text_offset if chunk.choices[0].logprobs else []
        assert streamed == whole and len(whole) >= len(ids_of(text, folder))


def test_an_echo_alone_ends_by_its_length(folder):
    with running(folder, script=lambda _: [2]) as server:
        answer = server.client().completions.create(model="tiny", prompt="abc", echo=True, max_tokens=0)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("abc", "length")


def _small_buffers(monkeypatch, bytes_kept: int) -> None:
    """Of the server, so that little is enough to fill them."""
    made = protocol.BoundedProtocol.connection_made

    def connection_made(self, transport):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, bytes_kept)
        made(self, transport)

    monkeypatch.setattr(protocol.BoundedProtocol, "connection_made", connection_made)


def _reader(server, receive: int) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    connection.connect(("127.0.0.1", server.port))
    connection.settimeout(20)
    return connection


def test_an_answer_that_nobody_reads_is_given_up(folder, monkeypatch):
    """Too small for the transport to pause its writer, too large for the buffers below."""
    monkeypatch.setattr(protocol.BoundedProtocol, "write_blocked_s", 0.3)
    _small_buffers(monkeypatch, 4096)
    counted = []
    lost = protocol.BoundedProtocol.connection_lost
    monkeypatch.setattr(
        protocol.BoundedProtocol, "connection_lost", lambda self, why: (counted.append(why), lost(self, why))
    )
    with running(folder) as server:
        readers = [_reader(server, 2048) for _ in range(8)]
        for number, reader in enumerate(readers):
            reader.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"Connection: close\r\n" * (number % 2) + b"\r\n")
        wait_for(lambda: len(counted) == len(readers), 10)
        for reader in readers:
            reader.close()


def test_a_slow_reader_gets_everything(folder, monkeypatch):
    monkeypatch.setattr(protocol.BoundedProtocol, "write_blocked_s", 0.4)
    monkeypatch.setattr(protocol, "WRITE_PROGRESS_BYTES", 4096)
    _small_buffers(monkeypatch, 8192)
    text = "x" * 4000
    with running(folder, context=5000, script=writes(folder, text)) as server:
        reader = _reader(server, 8192)
        ask = {"prompt": "x", "max_tokens": 4001, "logprobs": 5}
        reader.sendall(_post("/v1/completions", ask, "Connection: close"))
        received = b""
        while part := reader.recv(4096):
            received += part
            time.sleep(0.03)
        head, _, answer = received.partition(b"\r\n\r\n")
        assert int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]) == len(answer) > 200_000
        assert json.loads(answer)["choices"][0]["text"] == text


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_behind_an_early_request(folder, stream):
    """What comes before its turn must not hide that the connection has ended."""
    with running(folder, token_s=0.02, script=writes(folder, "x" * 3000)) as server:
        with server.connect() as connection:
            connection.sendall(_post("/v1/chat/completions", {"messages": ASK, "stream": stream}))
            wait_for(lambda: server.engine.stats()["running"] == 1)
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            time.sleep(0.2)
        wait_for(lambda: server.engine.stats()["running"] == 0)


def test_requests_behind_one_another_are_answered_in_turn(folder):
    with running(folder, script=writes(folder, "hello")) as server, server.connect() as connection:
        ask = _post("/v1/completions", {"prompt": "x", "max_tokens": 6})
        connection.sendall(ask * 3 + b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        raw = b"".join(iter(lambda: connection.recv(65536), b""))
        assert raw.count(b"HTTP/1.1 200") == 4 and raw.count(b'"text":"hello"') == 3


def test_the_loop_turns_between_the_choices_of_an_answer(folder, monkeypatch):
    turns, seen = 0, []
    made = completions._Part.choice

    def choice(self, *arguments):
        seen.append(turns)
        return made(self, *arguments)

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def one() -> None:
        options = start.ServeOptions(model=folder, name="tiny")
        engine = FakeEngine()
        state = start.make_state(options, start.read_inputs(options), engine, ServeRejected)
        state.hub.start()
        counting = asyncio.create_task(count())
        asked = schema.parse_completion({"prompt": ["ab"] * 5, "echo": True, "logprobs": 2, "max_tokens": 2})
        answer = await completions.completion_answer(completions.start_completion(state, asked, [[5, 6]] * 5, {}))
        counting.cancel()
        await state.hub.stop()
        engine.close()
        assert len(answer["choices"]) == 5

    monkeypatch.setattr(completions._Part, "choice", choice)
    asyncio.run(one())
    assert len(set(seen)) == 5, "nobody else had a turn"


def test_options_that_are_no_whole_numbers(tmp_path):
    from serve_artifact import make_artifact

    make_artifact(tmp_path / "m")
    for value in (1.5, 1e3, 1 << 70):
        with pytest.raises(InputError, match="E_OPTION"):
            start.open_engine(start.ServeOptions(model=tmp_path / "m", engine={"kv_tokens": value}))


def test_keys_that_cannot_be_read_for_a_moment(tmp_path, monkeypatch, caplog):
    path = tmp_path / "keys"
    old, new = ("0" * 63 + digit for digit in "12")
    path.write_text(f"user a {old}\n")
    keys = auth.Keys(path)
    path.write_text(f"user b {new} requests=3\n")
    read = auth.Path.read_text

    def fails(self, *arguments, **keywords):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(auth.Path, "read_text", fails)
    for _ in range(3):
        with pytest.raises(ApiError):
            keys.check("Bearer x", admin=False)
    assert keys._keys[0].name == "a" and len(caplog.records) == 1
    monkeypatch.setattr(auth.Path, "read_text", read)
    with pytest.raises(ApiError):
        keys.check("Bearer x", admin=False)
    assert keys._keys[0].name == "b"


def test_caps_of_a_key_with_many_digits(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"user a {'0' * 64} requests={'0' * 19}1{'9' * 5000}\n")
    with pytest.raises(InputError, match="E_KEYS"):
        auth.read_keys(path)
