"""What an event returns and what it fills: kept gradients, views of parameters, numbers; all for the outer lane."""

import pytest
import torch
import torch.nn.functional as F
from scenarios import MODES, ODD_STEP, check

pytestmark = [pytest.mark.timeout(120), pytest.mark.parametrize("mode", MODES)]


def used_lane(mode):
    """The lane that an eligible program is covered by in the end."""
    return "inner" if mode == "inner" else "outer"


def test_gradients_zeroed_one_by_one(mode):
    """Without an optimizer's help: each gradient is filled in place before anything reads it."""

    def make(bench):
        def step(i):
            for parameter in bench.net.parameters():
                if parameter.grad is not None:
                    parameter.grad.zero_()
            loss = bench.loss()
            loss.backward()
            bench.optimizer.step()
            return loss

        return step

    assert check(make, mode).rows[-1]["lane"] == used_lane(mode)


def test_views_of_parameters(mode):
    """A view has the version counter of its parameter, which grows with each update."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            features, labels = bench.batch()
            last = bench.net[4]
            hidden = bench.net[:4](features) @ last.weight.t() + last.bias[:3]
            loss = F.cross_entropy(hidden, labels)
            loss.backward()
            bench.optimizer.step()
            view = last.weight.detach().view(-1)
            view.mul_(0.999)
            bench.log.append((view._version, last.weight._version))
            return loss

        return step

    assert check(make, mode).rows[-1]["lane"] == used_lane(mode)


def test_view_relation_is_asked_late(mode):
    """Placeholders are no views; who asks gets the answer of eager, with and without gradients."""

    def make(bench):
        def step(i):
            loss = bench.train()
            weight = bench.weight()
            row, flat = weight[0], weight.detach().view(-1)
            if ODD_STEP <= i < ODD_STEP + 3:
                bench.log.append((row._is_view(), row._base is weight, flat._is_view(), flat._base is None))
                bench.log.append((loss._is_view(), loss._base is None))
            return loss

        return step

    twin = check(make, mode)
    assert len(twin.state["log"]) == 6
    assert twin.rows[ODD_STEP - 1]["lane"] == used_lane(mode)


def test_numbers_made_by_operators(mode):
    """Results without a dimension that are filled before they are used."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            loss = bench.loss()
            scale = torch.empty_like(loss.detach()).fill_(3.0).div_(loss.detach())
            loss = loss * scale + torch.zeros_like(loss).add_(0.5)
            loss.backward()
            bench.optimizer.step()
            return loss

        return step

    assert check(make, mode).rows[-1]["lane"] == used_lane(mode)
