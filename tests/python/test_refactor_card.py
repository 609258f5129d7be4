"""The quality card: schema, Markdown, byte-identical regeneration."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from outrider.refactor.card.markdown import geometric_mean, render
from outrider.refactor.card.rows import Cost, Measured, make_row
from outrider.refactor.card.schema import check, dump
from outrider.refactor.card.write import regenerate, write_card
from outrider.refactor.errors import InputError
from outrider.refactor.stats.masks import mask_overlaps
from outrider.refactor.stats.perplexity import domain_loss
from outrider.refactor.stats.routing import expert_use
from outrider.refactor.tasks.scoring import TaskScores


def _measured(gap):
    random = np.random.default_rng(0)
    losses = {d: domain_loss(random.normal(300, 5, 40) + 100 * gap, [100] * 40, [410] * 40) for d in ("code", "talk")}
    unseen = {"german": domain_loss([400.0 + 100 * gap], [100])}
    right = [1.0] * round(600 - 200 * gap)
    scores = TaskScores([str(i) for i in range(1_000)], {"acc": right + [0.0] * (1_000 - len(right))})
    return Measured(losses, unseen, {"piqa": scores})


def _card():
    static = _measured(0.2)
    cost = Cost(0.5, "ce", None, 7_168_000, 0, 0, 61.5, (1,))
    parent = make_row("parent", _measured(0.0), Cost(1.0))
    pruned = make_row("static", static, cost)
    teacher = replace(cost, teacher="dense-cont", router_tokens=3_276_800)
    ours = make_row("outrider", _measured(0.1), teacher, static=static, note="N = 2, T = 1")
    use = expert_use([np.array([0, 0, 1]), np.array([1, 1, 1, 1])], 2).row()
    return {
        "format": 1,
        "title": "Tiny, 2 experts of 50 %",
        "parent": {"name": "Tiny", "sha256": "ab" * 32, "parameters": 1_000_000},
        "experts": {
            "count": 2,
            "names": ["0", "1"],
            "channels": 7,
            "channels_per_layer": [4, 4],
            "selection": "coverage, token",
            "tau": 0.5,
        },
        "router": {
            "width": 256,
            "scale": "sqrt",
            "embed": "tied",
            "attention": True,
            "parameters": 397_319,
            "loss": "coverage",
        },
        "sizes": {
            "active_parameters": 700_000,
            "dense_bytes": 2_000_000,
            "artifact_bytes": 2_050_000,
            "router_bytes": 800_000,
            "masks_bytes": 46_080,
        },
        "rows": [parent, pruned, ours],
        "routing": {"all": use, "domains": {"code": use, "talk": use}, "domain_agreement": 0.25},
        "masks": mask_overlaps(np.array([[3, 1, 2, 0], [3, 3, 0, 1]], np.uint8), 2),
        "curve": [{"label": "tau 0", "stay_rate": 0.24, "perplexity": 16.6}],
        "environment": {"torch": "2.13.0", "device": "cpu"},
    }


def test_the_card_is_the_same_bytes_each_time(tmp_path):
    card = _card()
    write_card(card, tmp_path)
    files = ("quality_card.json", "quality_card.md", "quality_card.png")
    first = {name: (tmp_path / name).read_bytes() for name in files}
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(files)
    for name in files[1:]:
        (tmp_path / name).unlink()
    assert [path.name for path in regenerate(tmp_path)] == list(files[1:])
    assert {name: (tmp_path / name).read_bytes() for name in files} == first
    assert json.loads(first["quality_card.json"]) == card
    assert first["quality_card.png"].startswith(b"\x89PNG") and len(first["quality_card.png"]) > 10_000


def test_the_picture_has_room_for_tasks_and_curve(tmp_path):
    import struct

    def height() -> int:
        return struct.unpack(">I", (tmp_path / "quality_card.png").read_bytes()[20:24])[0]

    card = _card()
    write_card(card, tmp_path)
    with_tasks = height()
    for row in card["rows"]:
        row["tasks"], row["tasks_against_static"] = {}, None
    write_card(card, tmp_path)
    assert with_tasks == height(), "the curve stays"
    del card["curve"]
    write_card(card, tmp_path)
    assert with_tasks > height()


def test_global_plot_settings_do_not_change_the_picture(tmp_path):
    import matplotlib

    write_card(_card(), tmp_path)
    before = (tmp_path / "quality_card.png").read_bytes()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        regenerate(tmp_path)
    assert (tmp_path / "quality_card.png").read_bytes() == before


def test_the_tables_say_what_the_rows_hold():
    card = _card()
    text = render(card)
    row = card["rows"][2]
    mean = geometric_mean(row["domains"])
    assert mean == pytest.approx(math.exp(sum(d["nats"] for d in row["domains"].values()) / 2))
    ratio = row["against_static"]["geometric mean"]
    assert ratio["value"] == pytest.approx(math.exp(-0.1))
    line = next(one for one in text.splitlines() if one.startswith("| outrider |"))
    assert f"| {mean:.2f} | {ratio['value']:.4f} ({ratio['low']:.4f} to {ratio['high']:.4f}) |" in line
    assert "| outrider | 50 | ce | dense-cont | 7,168,000 | 3,276,800 | 0 | 62 | 1 |" in text
    error = 100 * math.sqrt(0.58 * 0.42 / 999)
    gain = row["tasks_against_static"]["piqa"]["acc"]
    assert gain["value"] == pytest.approx(0.02) and 0 < gain["low"] < 0.02 < gain["high"] < 0.04
    assert f"| outrider | 58.00 ± {error:.2f} |" in text
    assert f"| outrider | +2.00 ({100 * gain['low']:+.2f} to {100 * gain['high']:+.2f}) |" in text
    assert "The model files alone are not this model" in text and "no LogiQA" in text
    assert "1.025 of the dense model" in text and "* `outrider`: N = 2, T = 1" in text
    assert "Of all channels 37.5 % are in every expert" in text
    assert "| tau 0 | 24.0 | 16.60 |" in text and "domain: 25.0 %" in text


def test_a_card_without_the_optional_parts_can_be_made(tmp_path):
    card = _card()
    for name in ("routing", "masks", "curve"):
        del card[name]
    for row in card["rows"]:
        row.pop("against_static", None)
        row.pop("tasks_against_static", None)
        row["tasks"], row["unseen"] = {}, {}
    write_card(card, tmp_path)
    text = (tmp_path / "quality_card.md").read_text()
    assert "* channels of an expert: 7, at most 4 in each of 2 layers" in text
    assert "## Routing" not in text and "## Tasks" not in text and "Text of no domain" not in text


def test_a_card_of_an_earlier_version_can_be_made_again(tmp_path):
    card = _card()
    del card["experts"]["channels"]
    (tmp_path / "quality_card.json").write_text(dump(card))
    regenerate(tmp_path)
    text = (tmp_path / "quality_card.md").read_text()
    assert "* channels of an expert: at most 4 in each of 2 layers" in text


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 2, "E_CARD: here: format: found 2, expected 1"),
        (("title",), 5, r"card\.title: found 5, expected str"),
        (("rows", 0, "seconds"), "61", r"card\.rows\[0\]\.seconds: found '61', expected a finite number"),
        (("rows", 1, "domains", "code", "nats"), float("nan"), r"card\.rows\[1\]\.domains\.code\.nats: found nan"),
        (("rows", 1, "name"), "parent", r"rows: found names \['parent', 'parent', 'outrider'\]"),
        (("rows", 2, "domains"), {}, r"outrider\.domains: found \[\], expected \['code', 'talk'\], as all rows"),
        (("rows", 0, "colour"), "red", r"card\.rows\[0\]\.colour: found 'colour', expected active"),
        (("rows", 0, "tokens", "tuning"), True, r"tokens\.tuning: found True, expected int"),
        (("router",), [], r"card\.router: found \[\], expected an object"),
        (("masks", "pairs"), [1.0], r"card\.masks\.pairs\[0\]: found 1\.0, expected a list"),
    ],
)
def test_a_field_that_does_not_fit_is_named(path, value, message):
    card = copy.deepcopy(_card())
    at = card
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(InputError, match=message):
        check(card, "here")


def test_a_missing_field_is_named_and_nothing_is_written(tmp_path):
    card = _card()
    del card["sizes"]["masks_bytes"]
    with pytest.raises(InputError, match=r"card\.sizes\.masks_bytes: found nothing, expected this field"):
        write_card(card, tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "quality_card.json").write_text("{")
    with pytest.raises(InputError, match=r"E_CARD: .*quality_card\.json: card: found"):
        regenerate(tmp_path)
    assert dump(_card()) == dump(_card())
