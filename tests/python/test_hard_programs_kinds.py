"""Programs with kinds of tensors and tools of torch that a plan seldom meets."""

import pytest
import torch
import torch.nn.functional as F
from scenarios import check, finish, registers
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, TensorDataset

pytestmark = pytest.mark.timeout(120)

PROGRAMS = {}
program = registers(PROGRAMS)


@program
def transforms_of_torch_func(bench):
    """vmap over grad, jacrev, hessian and functional_call beside an ordinary backward pass."""

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        weights = {name: p.detach() for name, p in bench.net[0].named_parameters()}

        def energy(params, x):
            return torch.func.functional_call(bench.net[0], params, (x,)).square().mean()

        each = torch.func.vmap(torch.func.grad(energy), in_dims=(None, 0))(weights, features)
        jacobian = torch.func.jacrev(lambda x: bench.net[0](x).sin())(features[0])
        hessian = torch.func.hessian(lambda x: x.pow(3).sum())(features[1].detach())
        extra = each["weight"].mean(0).sum().detach() + jacobian.sum().detach() + hessian.trace()
        bench.log.append(extra.item())
        return finish(bench, F.cross_entropy(bench.net(features), labels) + 0.01 * extra)

    return step


@program
def double_backward(bench):
    """A gradient penalty every second step."""

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        features.requires_grad_(i % 2 == 1)
        loss = F.cross_entropy(bench.net(features), labels)
        if i % 2:
            (grad,) = torch.autograd.grad(loss, features, create_graph=True)
            loss = loss + grad.square().sum()
        return finish(bench, loss)

    return step


@program
def complex_and_integer_tensors(bench):
    """Fourier transforms, complex weights, conjugate and negative bits, real and imaginary views."""
    spectrum = nn.Parameter(torch.randn(4, dtype=torch.complex64))
    bench.extra["spectrum"] = spectrum

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        transformed = torch.fft.rfft(features) * spectrum.conj()
        back = torch.fft.irfft(transformed, n=6)
        imaginary = transformed.conj().imag
        bits = (labels << 2) ^ torch.arange(5) & 3
        loss = F.cross_entropy(bench.net(back) + 0.1 * imaginary.mean(), labels) + 0.001 * bits.float().mean()
        loss.backward()
        with torch.no_grad():
            spectrum.sub_(spectrum.grad, alpha=0.05)
            torch.view_as_real(spectrum)[0, 1] += 0.01
        spectrum.grad = None
        bench.optimizer.step()
        return loss

    return step


@program
def sparse_tensors(bench):
    """An embedding with sparse gradients, COO products and coalescing."""
    table = nn.EmbeddingBag(7, 6, mode="sum", sparse=True)
    descent = torch.optim.SGD(table.parameters(), lr=0.1)
    bench.models["table"] = table

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        descent.zero_grad()
        where = torch.stack([labels, torch.arange(5)])
        matrix = torch.sparse_coo_tensor(where, features[:, 0], (3, 5)).coalesce()
        mixed = torch.sparse.mm(matrix, features)
        x = features + table(labels[:, None]) + mixed[labels]
        loss = finish(bench, F.cross_entropy(bench.net(x), labels))
        descent.step()
        return loss

    return step


@program
def quantised_and_half_tensors(bench):
    """Fake quantisation, quantised tensors, float8 and bfloat16 round trips."""

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        hidden = bench.net[0](features)
        hidden = torch.fake_quantize_per_tensor_affine(hidden, 0.05, 0, -128, 127)
        coarse = torch.quantize_per_tensor(features, 0.1, 3, torch.quint8)
        small = features.to(torch.float8_e4m3fn).to(torch.float32)
        bench.log.append(int(coarse.int_repr().sum()))
        shift = coarse.dequantize().mean() + small.mean() + features.bfloat16().sum().float()
        return finish(bench, F.cross_entropy(bench.net[1:](hidden + 0.01 * shift), labels))

    return step


class Tagged(torch.Tensor):
    """A subclass without data of its own; it counts the functions that it passes."""

    calls = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.calls += 1
        return super().__torch_function__(func, types, args, kwargs or {})


class CountsFunctions(TorchFunctionMode):
    """Doubles every tanh."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result * 2 if func in (torch.tanh, torch.Tensor.tanh) else result


@program
def subclasses_and_function_modes(bench):
    """A tensor subclass as input each second step, and a mode that changes what functions return."""

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        if i % 2:
            features = features.as_subclass(Tagged)
        hidden = bench.net[0](features)
        if i % 3 == 0:
            with CountsFunctions():
                hidden = torch.tanh(hidden)
        loss = F.cross_entropy(bench.net[1:](hidden), labels).as_subclass(torch.Tensor)
        bench.log.append(type(hidden).__name__)
        return finish(bench, loss)

    return step


@program
def optimizers_of_all_kinds(bench):
    """foreach, fused, capturable off, maximize and amsgrad, in turn on the same parameters."""
    parameters = list(bench.net.parameters())
    others = [
        torch.optim.Adam(parameters, lr=1e-3, fused=True),
        torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, nesterov=True, foreach=True),
        torch.optim.RMSprop(parameters, lr=1e-3, centered=True, foreach=False),
        torch.optim.AdamW(parameters, lr=1e-3, amsgrad=True, maximize=True, foreach=True),
        torch.optim.Adagrad(parameters, lr=1e-3, fused=True),
    ]
    for k, optimizer in enumerate(others):
        bench.optimizers[f"other{k}"] = optimizer

    def step(i):
        optimizer = others[(i // 3) % len(others)]
        optimizer.zero_grad(set_to_none=i % 2 == 0)
        loss = bench.loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5, foreach=i % 2 == 0)
        optimizer.step()
        return loss

    return step


@program
def scaler_and_autocast(bench):
    """GradScaler on the CPU, with overflow every fourth step, under autocast."""
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = bench.net(features)
            loss = F.cross_entropy(scores.float(), labels)
        if i % 4 == 3:
            loss = loss * float("inf")
        scaler.scale(loss).backward()
        scaler.unscale_(bench.optimizer)
        scaler.step(bench.optimizer)
        scaler.update()
        bench.log.append(scaler.get_scale())
        return loss.detach().nan_to_num()

    return step


@program
def loader_with_workers(bench):
    """Batches from two worker processes, forked in mid-training."""
    data = TensorDataset(torch.randn(60, 6), torch.randint(0, 3, (60,)))
    batches = []

    def step(i):
        if not batches:
            own = torch.Generator().manual_seed(i)
            loader = DataLoader(data, batch_size=5, num_workers=2, generator=own, shuffle=True)
            batches.extend(list(loader)[:6])
        features, labels = batches.pop()
        bench.optimizer.zero_grad()
        return finish(bench, F.cross_entropy(bench.net(features), labels))

    return step


@program
def nested_and_strange_layouts(bench):
    """Expanded, flipped, channels-last and zero-sized tensors, and a scalar tensor made a parameter's factor."""
    factor = nn.Parameter(torch.tensor(1.5))
    convolution = nn.Conv2d(3, 2, 2)
    bench.models["convolution"] = convolution
    bench.extra["factor"] = factor

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        image = features.expand(3, 5, 6)[None].to(memory_format=torch.channels_last)
        maps = convolution(image.flip(3)).mean((2, 3))
        empty = features[:0].sum(0) + torch.cat([features[:, :0], features[:, :0]]).sum()
        padded = F.pad(features, (1, -1)).roll(i % 3, 1) + empty
        loss = F.cross_entropy(bench.net(padded) * factor + maps.sum(), labels)
        loss.backward()
        with torch.no_grad():
            for p in (factor, *convolution.parameters()):
                p.add_(p.grad, alpha=-0.05)
                p.grad = None
        bench.optimizer.step()
        return loss

    return step


@program
def parametrised_and_shared_weights(bench):
    """Weight norm, a tied weight, a buffer that becomes shared memory, and parameters swapped and frozen in turn."""
    tied = nn.Linear(8, 6, bias=False)
    tied.weight = nn.Parameter(bench.net[0].weight.detach().t().clone())
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
    bench.models |= {"tied": tied, "normed": normed}
    descent = torch.optim.SGD([*tied.parameters(), *normed.parameters()], lr=0.05)

    def step(i):
        features, labels = bench.batch()
        bench.optimizer.zero_grad()
        descent.zero_grad()
        tied.weight.requires_grad_(i % 4 != 3)
        hidden = bench.net[0](normed(features))
        around = F.linear(hidden, tied.weight)
        if i == 6:
            tied.weight.share_memory_()
        loss = F.cross_entropy(bench.net[1:](hidden), labels) + (around - features).square().mean()
        loss.backward()
        descent.step()
        bench.optimizer.step()
        return loss

    return step


@pytest.mark.parametrize("mode", ["auto", "inner", "early"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_program(mode, name):
    check(PROGRAMS[name], mode)
