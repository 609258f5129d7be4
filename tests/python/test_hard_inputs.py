"""Several inputs over one piece of foreign memory, overlapping elements, and foreign memory that is returned."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scenarios import MODES, STEPS, Bench, assert_lane, check, run_twins

pytestmark = [pytest.mark.timeout(120), pytest.mark.parametrize("mode", MODES)]


def train_on(bench, features, labels):
    """One training step on a given batch."""
    bench.optimizer.zero_grad()
    loss = F.cross_entropy(bench.net(features), labels)
    loss.backward()
    bench.optimizer.step()
    return loss


def two_slices(buffer):
    """Rows of one array, made by torch."""
    whole = torch.from_numpy(buffer)
    return whole[:5, :6], whole[5:, :6]


def overlapping_slices(buffer):
    """Rows of one array that share two rows."""
    whole = torch.from_numpy(buffer)
    return whole[1:6, :6], whole[4:9, :6]


def two_columns(buffer):
    """Columns of one array, made by numpy: two storages over one memory."""
    return torch.from_numpy(buffer[:5, :6]), torch.from_numpy(buffer[:5, 6:])


def slice_and_whole(buffer):
    """A view and what it is a view of."""
    whole = torch.from_numpy(buffer)
    return whole[:5, 3:9], whole.view(2, 5, 12)[1, :, :6]


def strided_slices(buffer):
    """Every second column, and a transposed block."""
    whole = torch.from_numpy(buffer)
    return whole[:5, ::2], whole[:6, 2:7].t()


SHARED = [two_slices, overlapping_slices, two_columns, slice_and_whole, strided_slices]


@pytest.mark.parametrize("kept", [False, True], ids=["made_in_step", "made_once"])
@pytest.mark.parametrize("inputs", SHARED)
def test_inputs_share_one_numpy_buffer(mode, inputs, kept):
    """Each event reads its part of the buffer as it is then, also when the buffer changes between two of them."""

    def make(bench):
        buffer = np.zeros((10, 12), np.float32)
        once = inputs(buffer)

        def step(i):
            buffer[...] = np.random.randn(10, 12)
            labels = torch.from_numpy(np.random.randint(0, 3, 5))
            left, right = once if kept else inputs(buffer)
            bench.optimizer.zero_grad()
            hidden = bench.net(left)
            buffer[3:7] += 1.0
            loss = F.cross_entropy(hidden + bench.net(right), labels)
            buffer[:5] *= 0.5
            loss.backward()
            bench.optimizer.step()
            buffer.fill(np.nan)
            return loss

        return step

    assert_lane(check(make, mode), mode)


def test_inputs_are_dtype_views_of_one_buffer(mode):
    """Features and labels are bytes of one record; one of them changes before backward."""

    def make(bench):
        record = np.zeros(5 * 6 * 4 + 5 * 8, np.uint8)

        def step(i):
            record[:120] = np.random.randn(30).astype(np.float32).view(np.uint8)
            record[120:] = np.random.randint(0, 3, 5).view(np.uint8)
            raw = torch.from_numpy(record)
            features, labels = raw[:120].view(torch.float32).view(5, 6), raw[120:].view(torch.int64)
            bench.optimizer.zero_grad()
            loss = F.cross_entropy(bench.net(features), labels)
            record[:120] = np.float32(0.25 * i).repeat(30).view(np.uint8)
            loss.backward()
            bench.optimizer.step()
            record.fill(255)
            return loss

        return step

    assert_lane(check(make, mode), mode)


EXPANSIONS = {
    "row": lambda buffer: torch.from_numpy(buffer[0]).expand(5, 6),
    "column": lambda buffer: torch.from_numpy(buffer)[:5, :1].expand(5, 6),
    "number": lambda buffer: torch.from_numpy(buffer[0, :1]).expand(5, 6),
    "windows": lambda buffer: torch.from_numpy(buffer.reshape(-1)).as_strided((5, 6), (3, 1), 2),
}


@pytest.mark.parametrize("expansion", EXPANSIONS)
def test_expanded_input(mode, expansion):
    """Elements of the input share memory, so a copy of it is no copy element by element."""

    def make(bench):
        buffer = np.zeros((5, 6), np.float32)

        def step(i):
            buffer[...] = np.random.randn(5, 6)
            labels = torch.from_numpy(np.random.randint(0, 3, 5))
            loss = train_on(bench, EXPANSIONS[expansion](buffer), labels)
            buffer.fill(np.nan)
            return loss

        return step

    assert_lane(check(make, mode), mode)


@pytest.mark.parametrize("view", [lambda x: x[1:3], lambda x: x.t(), lambda x: x.view(-1)[::2], lambda x: x])
def test_step_returns_a_view_of_foreign_memory(mode, view):
    """What comes back is the program's own memory: later writes to the buffer show in it, and the reverse."""

    def make(bench):
        buffer = np.zeros((5, 6), np.float32)

        def step(i):
            buffer[...] = np.random.randn(5, 6)
            features = torch.from_numpy(buffer)
            train_on(bench, features, torch.from_numpy(np.random.randint(0, 3, 5)))
            return view(features)

        return step

    def drive(wrap):
        bench = Bench(make)
        step = wrap(bench.step)
        results = []
        for i in range(STEPS):
            results.append(step(i))
            bench.log.append(results[-1].tolist())
            results[-1].mul_(2.0)
            bench.log.append([result.tolist() for result in results[-2:]])
        return bench

    run_twins(drive, mode)
