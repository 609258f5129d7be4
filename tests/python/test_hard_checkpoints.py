"""Programs that save what they train: files hold what eager's would, and later steps are covered as before."""

import copy
import io
import pickle

import equality
import pytest
import torch
from scenarios import MODES, Bench, default_net

pytestmark = pytest.mark.timeout(120)

STEPS, SAVES = 24, (9, 10, 16)


def saved(thing, **options):
    """The bytes that torch.save writes, read again."""
    file = io.BytesIO()
    torch.save(thing, file, **options)
    file.seek(0)
    return torch.load(file, weights_only=False)


def model(bench):
    """Its state."""
    return saved(bench.net.state_dict())


def model_and_optimizer(bench):
    """Both in one file, as training programs do."""
    return saved({"net": bench.net.state_dict(), "optimizer": bench.optimizer.state_dict(), "step": 3})


def old_format(bench):
    """The format before zip files."""
    return saved(bench.optimizer.state_dict(), _use_new_zipfile_serialization=False)


def whole_module(bench):
    """The module object itself."""
    return saved(bench.net).state_dict()


def pickled(bench):
    """Python's own pickle."""
    return pickle.loads(pickle.dumps(dict(bench.net.named_parameters())))


def deep_copy(bench):
    """An exponential average begins with one."""
    return copy.deepcopy(bench.net).state_dict()


def safetensors(bench):
    """A safetensors file of the weights themselves, not of copies."""
    save = pytest.importorskip("safetensors.torch")
    return dict(sorted(save.load(save.save(dict(bench.net.state_dict()))).items()))


def storages(bench):
    """Storage objects, for as long as it takes to look at them."""
    return {name: bytes(w.untyped_storage()) for name, w in bench.net.named_parameters()}


WAYS = [model, model_and_optimizer, old_format, whole_module, pickled, deep_copy, safetensors, storages]


def flat(thing):
    """Every tensor inside as bytes, with its place."""
    if isinstance(thing, torch.Tensor):
        return [(str(thing.dtype), tuple(thing.shape), thing.detach().numpy().tobytes())]
    if isinstance(thing, dict):
        return [(str(key), *flat(value)) for key, value in thing.items()]
    return [thing] if not isinstance(thing, (list, tuple)) else [flat(value) for value in thing]


class Saving(Bench):
    """Training that saves in some steps: behind them, or in their middle."""

    def __init__(self, way, inside):
        super().__init__(lambda bench: bench.saving_step, net=default_net)
        self.way, self.inside, self.files = way, inside, []

    def save(self, i, inside):
        """The file of step `i`, where it is due here."""
        if i in SAVES and inside == self.inside:
            self.files.append(flat(self.way(self)))

    def saving_step(self, i):
        """One training step."""
        self.optimizer.zero_grad()
        loss = self.loss()
        self.save(i, inside=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def run(way, inside, call):
    """Losses and files."""
    bench = Saving(way, inside)
    step, losses = call(bench.step), []
    for i in range(STEPS):
        losses.append(step(i))
        bench.save(i, inside=False)
    return [loss.item() for loss in losses], bench.files


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("inside", [False, True], ids=["behind", "inside"])
@pytest.mark.parametrize("way", WAYS)
def test_saving(way, inside, mode):
    """Files equal eager's, byte for byte, and the last steps are covered."""
    import outrider

    eager = run(way, inside, lambda function: function)
    assert len(eager[1]) == len(SAVES)
    with equality.fresh_core(**MODES[mode]):
        co_executed = run(way, inside, outrider.coexec)
        outrider.flush()
        rows = outrider.report()
    assert co_executed == eager
    if mode != "inner":
        assert {row["lane"] for row in rows[-4:]} == {"outer"}, [(row["lane"], row["note"]) for row in rows]


def test_an_address_in_other_hands_still_counts():
    """The negative control: the same question from the program's own code makes weights synchronous for good."""
    import outrider

    def address(bench):
        return {name: w.data_ptr() and name for name, w in bench.net.named_parameters()}

    with equality.fresh_core():
        run(address, False, outrider.coexec)
        outrider.flush()
        assert {row["lane"] for row in outrider.report()[-4:]} == {"inner"}
