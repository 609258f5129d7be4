"""Training-loop idioms: accumulation, schedules, clipping, averaging, scaling, recurrent nets, loaders."""

import functools

import equality
import pytest
import torch
import torch.nn.functional as F
from coexec.fingerprint import fingerprint
from coexec.program import make_optimizer, seed_everything
from scenarios import MODES, ODD_STEP, check
from torch import nn

from coexec import digits

pytestmark = [pytest.mark.timeout(120), pytest.mark.parametrize("mode", MODES)]

OPTIMIZERS = ("sgd", "adam", "adamw", "adamw_fused", "adamw_foreach")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers(mode, optimizer):
    """Each optimizer's op stream, scalars that change every step included."""
    check(lambda bench: lambda i: bench.train(), mode, optimizer=optimizer)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_gradient_accumulation(mode, optimizer):
    """Three backward passes into kept gradients, zeroed in place."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad(set_to_none=False)
            for _ in range(3):
                loss = bench.loss() / 3
                loss.backward()
            bench.optimizer.step()
            return loss

        return step

    check(make, mode, optimizer=optimizer)


def test_accumulation_across_steps(mode):
    """The optimizer runs every fourth step only."""

    def make(bench):
        def step(i):
            loss = bench.loss() / 4
            loss.backward()
            if i % 4 == 3:
                bench.optimizer.step()
                bench.optimizer.zero_grad()
            return loss

        return step

    check(make, mode, steps=24)


SCHEDULERS = {
    "step_lr_acts_late": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 6, 0.5),
    "lambda_lr_each_step": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 / (1 + i)),
    "one_cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=60),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20),
}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adamw_fused"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_learning_rate_schedulers(mode, scheduler, optimizer):
    """A learning rate is never baked in, also when it first moves after tracing."""

    def make(bench):
        schedule = SCHEDULERS[scheduler](bench.optimizer)

        def step(i):
            loss = bench.train()
            schedule.step()
            bench.log.append(schedule.get_last_lr()[0])
            return loss

        return step

    check(make, mode, optimizer=optimizer, steps=20)


def test_plateau_scheduler_reads_the_loss(mode):
    """The schedule depends on fetched values."""

    def make(bench):
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(bench.optimizer, patience=1)

        def step(i):
            loss = bench.train()
            schedule.step(loss.item())
            return loss

        return step

    check(make, mode, steps=20)


@pytest.mark.parametrize("log", [True, False])
def test_clip_grad_norm(mode, log):
    """Clipping by the global norm, whose value is read or not."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            loss = bench.loss()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(bench.net.parameters(), 0.1)
            if log:
                bench.log.append(norm.item())
            bench.optimizer.step()
            return loss

        return step

    check(make, mode)


def test_clip_grad_value_and_python_branch(mode):
    """Python decides by a fetched value whether the update happens."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            loss = bench.loss()
            loss.backward()
            torch.nn.utils.clip_grad_value_(bench.net.parameters(), 0.05)
            if loss.item() > 1.0:
                bench.optimizer.step()
            return loss

        return step

    check(make, mode, steps=24)


def test_exponential_moving_average(mode):
    """A second set of weights follows the first."""

    def make(bench):
        average = [parameter.detach().clone() for parameter in bench.net.parameters()]
        bench.extra |= {f"average.{k}": tensor for k, tensor in enumerate(average)}
        swa = torch.optim.swa_utils.AveragedModel(bench.net)
        bench.models["swa"] = swa

        def step(i):
            loss = bench.train()
            with torch.no_grad():
                for mean, parameter in zip(average, bench.net.parameters(), strict=True):
                    mean.mul_(0.9).add_(parameter, alpha=0.1)
            swa.update_parameters(bench.net)
            return loss

        return step

    check(make, mode)


def test_grad_scaler(mode):
    """torch's own GradScaler: one fetch and one branch a step, now and then an overflow."""

    def make(bench):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)

        def step(i):
            bench.optimizer.zero_grad()
            loss = bench.loss()
            if i == ODD_STEP:
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            scaler.step(bench.optimizer)
            scaler.update()
            bench.log.append(scaler.get_scale())
            return loss

        return step

    check(make, mode, optimizer="sgd", steps=20)


@pytest.mark.parametrize("always", [True, False], ids=["each_step", "late"])
def test_autocast(mode, always):
    """bf16 autocast around the forward pass, weight cache included."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=always or i >= ODD_STEP):
                loss = bench.loss() + bench.loss()
            loss.backward()
            bench.optimizer.step()
            return loss

        return step

    check(make, mode)


class SparseNet(nn.Module):
    """A sparse-gradient embedding of bucketed features."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 3, sparse=True)

    def forward(self, features):
        """features [n, 6] -> logits [n, 3]."""
        return self.table((features.abs() * 7).long().clamp(max=19)).mean(1)


def test_sparse_gradients(mode):
    """SparseAdam on sparse gradients."""

    def make(bench):
        bench.optimizer = torch.optim.SparseAdam(bench.net.parameters(), lr=0.01)
        bench.optimizers = {"net": bench.optimizer}
        return lambda i: bench.train()

    check(make, mode, net=SparseNet)


class Recurrent(nn.Module):
    """LSTM or GRU over each feature as a time step."""

    def __init__(self, kind):
        super().__init__()
        self.cell = kind(1, 8, num_layers=2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, features):
        """features [n, 6] -> logits [n, 3]."""
        return self.head(self.cell(features.unsqueeze(2))[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks(mode, kind):
    """Recurrent layers: many views, one composite operator."""
    check(lambda bench: lambda i: bench.train(), mode, net=functools.partial(Recurrent, kind))


def test_packed_sequences(mode):
    """Lengths are data, read by Python each step."""

    def make(bench):
        def step(i):
            bench.optimizer.zero_grad()
            features, labels = bench.batch()
            lengths = torch.randint(1, 7, (5,))
            packed = nn.utils.rnn.pack_padded_sequence(
                features.unsqueeze(2), lengths, batch_first=True, enforce_sorted=False
            )
            output, _ = bench.net.cell(packed)
            padded, _ = nn.utils.rnn.pad_packed_sequence(output, batch_first=True)
            loss = F.cross_entropy(bench.net.head(padded.sum(1)), labels)
            loss.backward()
            bench.optimizer.step()
            return loss

        return step

    check(make, mode, net=functools.partial(Recurrent, nn.GRU), steps=24)


def test_multihead_attention_and_transformer_layer(mode):
    """torch's own transformer layer, training and evaluation fast path."""

    def make(bench):
        layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.1, batch_first=True)
        bench.models["layer"] = layer
        optimizer = make_optimizer("adamw", layer.parameters())

        def step(i):
            features, _ = bench.batch()
            optimizer.zero_grad()
            loss = layer(features.unsqueeze(0)).square().mean()
            loss.backward()
            optimizer.step()
            layer.eval()
            with torch.no_grad():
                bench.log.append(layer(features.unsqueeze(0)).sum().item())
            layer.train()
            return loss

        return step

    check(make, mode)


def test_lbfgs_closure(mode):
    """An optimizer that calls back into the step, as often as it likes."""

    def make(bench):
        optimizer = torch.optim.LBFGS(bench.net.parameters(), lr=0.1, max_iter=4)

        def step(i):
            features, labels = bench.batch()

            def closure():
                optimizer.zero_grad()
                loss = F.cross_entropy(bench.net(features), labels)
                loss.backward()
                return loss

            return optimizer.step(closure)

        return step

    check(make, mode)


class DigitRows(torch.utils.data.Dataset):
    """The digits as a dataset for worker processes."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return 192

    def __getitem__(self, index):
        return torch.from_numpy(self.images[index].copy()), int(self.labels[index])


def train_with_loader(wrap, checkpoint_path, workers=2):
    """Two epochs with worker processes, a checkpoint between them and a resume from it."""
    dataset = DigitRows(*digits.load())
    seed_everything(0)
    log = []
    for epoch in range(2):
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 10))
        optimizer = make_optimizer("adamw", net.parameters())
        if epoch:
            saved = torch.load(checkpoint_path)
            net.load_state_dict(saved["net"])
            optimizer.load_state_dict(saved["optimizer"])

        def step(images, labels, net=net, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            return loss

        step = wrap(step)
        loader = torch.utils.data.DataLoader(dataset, batch_size=16, shuffle=True, num_workers=workers)
        for count, (images, labels) in enumerate(loader):
            loss = step(images, labels)
            if count % 4 == 0:
                log.append(loss.item())
        torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint_path)
    return equality.Outcome(log, fingerprint({"net": net}, {"net": optimizer}, log, {}))


def test_data_loader_workers_and_resume(mode, tmp_path):
    """Worker processes are forked between steps; training goes on from a checkpoint."""
    import outrider

    eager = train_with_loader(lambda step: step, tmp_path / "eager.pt")
    with equality.fresh_core(**MODES[mode]):
        twin = train_with_loader(outrider.coexec, tmp_path / "coexec.pt")
    equality.assert_equal(eager, twin)
