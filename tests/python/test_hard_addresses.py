"""Memory of a tensor in other hands: taken once, in each way that Python has, then read and written over many steps."""

import ctypes

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scenarios import ODD_STEP, check

pytestmark = [pytest.mark.timeout(120), pytest.mark.parametrize("mode", ["auto", "inner", "early"])]


def at_address(address, count):
    """Floats at an address; nothing else keeps them alive, and nobody is asked."""
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address))


def typed_storage(tensor):
    """The older kind of storage object."""
    return at_address(tensor.detach().storage().data_ptr(), tensor.numel())


def kept_storage(tensor):
    """Its storage object is kept; numbers are read and written through it."""
    storage = tensor.detach().untyped_storage()

    class Numbers:
        def __getitem__(self, i):
            return np.frombuffer(bytes(storage[4 * i : 4 * i + 4]), np.float32)[0]

        def __setitem__(self, i, value):
            for k, byte in enumerate(np.float32(value).tobytes()):
                storage[4 * i + k] = byte

    return Numbers()


def buffer_protocol(tensor):
    """A memoryview of bytes, cast to floats."""
    return memoryview(tensor.detach().numpy()).cast("B").cast("f")


TAKEN = {
    "address": lambda t: at_address(t.data_ptr(), t.numel()),
    "address_of_alias": lambda t: at_address(t.detach().data_ptr(), t.numel()),
    "address_of_data": lambda t: at_address(t.data.view(-1).data_ptr(), t.numel()),
    "storage_address": lambda t: at_address(t.untyped_storage().data_ptr(), t.numel()),
    "storage_address_of_alias": lambda t: at_address(t.detach().untyped_storage().data_ptr(), t.numel()),
    "typed_storage": typed_storage,
    "kept_storage": kept_storage,
    "numpy": lambda t: t.detach().numpy().reshape(-1),
    "asarray": lambda t: np.asarray(t.detach()).reshape(-1),
    "memoryview": buffer_protocol,
    "numpy_dlpack": lambda t: np.from_dlpack(t.detach()).reshape(-1),
    "torch_dlpack": lambda t: torch.from_dlpack(t.detach()).view(-1),
    "capsule": lambda t: torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(t.detach())).view(-1),
    "from_numpy": lambda t: torch.from_numpy(t.detach().numpy()).view(-1),
    "frombuffer": lambda t: torch.frombuffer(t.detach().numpy().data, dtype=torch.float32),
}


def numbers(bench, memory, i, k):
    """Reads one number through the alias, and writes another one."""
    bench.log.append(float(memory[k]))
    memory[k] = 0.1 * i - 0.3


@pytest.mark.parametrize("when", [0, ODD_STEP])
@pytest.mark.parametrize("take", TAKEN)
def test_weight(mode, take, when):
    """Taken at some step; from then on read and written at four places of each step."""

    def make(bench):
        held = []

        def step(i):
            if i == when:
                held.append(TAKEN[take](bench.weight()))
            write = held and i % 3 != 1

            def use(k):
                if write:
                    numbers(bench, held[0], i, k)

            use(0)
            bench.optimizer.zero_grad()
            loss = bench.loss()
            use(1)
            loss.backward()
            use(2)
            bench.optimizer.step()
            use(3)
            return loss

        return step

    check(make, mode)


@pytest.mark.parametrize("when", ["before", "inside"])
@pytest.mark.parametrize("take", TAKEN)
def test_batch_buffer(mode, take, when):
    """A tensor that native code fills with the next batch, and overwrites as soon as the step is over."""

    def make(bench):
        buffer = torch.zeros(5, 6)
        held = [TAKEN[take](buffer)] if when == "before" and "address" not in take and "typed" not in take else []

        def step(i):
            if not held:
                held.append(TAKEN[take](buffer))
            row = np.random.randn(30).astype(np.float32)
            for k in range(30):
                held[0][k] = float(row[k])
            bench.optimizer.zero_grad()
            loss = F.cross_entropy(bench.net(buffer), torch.from_numpy(np.random.randint(0, 3, 5)))
            loss.backward()
            for k in range(30):
                held[0][k] = float("nan")
            bench.optimizer.step()
            return loss

        return step

    check(make, mode)


@pytest.mark.parametrize("take", ["address", "storage_address", "address_of_alias"])
def test_batch_address_taken_before_its_first_use(mode, take):
    """A fresh tensor of each step, filled by its address before torch computes with it, and overwritten in the end."""

    def make(bench):
        def step(i):
            batch = torch.empty(5, 6)
            memory = TAKEN[take](batch)
            memory[:] = np.random.randn(30)
            bench.optimizer.zero_grad()
            loss = F.cross_entropy(bench.net(batch), torch.from_numpy(np.random.randint(0, 3, 5)))
            memory[:] = 0.5
            loss.backward()
            bench.optimizer.step()
            memory[:] = np.nan
            return loss

        return step

    check(make, mode)


def test_saving_leaves_weights_asynchronous(mode, tmp_path):
    """torch.save compares addresses of storages; nobody keeps them."""

    def make(bench):
        def step(i):
            loss = bench.train()
            if i in (2, 5):
                torch.save(bench.net.state_dict(), tmp_path / f"{mode}.pt")
            return loss

        return step

    twin = check(make, mode)
    assert twin.rows[-1]["lane"] == ("inner" if mode == "inner" else "outer"), twin.rows[-1]
    assert twin.rows[-1]["flushes"].get("FLUSH_ESCAPED", 0) == 0, twin.rows[-1]
