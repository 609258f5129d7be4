"""Views: bounds, metadata in all modes, version counters; and an operator that autocast treats specially."""

import equality
import pytest
import torch
import torch.nn.functional as F
from scenarios import MODES, ODD_STEP, STEPS, assert_lane, check
from torch import nn

pytestmark = [pytest.mark.timeout(120), pytest.mark.parametrize("mode", MODES)]


OUT_OF_BOUNDS = {
    "shorter_storage": lambda odd: torch.ones(6 if odd else 12)[:6].as_strided((2, 6), (6, 1)),
    "larger_size": lambda odd: torch.ones(12).as_strided((3 if odd else 2, 6), (6, 1)),
    "larger_offset": lambda odd: torch.ones(12).as_strided((1, 6), (6, 1), 7 if odd else 6),
    "negative_stride": lambda odd: torch.ones(12).as_strided((2, 6), (-1 if odd else 6, 1)),
}


@pytest.mark.parametrize("always", [False, True], ids=["one_step", "from_then_on"])
@pytest.mark.parametrize("reach", OUT_OF_BOUNDS)
def test_as_strided_out_of_bounds(mode, reach, always):
    """The very error of eager, where known shapes alone would let the view pass."""

    def make(bench):
        def step(i):
            loss = bench.train()
            odd = i >= ODD_STEP if always else i == ODD_STEP
            window = OUT_OF_BOUNDS[reach](odd) * bench.weight().detach()[0, 0]
            return loss + window.sum()

        return step

    twin = check(make, mode, resume=True)
    assert isinstance(twin.losses[ODD_STEP], str), "the step must have raised"
    assert isinstance(twin.losses[ODD_STEP - 1], float)


class BilinearNet(nn.Module):
    """A bilinear layer in front."""

    def __init__(self):
        super().__init__()
        self.meet, self.score = nn.Bilinear(6, 6, 4), nn.Linear(4, 3)

    def forward(self, features):
        """Features [N, 6] to scores [N, 3]."""
        return self.score(self.meet(features, features.flip(0)).tanh())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_bilinear(mode, dtype):
    """An operator that autocast treats by promoting its inputs, in forward and backward."""

    def make(bench):
        def step(i):
            features, labels = bench.batch()
            bench.optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                scores = bench.net(features)
            bench.log.append(str(scores.dtype))
            loss = F.cross_entropy(scores.float(), labels)
            loss.backward()
            bench.optimizer.step()
            return loss

        return step

    assert_lane(check(make, mode, net=BilinearNet), mode)


MODES_OF_TORCH = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}


def some_views(bench, features):
    """Views of parameters, of inputs and of results, with what each is a view of."""
    result = bench.net(features) * 2.0
    first, flat = bench.weight()[0], result.view(-1)
    pairs = [
        (first, bench.weight()),
        (features[1:], features),
        (result.t(), result),
        (flat[2:], result),
        (flat, result),
    ]
    return [*pairs, (bench.weight().detach(), None), (result, None), (result.detach(), None)]


def check_views(mode, torch_mode, facts, always=True):
    """Logs `facts(view, base)` of some views in each step, or in one; with gradients, backward goes through them."""

    def make(bench):
        def step(i):
            features, _ = bench.batch()
            bench.optimizer.zero_grad()
            with MODES_OF_TORCH[torch_mode]():
                views = some_views(bench, features)
                if always or i == ODD_STEP:
                    bench.log.append([facts(view, base) for view, base in views])
                total = sum(view.square().sum() for view, _ in views)
            if torch_mode == "grad":
                total.backward()
                bench.optimizer.step()
            return total if torch_mode == "inference" else total.detach()

        return step

    return check(make, mode)


@pytest.mark.parametrize("always", [True, False], ids=["each_step", "one_step"])
@pytest.mark.parametrize("torch_mode", MODES_OF_TORCH)
def test_what_a_tensor_is_a_view_of(mode, torch_mode, always):
    """`_base` and `_is_view` say what they say in eager, also where no recorded step asked."""

    def facts(view, base):
        return [view._is_view(), view._base is base, None if view._base is None else tuple(view._base.shape)]

    twin = check_views(mode, torch_mode, facts, always)
    assert len(twin.state["log"]) == (STEPS if always else 1)
    assert_lane(twin, mode)


@pytest.mark.parametrize("torch_mode", MODES_OF_TORCH)
def test_metadata_of_views(mode, torch_mode):
    """What needs no history: leaf or not, gradient, inference tensor, geometry."""

    def facts(view, _):
        return [view.is_inference(), view.is_leaf, view.requires_grad, tuple(view.shape), tuple(view.stride())]

    assert_lane(check_views(mode, torch_mode, facts), mode)


def test_version_of_views(mode):
    """A view, and a detached tensor, count each write to what they were made of, and the reverse."""

    def make(bench):
        def step(i):
            weight = bench.weight()
            views = [weight.detach(), weight.detach()[1], weight.detach().view(-1).detach()]
            loss = bench.train()
            noted = [[tensor._version for tensor in (weight, *views)]]
            with torch.no_grad():
                views[1].mul_(0.5)
                noted.append([tensor._version for tensor in (weight, *views)])
                pieces = (views[2] * 2).chunk(3)
                pieces[0].add_(pieces[1])
                noted.append([piece._version for piece in pieces])
            bench.log.append(noted)
            return loss.detach() + pieces[0].sum()

        return step

    assert_lane(check(make, mode), mode)


@pytest.mark.parametrize("always", [True, False], ids=["each_step", "one_step"])
def test_history_nobody_asks_for(mode, always):
    """Views of committed and of new results, with history that no backward consumes, in a step that is replayed."""

    def make(bench):
        def step(i):
            loss = bench.train()
            if not always and i != ODD_STEP:
                return loss
            scores = bench.net(bench.batch()[0])
            return (loss.detach().view(1) + scores.t()[0].sum().view(1)).detach()[0]

        return step

    check(make, mode)


def test_history_that_only_python_drops_is_not_paid_for_in_each_step(mode):
    """A forward pass with history and no backward: its steps are not replayed for ever."""

    def make(bench):
        def step(i):
            x = bench.weight()
            for _ in range(5):
                x = x * 1.5
            return x.detach().sum()

        return step

    twin = check(make, mode, steps=60)
    replayed = [row["step"] for row in twin.rows[30:] if row["replayed_events"] > 0]
    assert len(replayed) <= 2, (replayed, equality.why_not(twin.rows))
