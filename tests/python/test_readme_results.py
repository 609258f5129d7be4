"""README.md shows the figures of docs/results, and notices when it does not."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools/readme_results.py"


def run_tool(root, *options):
    return subprocess.run([sys.executable, str(TOOL), "--root", str(root), *options], capture_output=True, text=True)


@pytest.fixture
def tree(tmp_path):
    """A tree with one result of two rows and a README whose block is empty."""
    results = tmp_path / "docs/results"
    results.mkdir(parents=True)
    row = {"program": "tiny", "optimizer": "sgd", "fetch_every": 10, "eager_ms": 4.0, "coexec_ms": 2.0}
    slow = row | {"program": "wide", "eager_ms": 90.0, "coexec_ms": 100.0, "interval": [0.85, 0.95]}
    result = {"circumstances": {"processor": "P"}, "rows": [row | {"interval": [1.9, 2.1]}, slow]}
    (results / "figures.json").write_text(json.dumps(result))
    (tmp_path / "README.md").write_text("before\n<!-- results:begin -->\n<!-- results:end -->\nafter\n")
    return tmp_path


def test_readme_is_up_to_date():
    answer = run_tool(ROOT, "--check")
    assert answer.returncode == 0, answer.stderr


def test_block_is_filled_and_the_rest_left_alone(tree):
    assert run_tool(tree, "--check").returncode == 1
    assert run_tool(tree).returncode == 0
    text = (tree / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "| tiny | sgd | 10 | 4.00 | 2.00 | 2.00 | 1.90 to 2.10 |" in text
    assert "Slower than eager beyond the noise: wide sgd (a read every 10 steps)." in text
    assert run_tool(tree, "--check").returncode == 0


@pytest.mark.parametrize("page", ["md", "json"])
def test_a_result_without_rows_is_a_line_with_a_link_to_what_is_there(tree, page):
    (tree / "docs/results/conformance.json").write_text(json.dumps({"passed": 12}))
    if page == "md":
        (tree / "docs/results/conformance.md").write_text("# Conformance\n")
    assert run_tool(tree).returncode == 0
    assert f"\n**[conformance](docs/results/conformance.{page})**\n" in (tree / "README.md").read_text()


def test_details_beside_the_rows_are_shown(tree):
    row = {"program": "large", "optimizer": "adamw", "fetch_every": 1, "eager_ms": 20.0, "coexec_ms": 4.0}
    result = {"rows": [row], "details": [{"program": "large", "interval": [4.5, 5.5]}]}
    (tree / "docs/results/device.json").write_text(json.dumps(result))
    assert run_tool(tree).returncode == 0
    assert "| large | adamw | 1 | 20.0 | 4.00 | 5.00 | 4.50 to 5.50 |" in (tree / "README.md").read_text()


def test_slower_rows_of_the_bridge_are_named(tree):
    row = {
        "model": "tiny",
        "batch": 32,
        "router": "layerwise",
        "mode": "coexec",
        "mixes": 8,
        "host_syncs": 4.0,
        "ms": 9.0,
    }
    (tree / "docs/results/bridge.json").write_text(json.dumps({"rows": [row | {"interval": [0.4, 0.6]}]}))
    assert run_tool(tree).returncode == 0
    text = (tree / "README.md").read_text()
    assert "| tiny | 32 | layerwise | coexec | 8 | 4.00 | 9.00 | 0.400 to 0.600 |" in text
    assert "Slower than eager beyond the noise: tiny layerwise coexec (batch 32, 8 mixes)." in text


def test_a_changed_figure_is_noticed(tree):
    run_tool(tree)
    path = tree / "docs/results/figures.json"
    path.write_text(path.read_text().replace("4.0", "5.0"))
    answer = run_tool(tree, "--check")
    assert answer.returncode == 1
    assert "readme_results.py" in answer.stderr


def test_missing_markers_are_an_error(tree):
    (tree / "README.md").write_text("no block\n")
    answer = run_tool(tree)
    assert answer.returncode != 0
    assert (tree / "README.md").read_text() == "no block\n"
