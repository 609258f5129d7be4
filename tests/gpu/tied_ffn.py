"""The CUDA form of the channel-record FFN, built with nvcc and called through ctypes; its checks, without pytest."""

import ctypes
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
HANG_SECONDS = 20


class LayerStruct(ctypes.Structure):
    """outrider::kernels::cuda::Layer."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("records", "signatures", "lists", "list_at")),
        *((name, ctypes.c_int) for name in ("channels", "width", "experts", "active_max")),
    )


@functools.cache
def library():
    """Compiles the kernels for sm_90a and loads them."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tied_ffn_"))
    units = [*sorted((ROOT / "src/kernels/cuda").glob("*.cu")), ROOT / "tests/gpu/tied_ffn_driver.cu"]
    options = [
        "-std=c++20",
        "-O3",
        "-gencode",
        "arch=compute_90a,code=sm_90a",
        f"-I{ROOT / 'src'}",
        "-Xcompiler",
        "-fPIC",
    ]
    jobs = [subprocess.Popen([nvcc, *options, "-c", unit, "-o", folder / f"{unit.stem}.o"]) for unit in units]
    ends = [job.wait() for job in jobs]
    if any(ends):
        raise RuntimeError("nvcc failed")
    target = folder / "libtied_ffn.so"
    subprocess.run([nvcc, "-shared", "-o", target, *(folder / f"{unit.stem}.o" for unit in units)], check=True)
    loaded = ctypes.CDLL(str(target))
    for name in ("tied_prefill_bytes", "tied_decode_bytes"):
        getattr(loaded, name).restype = ctypes.c_int64
    return loaded


def settle(what):
    """Waits for the device; a kernel that does not end would hold the machine, so the process ends instead."""
    event = torch.cuda.Event()
    event.record()
    deadline = time.monotonic() + HANG_SECONDS
    while not event.query():
        if time.monotonic() > deadline:
            print(f"{what}: no end after {HANG_SECONDS} s", flush=True)
            os._exit(3)
        time.sleep(1e-4)


def _pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


def _checked(status):
    if status != 0:
        raise RuntimeError(f"CUDA error {status}")


class Layer:
    """Random weights as records. `signatures` int64 [D] on the CPU, bit i set when the channel is in expert i."""

    def __init__(self, width, signatures, experts, seed=0):
        generator = torch.Generator("cuda").manual_seed(seed)
        self.width, self.channels, self.experts = width, len(signatures), experts
        shape = (self.channels, 3, width)
        self.records = torch.randn(shape, generator=generator, device="cuda") / width**0.5
        self.records[:, 0] *= 2
        self.records = self.records.bfloat16()
        lists = [(signatures >> e & 1).nonzero().flatten() for e in range(experts)]
        sizes = torch.tensor([0, *(len(channels) for channels in lists)])
        self.mask = torch.stack([(signatures >> e & 1) for e in range(experts)]).cuda()
        self.lists = lists
        self._signatures = signatures.to(torch.int32).to(torch.uint16).cuda()
        self._flat = torch.cat(lists).int().cuda()
        self._at = sizes.cumsum(0).int().cuda()
        self.struct = LayerStruct(
            self.records.data_ptr(), self._signatures.data_ptr(), self._flat.data_ptr(), self._at.data_ptr(),
            self.channels, width, experts, int(sizes.max()),
        )  # fmt: skip
        self.on_stream(torch.cuda.current_stream())
        self._processors = torch.cuda.get_device_properties(0).multi_processor_count

    def on_stream(self, stream):
        """Later calls launch there."""
        self._stream = ctypes.c_void_p(stream.cuda_stream)

    def plan(self, ids):
        """Sorts tokens by expert: (order [T], where each expert's begin [N + 1])."""
        order = torch.empty(max(1, len(ids)), dtype=torch.int32, device="cuda")
        at = torch.empty(self.experts + 1, dtype=torch.int32, device="cuda")
        arguments = (_pointer(ids), len(ids), self.experts, _pointer(order), _pointer(at), self._stream)
        _checked(library().tied_plan(*arguments))
        return order, at

    def prefill_scratch(self, tokens):
        size = library().tied_prefill_bytes(ctypes.byref(self.struct), tokens)
        return torch.empty(max(1, size // 2), dtype=torch.bfloat16, device="cuda")

    def prefill(self, x, plan, scratch, y):
        _checked(
            library().tied_prefill(
                ctypes.byref(self.struct), _pointer(plan[0]), _pointer(plan[1]), _pointer(x), _pointer(y), len(x),
                _pointer(scratch), self._processors, self._stream,
            )
        )  # fmt: skip

    def decode_scratch(self, tokens):
        size = library().tied_decode_bytes(ctypes.byref(self.struct), tokens)
        return torch.empty(size, dtype=torch.uint8, device="cuda")

    def decode(self, x, ids, scratch, y):
        arguments = (_pointer(ids), _pointer(x), _pointer(y), len(x), _pointer(scratch), self._stream)
        _checked(library().tied_decode(ctypes.byref(self.struct), *arguments))


def random_signatures(channels, experts, active, seed=0, common=0.0, ordered=True):
    """Each expert has `active` channels, `ordered` by signature; `common` in [0, 1] makes experts alike."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(channels, generator=generator)
    signatures = torch.zeros(channels, dtype=torch.int64)
    for e in range(experts):
        score = common**0.5 * shared + (1 - common) ** 0.5 * torch.randn(channels, generator=generator)
        signatures[score.topk(active).indices] |= 1 << e
    return signatures.sort().values if ordered else signatures


def expected(layer, x, ids, number=torch.float64):
    """(h, y, bound): the masked dense FFN, hidden numbers unrounded, and how far rounding may move each number of y."""
    gate, up, down = layer.records.to(number).unbind(1)
    values, mask = x.to(number), layer.mask[ids.long()].to(number)
    g, u = values @ gate.T, values @ up.T
    h = torch.nn.functional.silu(g) * u * mask
    y = h @ down
    sizes = (values.abs() @ gate.abs().T) * (values.abs() @ up.abs().T) * mask
    bound = (h.abs() @ down.abs() + y.abs()) / 240 + 5e-7 * (sizes @ down.abs())
    return h, y, bound


def _say_where(what, actual, wanted, bound):
    wrong = (actual.double() - wanted.double()).abs() > bound.double()
    wrong |= ~actual.isfinite()
    if not wrong.any():
        return True
    places = wrong.nonzero()
    print(f"  {what}: {len(places)} of {wrong.numel()} numbers wrong; rows {places[:, 0].unique().tolist()[:12]}")
    print(f"    columns {places[:, 1].unique().tolist()[:24]}")
    for row, column in places[:6].tolist():
        print(f"    [{row}, {column}] {actual[row, column].item():.6g}, expected {wanted[row, column].item():.6g}")
    return False


def _hidden_agrees(layer, ids, plan, scratch, h):
    """The first product alone, which the scratch begins with."""
    if len(ids) == 0:
        return True
    order = plan[0].long()
    width = max(1, (max(map(len, layer.lists)) + 127) // 128) * 128
    rows = scratch[: len(ids) * width].view(len(ids), width)
    wanted = torch.zeros_like(rows, dtype=torch.float64)
    for e, channels in enumerate(layer.lists):
        mine = ids[order] == e
        wanted[mine, : len(channels)] = h[order[mine]][:, channels.cuda()].double()
        rows[mine, (len(channels) + 127) // 128 * 128 :] = 0  # past the last tile: never read
    return _say_where("hidden", rows, wanted, wanted.abs() / 200 + 1e-4)


def check_shape(width, channels, experts, active, tokens, ids=None, ordered=True, seed=1):
    """One random layer through prefill, and through decode when the step is small enough."""
    name = f"d {width}, D {channels}, N {experts}, k {active}, tokens {tokens}{'' if ordered else ', not ordered'}"
    layer = Layer(width, random_signatures(channels, experts, active, seed, ordered=ordered), experts, seed)
    generator = torch.Generator("cuda").manual_seed(seed + 1)
    x = torch.randn(tokens, width, generator=generator, device="cuda").bfloat16()
    if ids is None:
        ids = torch.randint(0, experts, (tokens,), generator=generator, device="cuda")
    ids = ids.to(device="cuda", dtype=torch.uint8)
    h, wanted, bound = expected(layer, x, ids)
    plan, y = layer.plan(ids), torch.full_like(x, float("nan"))
    scratch = layer.prefill_scratch(tokens).fill_(float("nan"))
    layer.prefill(x, plan, scratch, y)
    settle(f"prefill, {name}")
    order = torch.sort(ids.long(), stable=True).indices
    good = torch.equal(plan[0][:tokens].long(), order)
    if not good:
        print("  plan: the order is not a stable sort")
    good &= _say_where("prefill", y, wanted, bound)
    good &= _hidden_agrees(layer, ids, plan, scratch, h)
    if tokens <= 32:
        y = torch.full_like(x, float("nan"))
        layer.decode(x, ids, layer.decode_scratch(tokens), y)
        settle(f"decode, {name}")
        good &= _say_where("decode", y, wanted, bound)
    print(f"{'ok  ' if good else 'WRONG'} {name}", flush=True)
    return good


def check_independence(width=512, channels=700, experts=5, active=333, tokens=1300, seed=3):
    """Bits of tokens alone, in other batches and in another order are those of the whole batch."""
    layer = Layer(width, random_signatures(channels, experts, active, seed), experts, seed)
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(tokens, width, generator=generator, device="cuda").bfloat16()
    ids = torch.randint(0, experts, (tokens,), generator=generator, device="cuda").to(torch.uint8)

    def prefill(rows):
        y = torch.full_like(x[rows], float("nan"))
        plan = layer.plan(ids[rows].contiguous())
        layer.prefill(x[rows].contiguous(), plan, layer.prefill_scratch(len(rows)), y)
        settle("independence, prefill")
        return y

    def decode(rows):
        y = torch.full_like(x[rows], float("nan"))
        layer.decode(x[rows].contiguous(), ids[rows].contiguous(), layer.decode_scratch(len(rows)), y)
        settle("independence, decode")
        return y

    everything = torch.arange(tokens, device="cuda")
    whole = prefill(everything)
    subsets = [everything[::step][:count] for step, count in ((1, 1), (7, 9), (3, 64), (1, 65), (2, 150), (1, 1299))]
    subsets += [everything.flip(0), torch.randperm(tokens, generator=generator, device="cuda")]
    good = all(torch.equal(prefill(rows), whole[rows]) for rows in subsets)
    alone = torch.cat([decode(everything[t : t + 1]) for t in range(32)])
    for count in (2, 8, 9, 16, 17, 31, 32):
        good &= torch.equal(decode(everything[:count]), alone[:count])
        good &= torch.equal(decode(everything[:count].flip(0)).flip(0), alone[:count])
    print(f"{'ok  ' if good else 'WRONG'} bits do not depend on other tokens")
    return good


def checks():
    """Name -> function that returns whether all is right; small and telling ones first."""
    one_expert = torch.zeros(130)
    skewed = torch.tensor([0] * 200 + [3] * 65 + [4] * 64 + [6])
    cases = [
        (256, 128, 1, 128, 128, None, True),
        (256, 128, 1, 128, 64, None, True),
        (256, 100, 1, 77, 1, None, False),
        (256, 70, 2, 1, 5, None, True),
        (512, 333, 3, 200, 130, one_expert, False),
        (768, 1111, 8, 555, 330, skewed, True),
        (768, 1111, 8, 555, 270, None, False),
        (1024, 640, 16, 64, 257, None, True),
        (4096, 1376, 8, 688, 600, None, True),
        (576, 333, 4, 170, 200, None, False),
        (64, 200, 3, 100, 70, None, True),
        (256, 129, 7, 65, 32, None, False),
        (512, 1000, 8, 500, 17, None, True),
        (256, 2000, 2, 1000, 1500, None, True),
        (4096, 11008, 8, 5504, 9, None, True),
        (4096, 11008, 8, 5504, 1100, None, False),
    ]
    named = {
        "shape {}: {}".format(i, "-".join(map(str, case[:5]))): functools.partial(
            check_shape, *case[:5], ids=case[5], ordered=case[6]
        )
        for i, case in enumerate(cases)
    }
    named["no tokens"] = functools.partial(check_shape, 256, 128, 2, 64, 0)
    named["independence"] = check_independence
    return named


def run_checks():
    """All checks, also behind one that fails; True when every one is right."""
    results = [check() for check in checks().values()]
    return all(results)


if __name__ == "__main__":
    sys.exit(0 if run_checks() else 1)
