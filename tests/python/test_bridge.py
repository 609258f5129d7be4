"""The bridge experiment on its tiny shape: the forms agree, coexec is exact, routes and rows are as described."""

import json
import pathlib
import sys

import pytest
import torch

_ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(_ROOT / "benchmarks/bridge"), str(_ROOT / "benchmarks/coexec")]

import bridge  # noqa: E402
import outrider  # noqa: E402
from bridge_model import SHAPES, Model, State  # noqa: E402
from bridge_routes import RouteOptions, draw_routes, groups_of, measured_stay_rate  # noqa: E402
from bridge_sides import GraphStep, Side  # noqa: E402
from bridge_step import FORMS, Decoder, grouped_experts, loop_over_experts, one_expert  # noqa: E402

STEPS = 12


@pytest.fixture(scope="module")
def model():
    return Model(SHAPES["tiny"], "cpu", torch.float32)


@pytest.fixture(autouse=True)
def nothing_recorded():
    outrider.reset()
    yield
    outrider.reset()


def _routes(batch, states, steps=STEPS):
    return draw_routes(RouteOptions(SHAPES["tiny"].experts, batch, steps, 0.7, states))


def _run(form, mode, model, batch, routes):
    side = Side(form, mode, model, batch, routes)
    tokens, logits = [], []
    for _ in range(STEPS):
        tokens.append(side.step())
        logits.append(side.decoder.state.logits)
    side.wait()
    side.leave()
    return side, tokens, torch.stack([values.clone() for values in logits])


@pytest.mark.parametrize(("batch", "states"), [(1, 4), (8, 4), (8, 0)])
def test_forms_agree_and_coexec_is_exact(model, batch, states):
    routes = _routes(batch, states)
    _, reference_tokens, reference = _run("layerwise", "eager", model, batch, routes)
    for form in FORMS:
        eager, tokens, logits = _run(form, "eager", model, batch, routes)
        torch.testing.assert_close(logits, reference)
        assert tokens == reference_tokens, form
        coexecuted, co_tokens, co_logits = _run(form, "coexec", model, batch, routes)
        assert torch.equal(co_logits, logits), form
        assert co_tokens == tokens, form
        pairs = zip(coexecuted.decoder.state.changed(), eager.decoder.state.changed(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), form


@pytest.mark.parametrize(("form", "reads"), [("layerwise", SHAPES["tiny"].layers + 1), ("grouped", 1), ("pregated", 1)])
def test_reads_and_paths_of_a_form(model, form, reads):
    routes = _routes(8, 4)
    side, _, _ = _run(form, "eager", model, 8, routes)
    assert side.decoder.read.count == reads * STEPS
    distinct = len({groups_of(ids) for ids in routes})
    assert distinct > 1
    assert len(side.decoder.paths) == (1 if form == "grouped" else distinct)


def test_both_ffn_forms_are_one_expert_per_row(model):
    torch.manual_seed(0)
    x, ids, layer = torch.randn(9, model.shape.width), torch.tensor([2, 0, 2, 3, 3, 0, 2, 0, 3]), model.layers[1]
    wanted = torch.cat([one_expert(layer, expert, x[row : row + 1]) for row, expert in enumerate(ids.tolist())])
    looped = loop_over_experts(layer, x, groups_of(ids.tolist()), ids.argsort(stable=True))
    torch.testing.assert_close(looped, wanted)
    torch.testing.assert_close(grouped_experts(model, layer, x, ids), wanted)


def test_routers_choose_what_was_drawn(model):
    routes = _routes(5, 0)
    decoder = Decoder("pregated", model, State(model, 5, routes))
    plan = decoder.first_plan(routes)
    with torch.no_grad():
        for ids in routes:
            assert decoder.state.expert_ids.tolist() == ids
            assert plan == groups_of(ids)
            _, plan = decoder.step(plan)


def test_a_full_cache_starts_anew(model):
    state = State(model, 1, _routes(1, 1))
    decoder = Decoder("grouped", model, state)
    state.position.fill_(model.shape.context - 1)
    with torch.no_grad():
        decoder.step(None)
        assert state.position.item() == 0
        assert state.keys[0][0, :, -1].abs().sum() > 0
        decoder.step(None)
    assert state.position.item() == 1


def test_routes_stay_at_the_given_rate():
    options = RouteOptions(experts=4, batch=8, steps=2000, stay_rate=0.7, states=0)
    routes = draw_routes(options)
    assert routes == draw_routes(options)
    assert abs(measured_stay_rate(routes) - 0.7) < 0.02
    recurring = draw_routes(RouteOptions(4, 8, 2000, 0.7, 3))
    assert len({tuple(ids) for ids in recurring}) == 3
    assert groups_of([2, 0, 2]) == ((0, 1), (2, 2))


def test_graphs_are_for_the_pregated_form_only(model):
    decoder = Decoder("layerwise", model, State(model, 1, _routes(1, 1)))
    with pytest.raises(ValueError, match="pregated, not layerwise"):
        GraphStep(decoder)


def test_the_program_writes_rows_and_goes_on(tmp_path):
    output = tmp_path / "bridge.json"
    sizes = {"batches": 3, "states": 2, "block-steps": 2, "warm-up-steps": 3, "compare-steps": 3, "route-steps": 8}
    command = [*(f"--{name}={value}" for name, value in sizes.items()), f"--output={output}"]
    bridge.main(command)
    result = json.loads(output.read_text())
    rows = result["rows"]
    assert [(row["router"], row["mode"]) for row in rows] == [(f, m) for f in FORMS for m in ("eager", "coexec")]
    for row in rows:
        assert {"model", "batch", "host_syncs", "ms", "covered_share", "paths", "stay_rate", "bitwise"} <= row.keys()
        assert row["bitwise"] is True
        assert row["same_tokens"] == 1.0
        assert row["ms"] > 0
        assert row["reps"] == 7
        assert (row["covered_share"] is None) == (row["mode"] == "eager")
        assert row["host_syncs"] == (SHAPES["tiny"].layers + 1 if row["router"] == "layerwise" else 1)
    assert output.with_suffix(".md").read_text().count("| tiny |") == len(rows)
    assert bridge.main(command) == result


def test_too_few_blocks_and_unknown_shapes_are_refused(capsys):
    for wrong in (["--blocks", "6"], ["--shapes", "tiny,huge"]):
        with pytest.raises(SystemExit):
            bridge.parse([*wrong, "--output", "x.json"])
    assert "got 6" in capsys.readouterr().err
