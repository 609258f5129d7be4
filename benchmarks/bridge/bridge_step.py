"""One imperative MoE decoding step in three forms that compute the same function of the same expert ids.

- layerwise: a router in every layer; the host reads its ids and loops over the distinct experts: one fetch a layer.
- grouped: the same routers; tokens are sorted by expert on the device, `torch._grouped_mm` takes device offsets.
- pregated: a router at the end of the step before decides for all layers; the host loops over experts it knows.

Every form ends with one read: the sampled tokens, which a server streams (pregated: with the ids of the next step).
"""

import torch
import torch.nn.functional as F
from bridge_routes import groups_of

FORMS = ("layerwise", "grouped", "pregated")


class HostReads:
    """Counts the reads of device values that the program makes: all of them go through here."""

    def __init__(self):
        self.count = 0

    def __call__(self, tensor):
        self.count += 1
        if tensor.numel() == 1:
            return [tensor.item()]
        # A copy, on the CPU as well: `tolist` uses memory directly, and the step goes on to use the tensor.
        return tensor.to("cpu", copy=True).tolist()


def route_by_layer(model, state, layer, x):
    """Ids [batch] that the router of this layer chooses for the hidden states x [batch, width]."""
    logits = F.linear(x, layer.router).float() + state.steering.index_select(0, state.tick)[0]
    return logits.argmax(-1)


def route_ahead(model, state, token):
    """Ids [batch] of the next step, from its tokens, before any of its layers runs."""
    hidden = F.silu(F.linear(F.embedding(token, model.embedding), model.router_in))
    logits = F.linear(hidden, model.router_out).float() + state.steering.index_select(0, state.tick)[0]
    return logits.argmax(-1)


def rotate(x, cosine, sine):
    """Rotary embedding of x [batch, heads, head width] at one position."""
    low, high = x.chunk(2, -1)
    return x * cosine + torch.cat((-high, low), -1) * sine


def attend(model, state, index, x, mask):
    """Attention of one new token a row over the whole preallocated cache; writes its key and value by index."""
    shape, layer = model.shape, model.layers[index]
    batch, kv = x.shape[0], shape.kv_heads * shape.head_width
    q, k, v = F.linear(x, layer.qkv).split((shape.width, kv, kv), -1)
    cosine = model.cosine.index_select(0, state.position)
    sine = model.sine.index_select(0, state.position)
    q = rotate(q.view(batch, shape.heads, shape.head_width), cosine, sine)
    k = rotate(k.view(batch, shape.kv_heads, shape.head_width), cosine, sine)
    v = v.view(batch, shape.kv_heads, shape.head_width)
    state.keys[index].index_copy_(2, state.position, k.unsqueeze(2))
    state.values[index].index_copy_(2, state.position, v.unsqueeze(2))
    # Query heads of one key head stand where a longer text would have positions: all share the mask.
    q = q.view(batch, shape.kv_heads, shape.heads // shape.kv_heads, shape.head_width)
    mixed = F.scaled_dot_product_attention(q, state.keys[index], state.values[index], attn_mask=mask)
    return F.linear(mixed.reshape(batch, shape.width), layer.output)


def one_expert(layer, expert, x):
    """The FFN of one group of columns for the rows x."""
    hidden = F.silu(x @ layer.gate[expert].t()) * (x @ layer.up[expert].t())
    return hidden @ layer.down[expert]


def loop_over_experts(layer, x, groups, order):
    """FFN with known groups ((expert, tokens), ...); `order` sorts the rows by expert, None for one group."""
    if len(groups) == 1:
        return one_expert(layer, groups[0][0], x)
    pieces = x.index_select(0, order).split([count for _, count in groups])
    outputs = [one_expert(layer, expert, piece) for (expert, _), piece in zip(groups, pieces, strict=True)]
    return torch.empty_like(x).index_copy_(0, order, torch.cat(outputs))


def grouped_experts(model, layer, x, ids):
    """FFN without a word to the host: device offsets tell the kernel where the rows of each expert end."""
    ends = (ids.unsqueeze(1) == model.expert_numbers).sum(0).cumsum(0).int()
    order = ids.argsort(stable=True)
    rows = x.index_select(0, order)
    gate = torch._grouped_mm(rows, layer.gate.transpose(1, 2), offs=ends)
    up = torch._grouped_mm(rows, layer.up.transpose(1, 2), offs=ends)
    y = torch._grouped_mm(F.silu(gate) * up, layer.down, offs=ends)
    return torch.empty_like(x).index_copy_(0, order, y)


class Decoder:
    """A form of the step over one state. `step(groups)` is the function that `coexec` wraps.

    `groups` is the plan of the step, None in the forms that decide layer by layer.
    """

    def __init__(self, form, model, state):
        self.form, self.model, self.state = form, model, state
        self.read = HostReads()
        self.paths = set()  # of the host's control flow: the groups of a step, of all layers

    def first_plan(self, routes):
        """The plan of step 0."""
        return groups_of(routes[0]) if self.form == "pregated" else None

    def step(self, groups):
        """Decodes one token a row; returns (sampled tokens, plan of the next step)."""
        answer = self.body(groups)
        if self.form != "pregated":
            return self.read(answer), None
        tokens, ids = self.read(answer)
        return tokens, groups_of(ids)

    def body(self, groups):
        """Everything on the device: tokens [batch], or for pregated tokens and next ids [2, batch]."""
        model, state, taken = self.model, self.state, []
        x = F.embedding(state.token, model.embedding)
        mask = (model.positions <= state.position).unsqueeze(0)
        order = state.expert_ids.argsort(stable=True) if groups and len(groups) > 1 else None
        for index, layer in enumerate(model.layers):
            x = x + attend(model, state, index, F.rms_norm(x, (model.shape.width,), layer.attention_norm), mask)
            h = F.rms_norm(x, (model.shape.width,), layer.ffn_norm)
            x = x + self._ffn(layer, h, groups, order, taken)
        self.paths.add(groups if self.form == "pregated" else tuple(taken))
        x = F.rms_norm(x, (model.shape.width,), model.final_norm)
        state.logits = F.linear(x, model.head)
        token = state.logits.argmax(-1)
        state.token.copy_(token)
        state.position.add_(1).remainder_(model.shape.context)
        state.tick.add_(1).remainder_(state.steering.shape[0])
        if self.form != "pregated":
            return token
        state.expert_ids.copy_(route_ahead(model, state, token))
        return torch.stack((token, state.expert_ids))

    def _ffn(self, layer, x, groups, order, taken):
        """The FFN of one layer in the decoder's form; appends to `taken` what the host had to learn."""
        if self.form == "pregated":
            return loop_over_experts(layer, x, groups, order)
        ids = route_by_layer(self.model, self.state, layer, x)
        if self.form == "grouped":
            return grouped_experts(self.model, layer, x, ids)
        groups = groups_of(self.read(ids))
        taken.append(groups)
        order = ids.argsort(stable=True) if len(groups) > 1 else None
        return loop_over_experts(layer, x, groups, order)
