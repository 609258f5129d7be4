"""Paths that are recorded again: they take no room from others, and a note is about the recording of its own path."""

import equality
import outrider
import pytest
import torch

PLANS_MAX = 16
NEVER = 0  # early launches


class Branching:
    """A step whose path is chosen by name."""

    def __init__(self):
        self.weight, self.data = torch.randn(8, 8), torch.randn(4, 8)
        self.call = outrider.coexec(self.step, name="branching")

    def step(self, path, rows=1):
        """One of three paths; `rolled` differs with each `rows`."""
        x = self.data @ self.weight
        if path == "rolled":
            return x.roll(rows, 0).sin()
        return x.relu().sum() if path == "relu" else x.sigmoid().tanh().exp().sum()

    def run(self, *arguments, split=False):
        """The row of one step, whose result is exact. `split`: the path is left in its midst for the inner lane."""
        with torch.no_grad():
            wanted = self.step(*arguments)
            outrider.options(force_divergence=(outrider.report()[-1]["step"] + 1, 1) if split else None)
            got = self.call(*arguments)
        outrider.flush()
        assert torch.equal(got, wanted)
        return outrider.report()[-1]


def test_a_known_path_recorded_again_pushes_no_other_out():
    with equality.fresh_core(early_launch=NEVER):
        program = Branching()
        lanes = [program.run(path)["lane"] for path in ("sigmoid", "relu") for _ in range(6)]
        assert (lanes[5], lanes[-1]) == ("outer", "outer")
        for i in range(PLANS_MAX + 1):
            row = program.run("relu", split=True)
            assert {divergence["code"] for divergence in row["divergences"]} == {"DIV_FORCED"}
            rows = [program.run("relu") for _ in range(4 + i)]  # no rhythm, which would be learnt
            assert rows[0]["recorded"] and rows[-1]["lane"] == "outer"
        assert program.run("sigmoid")["lane"] == "outer"


def test_the_note_is_about_the_recording_of_the_same_path():
    with equality.fresh_core(early_launch=NEVER):
        program = Branching()
        notes = [
            program.run(*arguments)["note"] for arguments in (("relu",), ("rolled", 1), ("sigmoid",), ("rolled", 2))
        ]
        assert notes[0] == "INNER_UNSTABLE: no second recording of this path yet"
        assert notes[-1] == "INNER_UNSTABLE: event 1 (aten::roll): argument 1 differs"


@pytest.mark.parametrize("every", [2, 5, 8])
def test_a_path_that_comes_every_few_steps_is_learnt(every):
    with equality.fresh_core(early_launch=NEVER):
        program = Branching()
        paths = ["relu" if i % every == every - 1 else "sigmoid" for i in range(12 * every)]
        lanes = [program.run(path)["lane"] for path in paths]
    assert lanes[-3 * every :] == ["outer"] * 3 * every


def test_gradients_that_gather_over_eight_batches():
    """The optimizer steps behind every eighth; all steps are covered in the end, and exact."""

    def losses(wrap):
        torch.manual_seed(3)
        model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        batches = [torch.randn(5, 6) for _ in range(120)]

        def step(i):
            loss = model(batches[i]).square().mean() / 8
            loss.backward()
            if i % 8 == 7:
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
            return loss.item()

        call = wrap(step)
        return [call(i) for i in range(len(batches))]

    with equality.fresh_core(early_launch=NEVER):
        eager = losses(lambda step: step)
        found = losses(lambda step: outrider.coexec(step, name="gathering"))
        outrider.flush()
        rows = outrider.report()
    assert found == eager
    assert [row["lane"] for row in rows[-16:]] == ["outer"] * 16
