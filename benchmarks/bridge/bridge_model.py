"""Shape models of the bridge experiment: Llama blocks with random weights whose FFN is cut into groups of columns."""

from dataclasses import dataclass

import torch

ROUTER_WIDTH = 512
STEER = 1e4  # far above any logit of random weights, exact in fp32


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; the FFN has `experts` groups of `channels` channels, every token uses one of them."""

    name: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    experts: int
    channels: int
    context: int

    @property
    def head_width(self):
        """Channels of one attention head."""
        return self.width // self.heads


# The experts of a model together have the channels of its dense FFN: 8 x 192 = 1536, 8 x 1376 = 11008.
SHAPES = {
    "tiny": Shape("tiny", 64, 3, 4, 2, 128, 4, 32, 64),
    "smollm2": Shape("smollm2", 576, 30, 9, 3, 49152, 8, 192, 256),
    "llama7b": Shape("llama7b", 4096, 32, 32, 32, 32000, 8, 1376, 256),
}


@dataclass
class Layer:
    """Weights of one block; `gate`, `up`: [experts, channels, width], `down`: [experts, channels, width]."""

    attention_norm: torch.Tensor
    qkv: torch.Tensor
    output: torch.Tensor
    ffn_norm: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    router: torch.Tensor  # [experts, width], of the forms that decide in every layer


class Model:
    """Weights from a seed, and the tables that steps index. Shared by all sides; no step writes them."""

    def __init__(self, shape, device, dtype, seed=0):
        self.shape, self.device, self.dtype = shape, device, dtype
        self._generator = torch.Generator(device).manual_seed(seed)
        s, kv = shape, shape.kv_heads * shape.head_width
        self.embedding = self._draw(s.vocabulary, s.width)
        self.layers = [
            Layer(
                torch.ones(s.width, device=device, dtype=dtype),
                self._draw(s.width + 2 * kv, s.width),
                self._draw(s.width, s.width),
                torch.ones(s.width, device=device, dtype=dtype),
                self._draw(s.experts, s.channels, s.width),
                self._draw(s.experts, s.channels, s.width),
                self._draw(s.experts, s.channels, s.width, fan_in=s.channels),
                self._draw(s.experts, s.width),
            )
            for _ in range(s.layers)
        ]
        self.final_norm = torch.ones(s.width, device=device, dtype=dtype)
        self.head = self._draw(s.vocabulary, s.width)
        # The router of the pre-gated form: looks at the next token, once a step, for all layers.
        self.router_in = self._draw(ROUTER_WIDTH, s.width)
        self.router_out = self._draw(s.experts, ROUTER_WIDTH)
        self._make_tables()

    def _draw(self, *sizes, fan_in=None):
        scale = (fan_in or sizes[-1]) ** -0.5
        drawn = torch.empty(sizes, device=self.device, dtype=self.dtype)
        return drawn.normal_(0, scale, generator=self._generator)

    def _make_tables(self):
        half = torch.arange(0, self.shape.head_width, 2, device=self.device, dtype=torch.float32)
        rates = 10000.0 ** (-half / self.shape.head_width)
        self.positions = torch.arange(self.shape.context, device=self.device)
        angles = torch.outer(self.positions.float(), rates).repeat(1, 2)
        self.cosine, self.sine = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        self.expert_numbers = torch.arange(self.shape.experts, device=self.device)


class State:
    """What a step changes: caches [layers][batch, kv heads, context, head width], token, position, route."""

    def __init__(self, model, batch, routes):
        shape, device = model.shape, model.device
        sizes = (batch, shape.kv_heads, shape.context, shape.head_width)
        self.keys = [torch.zeros(sizes, device=device, dtype=model.dtype) for _ in range(shape.layers)]
        self.values = [torch.zeros(sizes, device=device, dtype=model.dtype) for _ in range(shape.layers)]
        self.token = torch.arange(batch, device=device) % shape.vocabulary
        self.position = torch.zeros(1, device=device, dtype=torch.int64)
        self.tick = torch.zeros(1, device=device, dtype=torch.int64)
        drawn = torch.tensor(routes, device=device)
        self.expert_ids = drawn[0].clone()
        # Added to every router's logits, so that the routers, which really run, decide what was drawn.
        self.steering = STEER * torch.nn.functional.one_hot(drawn, shape.experts).float()
        self.logits = None  # of the last step [batch, vocabulary]

    def changed(self):
        """Every tensor that a step writes in place."""
        return [*self.keys, *self.values, self.token, self.position, self.tick, self.expert_ids]
