"""Steps that do something else now and then: after a while all are covered, the odd ones too, and no bit changes."""

import equality
import pytest
import torch
import torch.nn.functional as F
from scenarios import MODES, Bench

pytestmark = pytest.mark.timeout(180)

STEPS, SETTLED = 110, 80


class Rhythm(Bench):
    """A program whose odd steps are those with `i % every == every - 1`."""

    def __init__(self, body, every):
        super().__init__(lambda bench: lambda i: body(bench, i, i % every == every - 1))
        self.batches = [(torch.randn(5, 6), torch.randint(0, 3, (5,))) for _ in range(STEPS)]


def accumulates(bench, i, odd):
    """Gradients of several batches before the optimizer moves, and new gradients afterwards."""
    loss = bench.loss() / 4
    loss.backward()
    if odd:
        bench.optimizer.step()
        bench.optimizer.zero_grad()
    return loss.detach()


def evaluates(bench, i, odd):
    """The batch once more, without dropout, behind the optimizer; the batch is an input that was needed before only."""
    features, labels = bench.batches[i]
    bench.optimizer.zero_grad()
    loss = F.cross_entropy(bench.net(features), labels)
    loss.backward()
    bench.optimizer.step()
    if odd:
        bench.net.eval()
        with torch.no_grad():
            bench.log.append((bench.net(features).argmax(1) == labels).float().mean().item())
        bench.net.train()
    return loss.detach()


def averages(bench, i, odd):
    """An average of the weights, taken now and then."""
    loss = bench.train()
    if odd:
        with torch.no_grad():
            for name, w in bench.net.named_parameters():
                bench.extra[name] = bench.extra[name].lerp(w, 0.1) if name in bench.extra else w.detach().clone()
    return loss.detach()


def reads_features(bench, i, odd):
    """The inputs, changed in place behind their last use in other steps."""
    features, labels = bench.batches[i]
    bench.optimizer.zero_grad()
    loss = F.cross_entropy(bench.net(features), labels)
    loss.backward()
    bench.optimizer.step()
    if odd:
        features.mul_(2).add_(labels[0])
        bench.log.append(features.sum().item())
    return loss.detach()


CASES = [
    (accumulates, 2),
    (accumulates, 4),
    (accumulates, 8),
    (evaluates, 5),
    (evaluates, 3),
    (averages, 4),
    (reads_features, 5),
]


def run(body, every, call):
    """Losses, state and log."""
    bench = Rhythm(body, every)
    step = call(bench.step)
    losses = [step(i) for i in range(STEPS)]
    return [loss.item() for loss in losses], bench.state(), list(bench.log)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("body", "every"), CASES)
def test_rhythm(body, every, mode):
    """Bits are eager's; in the end all steps are in the outer lane."""
    import outrider

    eager = run(body, every, lambda function: function)
    with equality.fresh_core(**MODES[mode]):
        losses, state, log = run(body, every, outrider.coexec)
        outrider.flush()
        rows = outrider.report()
    assert losses == eager[0]
    assert not equality.differences(equality.Outcome([], eager[1]), equality.Outcome([], state))
    assert log == eager[2]
    if mode == "auto":
        lanes = "".join(row["lane"][0] for row in rows)
        assert set(lanes[SETTLED:]) == {"o"}, lanes


@pytest.mark.parametrize(("body", "every"), CASES)
def test_divergence_behind_an_odd_event(body, every):
    """An odd step that is given up at any of its events, inputs that it was fed again among what is replayed."""
    import outrider

    odd = STEPS - 1 - (STEPS % every)
    assert odd % every == every - 1
    eager = run(body, every, lambda function: function)
    forced = 0
    for event in range(0, 60, 3):
        with equality.fresh_core(force_divergence=(odd, event)):
            losses, state, log = run(body, every, outrider.coexec)
            outrider.flush()
            rows = outrider.report()
        forced += any(item["code"] == "DIV_FORCED" for item in rows[odd]["divergences"])
        assert losses == eager[0], event
        assert not equality.differences(equality.Outcome([], eager[1]), equality.Outcome([], state)), event
        assert log == eager[2], event
    assert forced >= 3, forced
