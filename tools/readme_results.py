#!/usr/bin/env python3
"""Fills the results block of README.md from docs/results/*.json.

    python3 tools/readme_results.py            writes README.md
    python3 tools/readme_results.py --check    exits with 1 when README.md is not up to date

The block lies between two markers. Each file becomes a line about its circumstances and a table; nothing in it is
typed by hand.
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

# Heading of a column -> field of a row. Columns that no row fills are left out.
COLUMNS = {
    "database": "database",
    "entries": "entries",
    "skipped": "skipped",
    "samples": "samples",
    "covered": "covered_samples",
    "disagreements": "disagreements",
    "program": "program",
    "model": "model",
    "batch": "batch",
    "router": "router",
    "mode": "mode",
    "mixes": "mixes",
    "reads a step": "host_syncs",
    "a step, ms": "ms",
    "limit": "limit",
    "optimizer": "optimizer",
    "steps per read": "fetch_every",
    "stage": "stage",
    "threads": "threads",
    "eager, tokens/s": "eager_tokens_per_s",
    "coexec, tokens/s": "coexec_tokens_per_s",
    "eager, ms": "eager_ms",
    "compile, ms": "compile_default_ms",
    "reduce-overhead, ms": "reduce_overhead_ms",
    "coexec, ms": "coexec_ms",
    "eager / this": "ratio_to_eager",
    "eager / coexec": "speed_up",
    "95 % interval": "interval",
    "lane": "lane",
    "preset": "preset",
    "active FFN": "active",
    "row": "row",
    "loss": "loss",
    "teacher": "teacher",
    "tuning tokens": "tokens",
    "perplexity": "ppl_geomean",
    "to static": "to_static",
    "of it 95 %": "to_static_interval",
    "stays": "stay_rate",
    "shape": "shape",
    "tuned": "tune",
    "texts a pass": "micro_batch",
    "router stage, tokens/s": "router_tokens_per_s",
    "expert stage, tokens/s": "expert_tokens_per_s",
    "form": "form",
    "dense FFN, ms": "dense_ms",
    "ours, ms": "ours_ms",
    "ours / dense": "ours_to_dense",
    "share of the FFN": "share",
    "experts a step": "distinct_experts",
    "step, ms": "step_ms",
    "tokens/s": "tokens_per_second",
    "of copy bandwidth": "share_of_copy_bandwidth",
    "times as fast as library products": "times_as_fast_as_library",
    "host beside it": "overhead_share",
    "waits a step": "host_waits_per_step",
    "tokens of a prompt": "chunk",
    "behind": "behind",
    "as a prompt, ms": "prompt_ms",
    "through graphs, ms": "decode_ms",
    "gain": "gain",
    "prompts": "asked",
    "answered as the parent": "agreed",
    "share": "agreed_share",
    "weights": "weights",
    "side": "side",
    "of its weights read": "share_read",
    "times as fast as llama.cpp": "times_as_fast",
    "95 %": "times_interval",
}


def number(value):
    """Three significant digits, whole from a hundred on."""
    return f"{value:#.3g}" if abs(value) < 100 else f"{value:.0f}"


def cell(row, field):
    """One field as text; a missing speed-up is the ratio of the two times."""
    value = row.get(field)
    if field == "speed_up" and value is None and row.get("eager_ms") and row.get("coexec_ms"):
        value = row["eager_ms"] / row["coexec_ms"]
    if value is None:
        return ""
    if isinstance(value, list):
        return " to ".join(number(part) for part in value)
    return number(value) if isinstance(value, float) else str(value)


def table(rows):
    """Rows of one result file as a Markdown table; empty when no row has a known field."""
    columns = {head: field for head, field in COLUMNS.items() if any(cell(row, field) for row in rows)}
    if not columns:
        return ""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(cell(row, field) for field in columns.values()) + " |" for row in rows]
    return "\n".join(lines)


def row_name(row):
    """What a timed row is called: by its program, or by its router in the bridge experiment."""
    if "router" in row:
        return f"{row['model']} {row['router']} {row['mode']} (batch {row['batch']}, {row['mixes']} mixes)"
    if "stage" in row:
        return f"{row['program']} {row['stage']} (threads: {row['threads']})"
    return f"{row['program']} {row['optimizer']} (a read every {row['fetch_every']} steps)"


def slower(rows):
    """Names the rows whose interval lies below 1 as a whole."""
    names = [row_name(row) for row in rows if row.get("interval") and row["interval"][1] < 1]
    return "Slower than eager beyond the noise: " + (", ".join(names) if names else "none") + "."


def full_rows(result):
    """The rows of a result file; what stands in the list of details beside a row, if any, counts as its own."""
    rows = result.get("rows", [])
    details = result.get("details", [{}] * len(rows))
    return [detail | row for row, detail in zip(rows, details, strict=True)]


def section(path, root):
    """What README.md says of one result file."""
    result = json.loads(path.read_text())
    rows = full_rows(result)
    circumstances = result.get("circumstances", {})
    about = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in circumstances.items())
    page = path.with_suffix(".md")
    page = page if page.exists() else path  # without a page of its own it belongs to another file's
    parts = [f"**[{path.stem}]({page.relative_to(root)})**" + (f": {about}." if about else ""), table(rows)]
    if any(row.get("interval") for row in rows):
        parts.append(slower(rows))
    return "\n\n".join(part for part in parts if part) + "\n"


def filled(readme, root):
    """The text of README.md with its block made anew."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"README.md needs {BEGIN} and, behind it, {END}, each once")
    before, rest = readme.split(BEGIN)
    after = rest.split(END)[1]
    sections = [section(path, root) for path in sorted((root / "docs/results").glob("*.json"))]
    return f"{before}{BEGIN}\n" + "\n".join(sections) + f"{END}{after}"


def main():
    """Writes or checks README.md; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 when README.md would change")
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help="the tree to work in")
    arguments = parser.parse_args()
    path = arguments.root / "README.md"
    readme = path.read_text()
    wanted = filled(readme, arguments.root)
    if readme == wanted:
        return 0
    if arguments.check:
        print("README.md does not show docs/results: run python3 tools/readme_results.py", file=sys.stderr)
        return 1
    path.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
