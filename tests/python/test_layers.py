"""tools/check_layers.py finds what it promises to find, and finds nothing in this tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKER = ROOT / "tools" / "check_layers.py"

CLEAN = {
    "src/base/ids.h": "#pragma once\nnamespace outrider::base { struct Id {}; }\n",
    "src/trace/graph.h": '#pragma once\n#include "base/ids.h"\n',
    "src/seam/keys.cc": "#include <ATen/core/dispatch/Dispatcher.h>\n#include <c10/core/TensorImpl.h>\n",
    "src/coexec/step.cc": '#include <c10/util/intrusive_ptr.h>\n#include "trace/graph.h"\n',
    "src/moe/tune.cc": "#include <ATen/ops/mm.h>\n#include <torch/csrc/autograd/custom_function.h>\n",
    "bindings/core.cc": '#include <torch/csrc/utils/pybind.h>\n#include "outrider/step.h"\n',
    "include/outrider/step.h": "#pragma once\n",
    "examples/cpp/train.cc": "#include <torch/torch.h>\n",
    "python/outrider/api.py": "def coexec(function):\n    return function\n",
}
UNFINISHED = "TO" + "DO"


SHORT_FUNCTIONS = "  int F() { return 1; }\n" * 80
TABLE_ROWS = "  1,\n" * 80


def body(lines: int) -> str:
    return "".join(f"  step({i});\n" for i in range(lines))


# name -> (file, content, part of the message, line)
PLANTED = {
    "upward edge": (
        "src/base/up.h",
        '#pragma once\n#include "trace/graph.h"\n',
        "room base must not include room trace",
        2,
    ),
    "edge past a relative path": ("src/base/up.cc", '#include "../trace/graph.h"\n', "must not include room trace", 1),
    "public header sees a room": (
        "include/outrider/x.h",
        '#include "base/ids.h"\n',
        "room include must not include",
        1,
    ),
    "torch in a torch-free room": ("src/plan/cut.cc", "#include <c10/util/Exception.h>\n", "(torch: none)", 1),
    "torch in a public header": ("include/outrider/t.h", "#include <ATen/core/Tensor.h>\n", "(torch: none)", 1),
    "dispatcher outside the seam": (
        "src/coexec/d.cc",
        "// one\n#include <ATen/core/dispatch/Dispatcher.h>\n",
        "room coexec (torch: core) must not include",
        2,
    ),
    "tensor internals outside the seam": ("src/model/t.cc", "#include <c10/core/TensorImpl.h>\n", "(torch: public)", 1),
    "autograd internals in moe": ("src/moe/a.cc", "#include <torch/csrc/autograd/engine.h>\n", "(torch: public)", 1),
    "broad ATen in coexec": ("src/coexec/b.cc", "#include <ATen/ATen.h>\n", "(torch: core)", 1),
    "dispatcher in a binding": ("bindings/d.cc", "#include <torch/library.h>\n", "(torch: binding)", 1),
    "extension.h": ("src/seam/e.cc", "#include <torch/extension.h>\n", "tests and examples only", 1),
    "torch.h in a benchmark": ("benchmarks/micro/m.cc", "#include <torch/torch.h>\n", "tests and examples only", 1),
    "unknown room": ("src/extra/x.cc", "int x;\n", "room extra has no line", 1),
    "file in no room": ("src/lost.cc", "int x;\n", "in no room", 1),
    "folder named torch": ("src/seam/torch/x.h", "#pragma once\n", "no folder may be named torch", 1),
    "namespace torch": ("src/seam/n.h", "namespace outrider::torch {}\n", "no namespace may be named torch", 1),
    "fmt in a header": ("src/base/f.h", "#include <fmt/format.h>\n", "fmt belongs in .cc files", 1),
    "long file": ("src/base/long.cc", "int x;\n" * 401, "file has 401 lines", 401),
    "long function": ("src/base/f.cc", f"int y;\nvoid Long() {{\n{body(59)}}}\n", "function Long has 61 lines", 2),
    "long member": (
        "src/base/m.h",
        f'template <class T>\nclass alignas(64) C {{\n public:\n  // "{{"\n  void Long() {{\n{body(59)}  }}\n}};\n',
        "function Long has 61 lines",
        5,
    ),
    "long lambda": ("src/base/l.cc", f"const auto f = [](int a) {{\n{body(59)}}};\n", "has 61 lines", 1),
    "long test": ("tests/unit/base/t.cc", f"TEST(A, B) {{\n{body(59)}}}\n", "has 61 lines", 1),
    "long Python function": (
        "python/outrider/long.py",
        "class A:\n    def long(self):\n" + "        self.x = 1\n" * 60,
        "function long has 61 lines",
        2,
    ),
    "unfinished mark": ("src/base/u.cc", f"int x;\n// {UNFINISHED}: more\n", f"unfinished mark {UNFINISHED}", 2),
    "unfinished mark in Python": ("tools/u.py", f"# {UNFINISHED}\n", "unfinished mark", 1),
}

# What looks like a violation and is none.
INNOCENT = {
    "function of 60 lines": ("src/base/f.cc", f"void Long() {{\n{body(58)}}}\n"),
    "long class of short functions": ("src/base/c.h", f"class C : A<decltype(F())> {{\n{SHORT_FUNCTIONS}}};\n"),
    "long table": ("src/base/t.cc", f"const int kTable[F(1)] = {{\n{TABLE_ROWS}}};\n"),
    "commented include": ("src/base/i.cc", '// #include "trace/graph.h"\n/*\n#include <ATen/ATen.h>\n*/\n'),
    "braces in literals": (
        "src/base/q.cc",
        'const char* a = "{";\nchar b = \'{\';\nauto c = R"({)";\n' + SHORT_FUNCTIONS,
    ),
    "file of 400 lines": ("src/base/l.cc", "int x;\n" * 400),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for path, text in CLEAN.items():
        write(tmp_path, path, text)
    (tmp_path / "cmake").mkdir()
    shutil.copy(ROOT / "cmake" / "layers.txt", tmp_path / "cmake")
    return tmp_path


def write(root: Path, path: str, text: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def check(root: Path) -> tuple[int, str]:
    result = subprocess.run([sys.executable, CHECKER, root], capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


def test_clean_tree_passes(tree: Path) -> None:
    assert check(tree) == (0, "layers: clean\n")


@pytest.mark.parametrize("name", PLANTED)
def test_planted_violation_is_found(tree: Path, name: str) -> None:
    path, text, message, line = PLANTED[name]
    write(tree, path, text)
    status, output = check(tree)
    first, *rest = output.splitlines()
    assert status == 1
    assert message in first
    assert first.startswith((f"{path}:{line}: ", f"{Path(path).parent}:{line}: "))
    assert rest == ["layers: 1 violation(s)"]


@pytest.mark.parametrize("name", INNOCENT)
def test_innocent_text_passes(tree: Path, name: str) -> None:
    write(tree, *INNOCENT[name])
    assert check(tree) == (0, "layers: clean\n")


def test_too_many_torch_units_are_found_through_our_own_headers(tree: Path) -> None:
    write(tree, "src/seam/tensors.h", "#pragma once\n#include <ATen/core/Tensor.h>\n")
    for i in range(57):  # CLEAN holds four units that see torch
        write(tree, f"src/seam/unit_{i}.cc", '#include "seam/tensors.h"\n')
    status, output = check(tree)
    assert status == 1
    assert "61 units see torch, at most 60 may" in output
    (tree / "src/seam/unit_0.cc").unlink()
    assert check(tree)[0] == 0


def test_layers_file_allows_no_cycle(tree: Path) -> None:
    write(tree, "cmake/layers.txt", "base : trace : none\ntrace : base : none\n")
    status, output = check(tree)
    assert status != 0
    assert "base names trace, which no line above defines" in output


def test_this_tree_is_clean() -> None:
    status, output = check(ROOT)
    assert (status, output) == (0, "layers: clean\n")
