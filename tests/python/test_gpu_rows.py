"""benchmarks/refactor/gpu_rows.py from end to end on the CPU, with a model and text that every machine has."""

import json
import math
import pathlib
import sys
import tarfile

import pytest
import torch
from outrider.refactor import smoke
from outrider.refactor.card.write import regenerate
from outrider.refactor.domains import from_folder
from outrider.refactor.prepare import Options, prepare
from outrider.refactor.tasks.items import Choice
from outrider.refactor.tokenizer import load_tokenizer

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "benchmarks" / "refactor"
sys.path.insert(0, str(FOLDER))

import gpu_rows  # noqa: E402
import row_results  # noqa: E402
import row_tasks  # noqa: E402
from row_table import Plan, all_rows, chosen_rows  # noqa: E402

SMALL = ("*:calibration.tokens=128", "*:calibration.samples=2", "*:coverage.rounds=2", "experts.count=4")
ROUTERS = ("outrider-*:router.width=32", "readme-*:router.width=32")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Model folder and prepared text with one domain that nothing is tuned on."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("rows")
    model, text = smoke.make(root / "made", max_bytes=1 << 17)
    data = root / "data"
    files = from_folder(text)
    names = list(files.domains)
    split = type(files)(files.root, {n: files.domains[n] for n in names[:2]}, {names[2]: files.domains[names[2]]})
    prepare(split, load_tokenizer(model), data, Options(min_train_tokens=1))
    return root, model, data


def call(inputs, rows, *more, out="out", work="work"):
    root, model, data = inputs
    argv = ["--model", str(model), "--data", str(data), "--work", str(root / work), "--out", str(root / out)]
    argv += ["--rows", rows, "--tokens", "1024", "--router-tokens", "512", "--batch", "4", "--sequence", "64"]
    argv += ["--eval-tokens", "512", "--device", "cpu", "--dtype", "float32", "--name", "found"]
    for change in (*SMALL, *ROUTERS):
        argv += ["--set", change]
    return gpu_rows.main([*argv, *more])


def found(inputs, out="out"):
    return json.loads((inputs[0] / out / "found.json").read_text())


def test_a_teacher_comes_before_its_pupils():
    keys = [row.key for row in chosen_rows(["outrider-0.5-ours"])]
    assert keys == ["outrider-1-dense-cont", "outrider-0.5-ours"]
    assert [row.key for row in chosen_rows(["readme-0.75-ours"])] == ["readme-0.75-ours"]
    assert len({row.key for row in all_rows()}) == len(all_rows())
    with pytest.raises(SystemExit, match="no row fits nothing"):
        chosen_rows(["nothing"])


def test_rows_of_one_preset_are_tuned_on_the_same_tokens():
    plan = Plan("m", "d", 7_168_000, 3_268_608)
    counted = {row.key: plan.counted_tokens(row) for row in all_rows()}
    assert counted["outrider-0.5-ours"] == {
        "tokens": 7_168_000,
        "router_tokens": 3_268_608,
        "teacher_tokens": 7_168_000,
    }
    assert counted["outrider-0.5-static"]["router_tokens"] == 0
    assert counted["outrider-0.5-static+"]["tokens"] == 7_168_000 + 3_268_608
    for preset in ("outrider", "readme"):
        tokens = {c["tokens"] for key, c in counted.items() if key.startswith(preset) and "+" not in key}
        assert len(tokens) == 1
    other = Plan("m", "d", 7_168_000, 3_268_608, changes=(("outrider-0.5-*", "expert.rate", 1e-4),))
    ours = chosen_rows(["outrider-0.5-ours"])[1]
    assert other.options(ours, None)["expert.rate"] == 1e-4
    assert other.identity(ours) != plan.identity(ours)


def test_dry_run_prints_tokens_and_writes_nothing(inputs, capsys):
    assert call(inputs, "outrider-0.5-*", "--dry-run", work="dry", out="dry_out") == 0
    text = capsys.readouterr().out
    assert "outrider-0.5-ours: 1,024 tuning and 512 router tokens, 6 steps" in text
    assert not (inputs[0] / "dry").exists() and not (inputs[0] / "dry_out").exists()


@pytest.fixture(scope="module")
def finished(inputs):
    rows = "outrider-0.5-static,outrider-0.5-static-three,outrider-0.5-ours,"
    rows += "readme-0.75-static,readme-0.75-ours,readme-0.75-domain-oracle"
    assert call(inputs, rows, "--archive", "outrider-0.5-ours,readme-0.75-*") == 0
    return found(inputs)


def test_every_row_has_its_figures(finished):
    rows = {(r["preset"], r["active"], r["row"]): r for r in finished["rows"]}
    assert len(rows) == 8
    ours = rows["outrider", 0.5, "ours"]
    assert (ours["loss"], ours["teacher"], ours["tokens"]) == ("ce + 1 kl", "dense-cont", 1024)
    assert ours["ppl_by_domain"].keys() == {"code", "docstrings"} and ours["ppl_unseen"].keys() == {"licences"}
    mean = math.exp(sum(map(math.log, ours["ppl_by_domain"].values())) / 2)
    assert ours["ppl_geomean"] == pytest.approx(mean)
    assert 0 <= ours["stay_rate"] <= 1 and 0 <= ours["entropy_ratio"] <= 1
    assert sum(ours["load"]) == 2 * 512
    assert ours["seconds"] > 0 and ours["tokens_per_s"] > 0 and ours["peak_bytes"] > 0
    assert [point["tau"] for point in ours["frontier"]] == [0, 0.5, 1, 2, 4]
    assert ours["frontier"][0]["ppl_geomean"] == pytest.approx(ours["ppl_geomean"])
    assert rows[None, 1.0, "parent"]["ppl_geomean"] == pytest.approx(512, rel=0.1), "random weights"
    assert rows["readme", 0.75, "domain-oracle"]["ppl_unseen"] == {}
    assert rows["outrider", 0.5, "static"]["statistic"] in ("l1", "l1_out", "fluctuation", "coverage")
    assert rows["outrider", 0.5, "static-three"]["statistic"] in ("l1", "l1_out", "fluctuation")


def test_comparisons_are_against_the_static_row_of_the_same_kind(finished):
    rows = {r["id"]: r for r in finished["rows"]}
    pairs = {(rows[c["row"]]["preset"], rows[c["row"]]["row"]): rows[c["against"]] for c in finished["comparisons"]}
    assert pairs.keys() == {
        *(("outrider", name) for name in ("static-three", "ours")),
        *(("readme", name) for name in ("ours", "domain-oracle")),
    }
    for (preset, _), static in pairs.items():
        assert (static["preset"], static["row"]) == (preset, "static")
    for entry in finished["comparisons"]:
        ours, static = rows[entry["row"]], rows[entry["against"]]
        value, low, high = entry["test"]["geometric mean"]
        assert value == pytest.approx(ours["ppl_geomean"] / static["ppl_geomean"], rel=1e-4)
        assert low <= value <= high
        assert (ours["to_static"], ours["to_static_interval"]) == (value, [low, high])
        assert static["to_static"] is None
    assert row_results.compare_all(finished["rows"], finished["documents"]) == finished["comparisons"]


def test_a_second_comparison_is_against_published_rules_alone(finished):
    rows = {r["id"]: r for r in finished["rows"]}
    against = {rows[c["row"]]["row"]: rows[c["against"]]["row"] for c in finished["comparisons_to_three"]}
    assert against == {"static": "static-three", "ours": "static-three"}


def test_the_text_holds_the_rows(finished, inputs):
    text = (inputs[0] / "out" / "found.md").read_text()
    ours = next(r for r in finished["rows"] if r["preset"] == "outrider" and r["row"] == "ours")
    assert (
        f"| outrider | 50% | ours | ce + 1 kl | dense-cont | 1,024 | 512 | 1,024 | {ours['ppl_geomean']:.3f} |" in text
    )
    assert "licences (unseen)" in text
    assert row_results.markdown(finished) == text


def test_the_archive_has_cards_and_no_weights(finished, inputs, tmp_path):
    with tarfile.open(inputs[0] / "out" / "found.tar.xz") as archive:
        names = set(archive.getnames())
        archive.extractall(tmp_path)  # of our own making; the oldest Python has no filters
    assert {"outrider-0.5-ours/routes.safetensors", "outrider-0.5-ours/outrider_masks.safetensors"} <= names
    assert not any("model" in pathlib.Path(name).name for name in names)
    for name in ("outrider-0.5-ours", "readme-0.75-ours"):
        assert len(regenerate(tmp_path / name)) == 2
        card = json.loads((tmp_path / name / "quality_card.json").read_text())
        assert card["rows"][0]["name"] == "parent"
        assert {"static", "ours"} <= {row["name"] for row in card["rows"]}
        assert card["rows"][-1]["unseen"].keys() == {"licences"}


def test_a_stopped_call_goes_on_to_the_same_figures(finished, inputs):
    assert call(inputs, "outrider-0.5-ours", "--seconds", "1", work="again", out="again") == 3
    assert not (inputs[0] / "again" / "rows").exists(), "too little time to begin"
    stops = 0
    while call(inputs, "outrider-0.5-ours", "--set", "steps_max=1", work="again", out="again") == 3:
        stops += 1
        assert stops < 10
    assert stops == 3 + 5, "every call does one step; the last step of a row ends it"
    documents = found(inputs, "again")["documents"]
    same = [key for key in documents if key.startswith("outrider-0.5-ours")]
    assert len(same) == 1
    assert documents[same[0]] == finished["documents"][same[0]]
    rows = [list((inputs[0] / folder / "rows").glob("*/checkpoint*")) for folder in ("work", "again")]
    assert rows == [[], []], "checkpoints of finished rows are removed"


def test_a_row_that_fails_does_not_keep_the_others_from_running(finished, inputs, capsys):
    changes = ("--set", "outrider-0.5-ours-ce:router.width=1024")
    assert call(inputs, "outrider-0.5-ours-ce,outrider-0.5-static-ce", *changes, out="failed") == 3
    text = capsys.readouterr().out
    assert "outrider-0.5-ours-ce: error E_" in text and "failed: outrider-0.5-ours-ce" in text
    assert any(row["id"].startswith("outrider-0.5-static-ce") for row in found(inputs, "failed")["rows"])


def test_rows_of_an_earlier_file_stay(finished, inputs):
    earlier = inputs[0] / "out" / "found.json"
    assert call(inputs, "outrider-0.5-static-ce", "--merge", str(earlier), out="merged") == 0
    ids = [row["id"].rpartition("-")[0] for row in found(inputs, "merged")["rows"]]
    assert len(ids) == 9 and "outrider-0.5-static-ce" in ids


def test_scores_of_an_earlier_file_stay_with_their_model(finished, inputs):
    key, path = "outrider-0.5-static-ce", inputs[0] / "earlier.json"
    assert call(inputs, key, out="before") == 0
    earlier = found(inputs, "before")
    here = next(row["id"] for row in earlier["rows"] if row["id"].startswith(key))
    scores = {"arc_easy": {"acc": {"value": 0.5, "stderr": 0.1, "items": 4}}}
    earlier["tasks"] = [{"row": name, "scores": scores} for name in ("parent", here)]
    for change in (0, 1):
        earlier["documents"][here]["test"]["code"][1][0] += change
        path.write_text(json.dumps(earlier))
        assert call(inputs, key, "--merge", str(path), out="kept") == 0
        names = {entry["row"] for entry in found(inputs, "kept")["tasks"]}
        assert names == ({"parent"} if change else {"parent", here}), "a row trained again loses them"
    more = {"row": "parent", "scores": {"piqa": {}}}
    assert row_tasks.merged(earlier["tasks"][0], more) == {"row": "parent", "scores": scores | {"piqa": {}}}


def test_rows_are_scored_on_tasks(inputs, monkeypatch, capsys):
    items = {"piqa": [Choice(f"piqa-{i}", "def f(x):\n    return", ["x", "the file"], i % 2) for i in range(4)]}
    monkeypatch.setattr(row_tasks, "task_items", lambda *_: items)
    rows = "outrider-0.75-static-ce,outrider-0.75-ours-ce"
    more = ("--score", rows, "--task-source", "x", "--archive", "outrider-0.75-ours-ce")
    assert call(inputs, rows, *more, work="scored", out="scored_out") == 0
    entries = {e["row"].rpartition("-")[0]: e for e in found(inputs, "scored_out")["tasks"]}
    assert entries.keys() >= {"outrider-0.75-static-ce", "outrider-0.75-ours-ce"}
    assert len(entries) == 3, "and the parent"
    ours = entries["outrider-0.75-ours-ce"]
    assert ours["scores"]["piqa"]["acc"]["items"] == 4
    assert ours["against_static"]["piqa"]["acc"].keys() == {"value", "low", "high"}
    assert "± " in (inputs[0] / "scored_out" / "found.md").read_text()
    with tarfile.open(inputs[0] / "scored_out" / "found.tar.xz") as archive:
        card = json.loads(archive.extractfile("outrider-0.75-ours-ce/quality_card.json").read())
    assert all(row["tasks"]["piqa"]["acc"]["items"] == 4 for row in card["rows"] if row["name"] != "dense-cont")
    capsys.readouterr()
    assert call(inputs, rows, *more, work="scored", out="scored_out") == 0
    assert "piqa acc" not in capsys.readouterr().out, "scores are kept"


def test_a_sweep_chooses_on_valid(finished, inputs):
    assert call(inputs, "outrider-0.5-ours", "--sweep", "1e-4,1e-2", "--sweep-tokens", "512", out="sweep") == 0
    entries = found(inputs, "sweep")["sweep"]
    assert [(entry["row"], entry["rate"]) for entry in entries] == [("outrider-0.5-ours", r) for r in (1e-4, 1e-2)]
    assert entries[0]["valid_ppl_geomean"] != entries[1]["valid_ppl_geomean"]
    assert not list((inputs[0] / "work" / "sweep").rglob("model.safetensors"))
