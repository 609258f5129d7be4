"""The PyTorch reference of a refactored model: router, hysteresis, masks, hooks, bad files."""

import hashlib
import json
import math

import numpy as np
import outrider.hf
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from outrider.refactor.artifact import RouterShape, load_artifact
from outrider.refactor.errors import InputError
from outrider.refactor.torch_router import TorchRouter, expected_shapes, route
from safetensors.torch import save_file

EXPERTS, LAYERS, CHANNELS, VOCAB, HIDDEN = 3, 2, 24, 50, 16


def _model(seed: int = 0):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=CHANNELS,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def _router_tensors(shape: RouterShape, seed: int = 1):
    """Weights of a size at which ids change from token to token."""
    torch.manual_seed(seed)
    tensors = {}
    for name, size in expected_shapes(shape, VOCAB, EXPERTS).items():
        noise = torch.randn(size)
        tensors[name] = 1 + noise / 8 if "norm" in name else noise / (8 if len(size) == 1 else math.sqrt(size[-1]))
    return tensors


def _write(folder, shape: RouterShape, tau: float = 0.0, **header):
    """An artifact with random masks of half the channels; returns the parent's masks [N, L, D] as booleans."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(2)
    masks = np.zeros((EXPERTS, LAYERS, CHANNELS), bool)
    for expert in range(EXPERTS):
        for layer in range(LAYERS):
            masks[expert, layer, random.permutation(CHANNELS)[: CHANNELS // 2]] = True
    perm = np.stack([random.permutation(CHANNELS) for _ in range(LAYERS)])
    parent = sum(masks[i].astype(np.int64) << i for i in range(EXPERTS))
    sig = np.take_along_axis(parent, perm, axis=1).astype(np.uint8)
    save_file(
        {"sig": torch.from_numpy(sig), "perm": torch.from_numpy(perm.astype(np.int32))},
        folder / "outrider_masks.safetensors",
    )
    save_file(_router_tensors(shape), folder / "outrider_router.safetensors")
    fields = {
        "width": shape.width,
        "heads": shape.heads,
        "scale": shape.scale,
        "embed": shape.embed,
        "attention": shape.attention,
    }
    text = json.dumps({"version": 1, "experts": EXPERTS, "tau": tau, "router": fields, **header})
    (folder / "outrider.json").write_text(text)
    return masks, perm


SHAPES = [
    RouterShape(width=16),
    RouterShape(width=16, scale="sqrt", embed="tied"),
    RouterShape(width=8, embed="tied", attention=False),
]


def test_the_published_router_has_17965063_parameters():
    sizes = expected_shapes(RouterShape(), 32_000, 7)
    assert sum(math.prod(size) for size in sizes.values()) == 17_965_063
    for width, count in ((512, 1_581_063), (256, 397_319), (128, 100_359)):
        own = expected_shapes(RouterShape(width=width, embed="tied"), 32_000, 7)
        assert sum(math.prod(size) for size in own.values()) == count


def _plain_router(shape: RouterShape, tensors, table, ids):
    """The same router written without batches, one position after another, in float64."""
    t = {name: value.double() for name, value in tensors.items()}
    width, heads = shape.width, shape.heads
    size = width // heads

    def norm(x, name):
        return x / torch.sqrt(torch.mean(x * x) + 1e-6) * t[f"{name}.weight"]

    def linear(x, name):
        return t[f"{name}.weight"] @ x + t[f"{name}.bias"]

    def rotate(x, position):
        out = x.clone()
        for i in range(size // 2):
            angle = position * 10_000.0 ** (-2 * i / size)
            a, b = x[i], x[i + size // 2]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + size // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    keys, values, logits = [], [], []
    for position, token in enumerate(ids.tolist()):
        x = (t["embed.weight"][token] if shape.embed == "own" else table[token, :width]).double()
        if shape.attention:
            inner = norm(x, "block.attn_norm")
            q, k, v = (linear(inner, f"block.{name}").view(heads, size) for name in "qkv")
            keys.append(torch.stack([rotate(head, position) for head in k]))
            values.append(v)
            out = []
            for head in range(heads):
                scores = torch.stack([rotate(q[head], position) @ key[head] for key in keys])
                scale = 1 if shape.scale == "none" else 1 / math.sqrt(size)
                out.append((scores * scale).softmax(0) @ torch.stack([value[head] for value in values]))
            x = x + linear(torch.cat(out), "block.o")
        inner = linear(norm(x, "block.mlp_norm"), "block.w1")
        x = x + linear(inner * torch.sigmoid(inner), "block.w2")
        logits.append(linear(norm(x, "norm"), "head"))
    return torch.stack(logits)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_router_is_what_its_description_says(shape):
    table = torch.randn(VOCAB, HIDDEN)
    tensors = _router_tensors(shape)
    ids = torch.randint(VOCAB, (2, 19))
    found = TorchRouter(shape, EXPERTS, tensors, table, "here").logits(ids)
    for row in range(2):
        expected = _plain_router(shape, tensors, table, ids[row])
        assert (found[row].double() - expected).abs().max() < 1e-4 * expected.abs().max()


def test_the_router_is_causal():
    shape = SHAPES[0]
    router = TorchRouter(shape, EXPERTS, _router_tensors(shape), torch.randn(VOCAB, HIDDEN), "here")
    ids = torch.randint(VOCAB, (1, 12))
    changed = ids.clone()
    changed[0, 7] = (changed[0, 7] + 1) % VOCAB
    before, after = router.logits(ids), router.logits(changed)
    assert torch.equal(before[0, :7], after[0, :7]) and not torch.equal(before[0, 7], after[0, 7])


@settings(max_examples=50, deadline=None)
@given(
    data=st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=1, max_size=30),
    tau=st.sampled_from([0.0, 0.25, 1.0, 1.5, 4.0]),
)
def test_hysteresis_switches_only_when_another_leads_by_tau(data, tau):
    expected: list[int] = []
    for row in data:
        best = row.index(max(row))
        if expected and tau > 0 and row[best] - row[expected[-1]] < tau:
            best = expected[-1]
        expected.append(best)
    assert route(torch.tensor([data], dtype=torch.float32), tau)[0].tolist() == expected


def _masked_reference(model, masks, ids, experts):
    """Logits of the model with masks folded into one position's weights at a time, by a dense forward per expert."""
    hidden = {}

    def record(layer):
        def hook(_, arguments):
            chosen = torch.from_numpy(masks[:, layer]).float()[experts[0]]
            hidden[layer] = arguments[0] * chosen
            return (hidden[layer],)

        return hook

    handles = [layer.mlp.down_proj.register_forward_pre_hook(record(i)) for i, layer in enumerate(model.model.layers)]
    try:
        return model(ids).logits
    finally:
        for handle in handles:
            handle.remove()


def test_each_token_runs_the_channels_of_its_expert(tmp_path):
    masks, _ = _write(tmp_path / "moe", SHAPES[0])
    model = _model()
    ids = torch.randint(VOCAB, (1, 15))
    dense = model(ids).logits
    routed = outrider.hf.apply(model, tmp_path / "moe", channels="parent")
    found = model(ids).logits
    experts = routed.ids
    assert torch.equal(experts, routed.experts_of(ids)) and len(experts.unique()) > 1
    routed.remove()
    assert torch.equal(model(ids).logits, dense)
    assert not torch.allclose(found, dense, atol=1e-3)
    assert torch.equal(found, _masked_reference(model, masks, ids, experts))


def test_a_masked_channel_has_no_influence(tmp_path):
    """With one expert for all tokens, zeroed columns of down_proj are the same function."""
    masks, _ = _write(tmp_path / "moe", SHAPES[2])
    model, pruned = _model(), _model()
    ids = torch.randint(VOCAB, (1, 1))
    routed = outrider.hf.apply(model, tmp_path / "moe", channels="parent")
    found = model(ids).logits
    expert = int(routed.ids[0, 0])
    with torch.no_grad():
        for index, layer in enumerate(pruned.model.layers):
            layer.mlp.down_proj.weight *= torch.from_numpy(masks[expert, index]).float()
    assert torch.allclose(found, pruned(ids).logits, rtol=1e-5, atol=1e-6)


def test_the_permuted_export_computes_the_same(tmp_path):
    _, perm = _write(tmp_path / "moe", SHAPES[1])
    parent, exported = _model(), _model()
    with torch.no_grad():
        for index, layer in enumerate(exported.model.layers):
            order = torch.from_numpy(perm[index])
            for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
                projection.weight.copy_(projection.weight[order])
            layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, order])
    ids = torch.randint(VOCAB, (2, 11))
    outrider.hf.apply(parent, tmp_path / "moe", channels="parent")
    outrider.hf.apply(exported, tmp_path / "moe")
    expected = parent(ids).logits
    assert (exported(ids).logits - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_decoding_with_a_cache_equals_the_whole_pass(tmp_path, tau):
    _write(tmp_path / "moe", SHAPES[0], tau)
    model = _model()
    routed = outrider.hf.apply(model, tmp_path / "moe")
    ids = torch.randint(1, VOCAB, (2, 6))
    out = model.generate(ids, max_new_tokens=12, do_sample=False, return_dict_in_generate=True, output_logits=True)
    whole = model(out.sequences[:, :-1]).logits[:, 5:]
    assert (torch.stack(out.logits, dim=1) - whole).abs().max() < 1e-4 * whole.abs().max()
    assert routed.ids.shape == (2, 17)


def test_left_padding_changes_nothing(tmp_path):
    _write(tmp_path / "moe", SHAPES[0], tau=0.5)
    model = _model()
    routed = outrider.hf.apply(model, tmp_path / "moe")
    ids = torch.randint(1, VOCAB, (1, 9))
    alone = model(ids).logits
    experts = routed.ids
    padded = torch.cat((torch.zeros(1, 4, dtype=torch.int64), ids), dim=1)
    mask = (torch.arange(13) >= 4).long()[None]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    found = model(padded, attention_mask=mask, position_ids=positions).logits[:, 4:]
    assert torch.equal(routed.ids[:, 4:], experts)
    assert (found - alone).abs().max() < 1e-4 * alone.abs().max()


@pytest.mark.parametrize("family", ["Qwen2", "Mistral"])
def test_other_families_are_masked_too(tmp_path, family):
    import transformers

    _write(tmp_path / "moe", SHAPES[0])
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        hidden_size=HIDDEN,
        intermediate_size=CHANNELS,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    ids = torch.randint(VOCAB, (1, 9))
    routed = outrider.hf.apply(model, tmp_path / "moe")
    seen = {}
    for layer, block in enumerate(model.model.layers):
        block.mlp.down_proj.register_forward_hook(lambda _, inputs, __, at=layer: seen.update({at: inputs[0]}))
    model(ids)
    masks = load_artifact(tmp_path / "moe").masks().bool()
    for layer in range(LAYERS):
        on = masks[:, layer][routed.ids]
        assert (seen[layer][~on] == 0).all() and (seen[layer][on] != 0).all()


def test_embeddings_instead_of_ids_and_a_second_router_are_refused(tmp_path):
    _write(tmp_path / "moe", SHAPES[0])
    model = _model()
    outrider.hf.apply(model, tmp_path / "moe")
    with pytest.raises(InputError, match=r"E_MODEL: outrider\.hf: input_ids: found none"):
        model(inputs_embeds=torch.zeros(1, 3, HIDDEN))
    with pytest.raises(InputError, match="found a router already"):
        outrider.hf.apply(model, tmp_path / "moe")


def _damage_masks(folder, **changes):
    tensors = {"sig": torch.zeros(LAYERS, CHANNELS, dtype=torch.uint8), **changes}
    save_file({name: t for name, t in tensors.items() if t is not None}, folder / "outrider_masks.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "outrider.json").unlink(), r"E_ARTIFACT: .*outrider\.json: header"),
        (lambda f: (f / "outrider.json").write_text('{"version": 2, "experts": 3}'), "version: found 2, expected 1"),
        (lambda f: (f / "outrider.json").write_text('{"version": 1, "experts": 17}'), "experts: found 17"),
        (lambda f: _write(f, SHAPES[0], router={"scale": "half"}), "router.scale: found 'half'"),
        (lambda f: _write(f, SHAPES[0], router={"depth": 2}), "router.depth: found an unknown field"),
        (lambda f: _write(f, SHAPES[0], router={"width": 30}), "router.width: found 30, expected a multiple of 8"),
        (lambda f: _damage_masks(f, sig=None, x=torch.zeros(1)), "E_MASKS: .*: sig: found no such tensor"),
        (lambda f: _damage_masks(f, sig=torch.full((2, 24), 8, dtype=torch.uint8)), "a bit of expert 3"),
        (lambda f: _damage_masks(f, sig=torch.zeros(2, 23, dtype=torch.uint8)), "sig: found 2 layers of 23 channels"),
        (lambda f: _damage_masks(f, perm=torch.zeros(2, 24, dtype=torch.int32)), "E_MASKS: .*: perm"),
        (
            lambda f: save_file({"x": torch.zeros(1)}, f / "outrider_router.safetensors"),
            "E_ROUTER: .*: block.attn_norm",
        ),
        (lambda f: _write(f, SHAPES[0], router={"width": 8}), r"E_ROUTER: .*: embed.weight: found \[50, 16\]"),
        (lambda f: (f / "outrider_masks.safetensors").write_bytes(b"short"), "E_ARTIFACT: .*: tensors: found"),
    ],
)
def test_a_bad_artifact_is_named(tmp_path, damage, message):
    folder = tmp_path / "moe"
    _write(folder, SHAPES[0])
    damage(folder)
    with pytest.raises(InputError, match=message):
        outrider.hf.apply(_model(), folder)


def test_checksums_are_checked(tmp_path):
    folder = tmp_path / "moe"
    _write(folder, SHAPES[0])
    good = hashlib.sha256((folder / "outrider_masks.safetensors").read_bytes()).hexdigest()
    _write(folder, SHAPES[0], files={"outrider_masks.safetensors": good})
    assert load_artifact(folder).experts == EXPERTS
    _write(folder, SHAPES[0], files={"outrider_masks.safetensors": "0" * 64})
    with pytest.raises(InputError, match=rf"sha256: found {good}, expected 0000"):
        load_artifact(folder)
