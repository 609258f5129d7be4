"""What is particular to a device: captured ranges, buffers that launches overwrite, streams, copies across.

Each case is a small training program; its twin runs co-executed, at the end captured, and must equal it bit for bit.
"""

import gc

import equality
import pytest
import torch
import torch.nn.functional as F
from coexec.program import Program, make_optimizer
from torch import nn

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

STEPS = 30
WIDTH = 32


class Net(nn.Module):
    """Two linear layers with dropout and BatchNorm between them."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x):
        """[batch, WIDTH] -> [batch, 4]"""
        return self.second(F.dropout(F.relu(self.norm(self.first(x))), 0.3, self.training))


class Case(Program):
    """A training program whose step is `body(case, i)`."""

    def __init__(self, body, optimizer):
        super().__init__(0)
        self.net = Net().to("cuda")
        self.optimizer = make_optimizer(optimizer, self.net.parameters())
        self.models, self.optimizers = {"net": self.net}, {"net": self.optimizer}
        self.data = torch.randn(64, 8, WIDTH)
        self.on_device = self.data.to("cuda")
        self.labels = torch.randint(0, 4, (64, 8)).to("cuda")
        self.kept = []
        self.body = body

    def loss(self, x, i):
        """Cross-entropy of a batch."""
        return F.cross_entropy(self.net(x), self.labels[i % 64])

    def update(self, loss):
        """Backward and optimizer step."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def step(self, i):
        """Runs the body."""
        return self.body(self, i)

    def extras(self):
        """Values the case kept, the CUDA generator's state among them."""
        kept = {f"kept{k}": value.detach().cpu() for k, value in enumerate(self.kept)}
        return kept | {"cuda_rng": torch.cuda.get_rng_state()}


def plain(case, i):
    """A new batch from the host in each step."""
    loss = case.loss(case.data[i % 64].to("cuda"), i)
    case.update(loss)
    return loss


def resident_data(case, i):
    """Another place of a tensor on the device in each step."""
    loss = case.loss(case.on_device[i % 64], i)
    case.update(loss)
    return loss


def keeps_every_loss(case, i):
    """Losses and logits of all steps stay alive."""
    x = case.data[i % 64].to("cuda")
    logits = case.net(x)
    loss = F.cross_entropy(logits, case.labels[i % 64])
    case.update(loss)
    case.kept += [loss, logits]
    return loss


def keeps_some_logits(case, i):
    """What stays alive changes from step to step."""
    logits = case.net(case.data[i % 64].to("cuda"))
    if i % 7 == 3:
        case.kept.append(logits)
    loss = F.cross_entropy(logits, case.labels[i % 64])
    case.update(loss)
    return loss


def reads_in_the_middle(case, i):
    """The loss is read between forward and backward, and changed in place afterwards."""
    loss = case.loss(case.data[i % 64].to("cuda"), i)
    case.log.append(loss.item())
    case.update(loss)
    with torch.no_grad():
        loss.mul_(2)
    return loss


def copies_to_the_host(case, i):
    """`.cpu()` and `.numpy()` inside the step."""
    loss = case.loss(case.data[i % 64].to("cuda"), i)
    case.log.append(float(loss.detach().cpu().numpy()))
    case.update(loss)
    return loss


def accumulates(case, i):
    """Gradients of two batches per update."""
    loss = case.loss(case.data[i % 64].to("cuda"), i)
    loss.backward()
    if i % 2:
        case.optimizer.step()
        case.optimizer.zero_grad()
    return loss


def zeroes_in_place(case, i):
    """`set_to_none=False`."""
    case.optimizer.zero_grad(set_to_none=False)
    loss = case.loss(case.data[i % 64].to("cuda"), i)
    loss.backward()
    case.optimizer.step()
    return loss


def schedules(case, i):
    """The learning rate changes in every step, by a factor of the loss, too."""
    for group in case.optimizer.param_groups:
        group["lr"] = 1e-3 / (1 + i)
    loss = case.loss(case.data[i % 64].to("cuda"), i) * (1 + 0.1 * i)
    case.update(loss)
    return loss


def clips(case, i):
    """Clipping and a norm that Python reads now and then."""
    case.optimizer.zero_grad()
    loss = case.loss(case.data[i % 64].to("cuda"), i)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(case.net.parameters(), 0.5)
    if i % 5 == 0:
        case.log.append(norm.item())
    case.optimizer.step()
    return loss


def autocast(case, i):
    """bfloat16 regions."""
    with torch.autocast("cuda", torch.bfloat16):
        loss = case.loss(case.data[i % 64].to("cuda"), i)
    case.update(loss)
    return loss


def grad_scaler(case, i):
    """A gradient scaler: one fetch and one branch per step."""
    if not hasattr(case, "scaler"):
        case.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**14, growth_interval=5)
    with torch.autocast("cuda", torch.float16):
        loss = case.loss(case.data[i % 64].to("cuda"), i)
    case.optimizer.zero_grad()
    case.scaler.scale(loss).backward()
    case.scaler.step(case.optimizer)
    case.scaler.update()
    return loss


def static_input(case, i):
    """A batch is copied into a tensor that lives on."""
    if not hasattr(case, "input"):
        case.input = torch.zeros(8, WIDTH, device="cuda")
    case.input.copy_(case.data[i % 64])
    loss = case.loss(case.input, i)
    case.update(loss)
    return loss


def side_stream(case, i):
    """Preparation of the next batch on a stream of its own."""
    if not hasattr(case, "stream"):
        case.stream = torch.cuda.Stream()
    with torch.cuda.stream(case.stream):
        x = case.data[i % 64].pin_memory().to("cuda", non_blocking=True) * 2
    torch.cuda.current_stream().wait_stream(case.stream)
    x.record_stream(torch.cuda.current_stream())
    loss = case.loss(x, i)
    case.update(loss)
    return loss


def data_dependent(case, i):
    """An operator whose output shape depends on values."""
    logits = case.net(case.data[i % 64].to("cuda"))
    chosen = (logits.detach().sum(1) > 0).nonzero().flatten()
    loss = F.cross_entropy(logits, case.labels[i % 64]) + 0 * chosen.numel()
    case.log.append(chosen.numel())
    case.update(loss)
    return loss


def feeds_back(case, i):
    """A result of one step is an input of the next."""
    state = case.kept[-1] if case.kept else torch.zeros(8, WIDTH, device="cuda")
    x = case.data[i % 64].to("cuda") + 0.1 * state
    loss = case.loss(x, i)
    case.update(loss)
    case.kept = [torch.tanh(x).detach()]
    return loss


def raises_once(case, i):
    """An operator error in a covered step."""
    x = case.data[i % 64].to("cuda")
    if i == 20:
        x = x[:, :-1]
    loss = case.loss(x, i)
    case.update(loss)
    return loss


def own_generator(case, i):
    """Noise of a generator that belongs to the program."""
    if not hasattr(case, "generator"):
        case.generator = torch.Generator("cuda").manual_seed(3)
    noise = torch.randn(8, WIDTH, device="cuda", generator=case.generator)
    loss = case.loss(case.data[i % 64].to("cuda") + 0.01 * noise, i)
    case.update(loss)
    case.kept = [noise]
    return loss


def reads_a_parameter(case, i):
    """Raw access to a parameter with pending writes, and a write past the dispatcher."""
    loss = case.loss(case.data[i % 64].to("cuda"), i)
    case.update(loss)
    if i % 6 == 5:
        case.log.append(case.net.second.bias.tolist())
        with torch.no_grad():
            case.net.second.bias.data.copy_(torch.full((4,), 0.25))
    return loss


CASES = [
    plain, resident_data, keeps_every_loss, keeps_some_logits, reads_in_the_middle, copies_to_the_host, accumulates,
    zeroes_in_place, schedules, clips, autocast, grad_scaler, static_input, side_stream, data_dependent, feeds_back,
    raises_once, own_generator, reads_a_parameter,
]  # fmt: skip
CAPTURED = [plain, resident_data, keeps_every_loss, accumulates, zeroes_in_place, schedules, autocast, feeds_back]


@pytest.mark.parametrize("lane", ["inner", "auto"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adamw_fused"])
@pytest.mark.parametrize("body", CASES, ids=lambda body: body.__name__)
def test_equal(body, optimizer, lane):
    """Every bit: losses, parameters, gradients, optimizer state, versions, generators, what was kept."""
    build = lambda: Case(body, optimizer)  # noqa: E731
    eager = equality.run_eager(build, STEPS, resume=True)
    equality.assert_equal(eager, equality.run_coexec(build, STEPS, resume=True, lane=lane))


@pytest.mark.parametrize("body", CAPTURED, ids=lambda body: body.__name__)
def test_captured(body):
    """Ordinary steps do run as device graphs."""
    twin = equality.run_coexec(lambda: Case(body, "adamw"), STEPS)
    tiers = [row["tier"] for row in twin.rows[16:]]
    assert tiers.count("T2") >= len(tiers) // 2, (tiers, equality.why_not(twin.rows))


def test_divergence_returns_random_numbers():
    """A part launched before the end of the step, with dropout in it, is taken back with its random numbers."""
    build = lambda: Case(reads_in_the_middle, "sgd")  # noqa: E731
    eager = equality.run_eager(build, 24)
    for event in range(4, 60, 3):
        equality.assert_equal(eager, equality.run_coexec(build, 24, force_divergence=(20, event)))


def test_memory_of_a_long_run():
    """Buffers do not pile up: a hundred steps more need no more memory than their hundred losses, which are kept."""

    def peak(steps):
        gc.collect()  # what the run before left in cycles is not of this one
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        equality.run_coexec(lambda: Case(plain, "adamw"), steps)
        return torch.cuda.max_memory_allocated() - before

    peak(30)  # workspaces of libraries
    short, long = peak(30), peak(130)
    assert long <= short + 100 * 1024, (short, long)
