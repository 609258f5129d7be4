"""Several keys at one server: caps of each, and whose prefix cache a text may read."""

import hashlib
import json

import openai
import pytest
from fake_engine import make_folder
from hypothesis import given
from hypothesis import strategies as st
from outrider.refactor.errors import InputError
from outrider.serve.auth import CAP_MAX, read_keys
from outrider.serve.start import ServeOptions
from serve_fixtures import running, wait_for, writes

ASK = [{"role": "user", "content": "Where?"}]
CHAT = "/v1/chat/completions"
DIGEST = "0" * 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("serve") / "m")


def _keys(path, *lines: str):
    """Each line `NAME CAPS`; the key of a name is `sk-NAME`."""
    rows = [line.partition(" ") for line in lines]
    path.write_text("".join(f"user {n} {hashlib.sha256(f'sk-{n}'.encode()).hexdigest()} {c}\n" for n, _, c in rows))
    return path


def _submitted(server) -> dict:
    return [params for name, params in server.engine.calls if name == "submit"][-1]


@pytest.mark.parametrize("stream", [False, True])
def test_a_key_over_its_cap_is_told_to_wait(folder, tmp_path, stream):
    keys = _keys(tmp_path / "keys", "ann requests=1", "bob")
    with running(folder, keys=keys, token_s=0.02, script=writes(folder, "x" * 3000)) as server:
        ann, bob = server.client("sk-ann").chat.completions, server.client("sk-bob").chat.completions
        held = ann.create(model="tiny", messages=ASK, stream=True)
        next(held)
        with pytest.raises(openai.RateLimitError) as caught:
            ann.create(model="tiny", messages=ASK, stream=stream)
        answer = caught.value.response
        assert answer.headers["content-type"] == "application/json" and int(answer.headers["retry-after"]) >= 1
        assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "rate_limit_error")
        other = bob.create(model="tiny", messages=ASK, stream=True)
        next(other)
        held.close()
        wait_for(lambda: server.engine.stats()["running"] == 1)
        again = ann.create(model="tiny", messages=ASK, stream=True)
        next(again)
        for open_stream in (again, other):
            open_stream.close()
        bearer = {"Authorization": "Bearer sk-ann"}
        for path, body in ((CHAT, {"messages": ASK, "n": 2}), ("/v1/completions", {"prompt": ["a", "b"]})):
            status, error = server.error(path, body, **bearer)
            assert (status, error["param"]) == (400, "n")


def test_caps_that_change_hold_from_the_next_request_on(folder, tmp_path):
    keys = _keys(tmp_path / "keys", "ann requests=4 tokens=700")
    with running(folder, keys=keys) as server:
        client = server.client("sk-ann").chat.completions
        client.create(model="tiny", messages=ASK)
        assert (_submitted(server)["tenant_requests_max"], _submitted(server)["tenant_tokens_max"]) == (4, 700)
        _keys(keys, "ann tokens=80")
        client.create(model="tiny", messages=ASK)
        assert (_submitted(server)["tenant_requests_max"], _submitted(server)["tenant_tokens_max"]) == (0, 80)


def test_a_key_reads_its_own_prefixes_alone_unless_told(folder, tmp_path):
    keys = _keys(tmp_path / "keys", "ann", "bob")
    with running(folder, keys=keys) as server:
        for name in ("ann", "bob"):
            server.client(f"sk-{name}").chat.completions.create(model="tiny", messages=ASK)
            assert (_submitted(server)["tenant"], _submitted(server)["salt"]) == (name, name)
        server.state.share_prefixes = True
        server.client("sk-bob").completions.create(model="tiny", prompt="a")
        assert (_submitted(server)["tenant"], _submitted(server)["salt"]) == ("bob", "")


def test_without_keys_there_is_one_tenant(folder):
    with running(folder) as server:
        status, _, raw = server.request("POST", CHAT, {"messages": ASK})
        assert status == 200 and json.loads(raw)["choices"]
        assert "tenant" not in _submitted(server) and "salt" not in _submitted(server)
    with pytest.raises(InputError, match="--share-prefixes"):
        ServeOptions(model=folder, share_prefixes=True).check()


@pytest.mark.parametrize(
    "caps",
    ["requests", "requests=", "requests=0", "requests=-1", "requests=1.5", "tokens=²", "speed=3", "tokens=1 tokens=2"],
)
def test_caps_that_are_refused(tmp_path, caps):
    (tmp_path / "keys").write_text(f"user bob {DIGEST} {caps}\n")
    with pytest.raises(InputError, match="requests=N or tokens=N"):
        read_keys(tmp_path / "keys")


@given(value=st.integers(-(10**30), 10**30))
def test_any_number_is_a_cap_or_an_error(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"admin ann {DIGEST} tokens={value} # a comment\n")
    if 1 <= value <= CAP_MAX:
        (key,) = read_keys(path)
        assert (key.requests_max, key.tokens_max) == (0, value)
    else:
        with pytest.raises(InputError, match="E_KEYS"):
            read_keys(path)
