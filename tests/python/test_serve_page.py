"""The built-in page: complete in itself, and working in a real browser where there is one."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from fake_engine import make_folder
from serve_fixtures import running, wait_for, writes

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def test_needs_nothing_from_elsewhere():
    text = resources.files("outrider.serve").joinpath("page.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|src=|href=|@import|url\(", text)


def test_sent_with_a_policy_that_allows_nothing_else(tmp_path):
    with running(tmp_path / "m") as server:
        status, headers, body = server.request("GET", "/")
        assert status == 200 and b"<title>Outrider</title>" in body
        assert "default-src 'none'" in headers["content-security-policy"]


PAGE_IN_NODE = """
const text = require("fs").readFileSync(0, "utf8"), url = process.argv[2];
const made = () => ({ style: {}, classList: { add() {} }, children: [], textContent: "", append(...more) {
  for (const one of more) this.textContent += one.textContent ?? one; this.children.push(...more); },
  replaceChildren() {}, remove() {}, setAttribute() {} });
const known = {};
globalThis.document = { hidden: true, getElementById: (id) => (known[id] ??= made()), createElement: made };
globalThis.sessionStorage = { getItem: () => "", setItem() {} };
globalThis.asked = [];
const real = fetch;
globalThis.fetch = (path, options) => {
  if (options.body) asked.push(JSON.parse(options.body).messages.map((turn) => turn.role + ":" + turn.content));
  return real(url + path, options);
};
globalThis.shown = () => known.log.children.map((one) => one.textContent);
const script = text.match(/<script>([^]*)<.script>/)[1];
const steps = process.argv[3];
const say = "console.log(JSON.stringify([asked, shown()])); process.exit();";
new Function(`${script}; (async () => { ${steps}; ${say} })()`)();
"""


def _in_node(url: str, steps: str) -> tuple[list[list[str]], list[str]]:
    """Runs the page's script without a browser: the questions that it asked, and what its log shows."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node")
    page = resources.files("outrider.serve").joinpath("page.html").read_text(encoding="utf-8")
    command = [node, "-e", PAGE_IN_NODE, "page", url + "/", steps]
    done = subprocess.run(command, input=page, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout, done.stderr
    asked, shown = json.loads(done.stdout.splitlines()[-1])
    return asked, shown


def test_a_conversation_that_is_cleared_leaves_nothing(tmp_path):
    folder = make_folder(tmp_path / "m")
    with running(folder, script=writes(folder, "x" * 50), token_s=0.02) as server:
        clear = 'const first = ask("a"); setTimeout(() => byId("clear").onclick(), 200); await first; await ask("b")'
        asked, _ = _in_node(server.url, clear)
    assert asked == [["user:a"], ["user:b"]]


def test_a_question_without_an_answer_is_not_asked_again(tmp_path):
    folder = make_folder(tmp_path / "m")
    with running(folder, context=60, script=writes(folder, "yes")) as server:
        asked, shown = _in_node(server.url, 'await ask("x".repeat(99)); await ask("b"); await ask("c")')
    assert asked[1:] == [["user:b"], ["user:b", "assistant:yes", "user:c"]] and "context" in shown[1]


def test_an_answer_that_is_cut_off_is_told(tmp_path):
    folder = make_folder(tmp_path / "m")
    with running(folder, script=writes(folder, "yes")) as server:
        cut = "TextDecoderStream = class extends TransformStream { constructor() { super({ transform(part, out) {"
        cut += ' out.enqueue(new TextDecoder().decode(part).replace("data: [DONE]\\n\\n", "")); } }); } };'
        _, shown = _in_node(server.url, cut + 'await ask("b")')
    assert shown[1] == "yes The answer was cut off."


class Browser:
    """The DevTools protocol over the two pipes of `--remote-debugging-pipe`."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._number, self._rest = write, read, 0, b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        session = {"sessionId": self._session} if hasattr(self, "_session") else {}
        message = {"id": self._number, "method": method, "params": params, **session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def value(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._read, 1 << 16)
            assert part, "the browser ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)}")
    read_here, write_there = os.pipe()
    read_there, write_here = os.pipe()
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
    command += [f"--user-data-dir={profile}", "--window-size=1180,760", "--disable-dev-shm-usage"]
    # The browser reads commands from descriptor 3 and writes answers to 4.
    shell = f'exec 3<&{read_there} 4>&{write_there}; exec "$@" 2>/dev/null'
    child = subprocess.Popen(["bash", "-c", shell, "bash", *command], pass_fds=(read_there, write_there))
    os.close(read_there)
    os.close(write_there)
    try:
        yield Browser(write_here, read_here)
    finally:
        child.kill()
        child.wait(10)
        os.close(read_here)
        os.close(write_here)


def test_chat_in_a_browser(tmp_path):
    folder = make_folder(tmp_path / "m")
    answer = "Paris, of course. 😀"
    with running(folder, script=writes(folder, answer), token_s=0.02) as server, browser(tmp_path / "profile") as page:
        page.call("Page.navigate", url=server.url + "/")
        wait_for(lambda: page.value("document.getElementById('model')?.textContent.startsWith('tiny: 7 experts')"))
        page.value("document.getElementById('text').value = 'Where?'")
        page.value("document.getElementById('form').requestSubmit()")
        wait_for(lambda: "a second" in (page.value("document.querySelector('.rate')?.textContent") or ""))
        assert page.value("document.querySelector('.assistant').textContent") == answer
        colours = page.value("[...document.querySelectorAll('.assistant i')].map((part) => part.title)")
        pieces = page.value("[...document.querySelectorAll('.assistant i')].map((part) => part.textContent)")
        experts = dict(zip(pieces, colours, strict=True))
        ids = server.state.tokenizer.encode("P")
        assert experts["P"] == f"expert {ids[0] % 7}"
        wait_for(lambda: "0 of 100" in page.value("document.getElementById('now').textContent"))
        assert page.value("document.querySelectorAll('.bar').length") == 7
        _keep_picture(page)


def _keep_picture(page: Browser) -> None:
    """Into the folder that OUTRIDER_PICTURES names, for a person to look at."""
    folder = os.environ.get("OUTRIDER_PICTURES")
    if folder:
        import base64

        time.sleep(1)
        raw = page.call("Page.captureScreenshot", format="png")["data"]
        (Path(folder) / "serve_page.png").write_bytes(base64.b64decode(raw))
