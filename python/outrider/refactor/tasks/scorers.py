"""Scorers: a HF model, a model in the core, or any function from ids to logits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from outrider.refactor.errors import InputError
from outrider.refactor.tasks.scoring import Likelihood
from outrider.refactor.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch

Encode = Callable[[list[str]], list[list[int]]]  # ids of each text
Logits = Callable[["torch.Tensor"], "torch.Tensor"]
Ids = tuple[int, ...]
# (input ids, ids to be predicted at the last positions)
_Pair = tuple[Ids, Ids]
Query = tuple[Ids, list[Ids]]
Answer = Callable[[list[Query]], list[list[Likelihood]]]

WINDOW = 2_048  # tokens of a text at most
# At least so many texts that share their first tokens are a batch of their own: the core computes what they share once.
BEGINNING, GROUP = 48, 8
_AT_ONCE = 1_024  # requests whose texts are encoded together: tokenizers do so on all cores


class BatchScorer:
    """`answer(queries)`: (input ids, [target ids, ...]) of one batch -> per query and target its likelihood, where a
    target stands at the last positions and each of its ids is predicted from the inputs up to there.

    Texts are cut into ids as lm-evaluation-harness does: context and continuation together, the continuation being
    what lies behind the context's own number of ids. A text that is too long loses its beginning. Equal inputs are
    computed once, so the four letters of a question with a long context cost one row. `prefix` stands for an empty
    context. `batch_tokens` bounds the padded size of a batch.
    """

    def __init__(
        self, answer: Answer, encode: Encode, *, prefix: int, max_length: int = 2_048, batch_tokens: int = 4_096
    ) -> None:
        self._answer, self._encode, self._prefix = answer, encode, prefix
        self._max_length, self._batch_tokens = max_length, batch_tokens

    def loglikelihood(self, requests: list[tuple[str, str]]) -> list[Likelihood]:
        """Sums in nats of fp32 log-probabilities.

        Raises:
            ValueError: a continuation has no ids or is longer than the model's window.
        """
        pairs = [
            pair
            for first in range(0, len(requests), _AT_ONCE)
            for pair in self._pairs(requests[first : first + _AT_ONCE])
        ]
        wanted: dict[Ids, list[int]] = {}
        for number, (inputs, _) in enumerate(pairs):
            wanted.setdefault(inputs, []).append(number)
        answers: list[Likelihood] = [(0.0, False)] * len(pairs)
        for batch in self._batches(list(wanted)):
            found = self._answer([(inputs, [pairs[n][1] for n in wanted[inputs]]) for inputs in batch])
            for inputs, row in zip(batch, found, strict=True):
                for number, likelihood in zip(wanted[inputs], row, strict=True):
                    answers[number] = likelihood
        return answers

    def _pairs(self, requests: list[tuple[str, str]]) -> list[_Pair]:
        texts = []
        for context, continuation in requests:
            start = context.rstrip()
            texts.append((start, context + continuation))
        distinct = list(dict.fromkeys(text for pair in texts for text in pair if text))
        ids = {"": []} | dict(zip(distinct, self._encode(distinct), strict=True))
        return [self._pair(ids[start], ids[whole], whole[len(start) :]) for start, whole in texts]

    def _pair(self, start: list[int], whole: list[int], continuation: str) -> _Pair:
        if not start:
            start, whole = [self._prefix], [self._prefix, *whole]
        targets = whole[len(start) :]
        if not targets or len(targets) > self._max_length:
            raise ValueError(f"a continuation of {len(targets)} ids: {continuation[:60]!r}")
        return tuple([*start, *targets][-(self._max_length + 1) :][:-1]), tuple(targets)

    def _batches(self, inputs: list[Ids]) -> list[list[Ids]]:
        """Longest first, so that memory runs out at once or never; texts with the same beginning by themselves."""
        groups: dict[Ids, list[Ids]] = {}
        for row in inputs:
            groups.setdefault(row[:BEGINNING] if len(row) > BEGINNING else (), []).append(row)
        alone = [row for begin, group in groups.items() if not begin or len(group) < GROUP for row in group]
        together = [group for begin, group in groups.items() if begin and len(group) >= GROUP]
        batches: list[list[Ids]] = []
        for group in (alone, *together):
            first = True
            for row in sorted(group, key=lambda ids: (-len(ids), ids)):
                if first or (len(batches[-1]) + 1) * len(batches[-1][0]) > self._batch_tokens:
                    batches.append([])
                    first = False
                batches[-1].append(row)
        return batches


class LogitsScorer(BatchScorer):
    """`logits(ids)`: int64 [B, S], padded on the right -> [B, S, V]; causal models need no attention mask for that."""

    def __init__(
        self, logits: Logits, encode: Encode, *, prefix: int, max_length: int = 2_048, batch_tokens: int = 4_096
    ) -> None:
        super().__init__(
            lambda queries: _answers(logits, queries),
            encode,
            prefix=prefix,
            max_length=max_length,
            batch_tokens=batch_tokens,
        )


def _answers(logits: Logits, queries: list[Query]) -> list[list[Likelihood]]:
    import torch

    longest = max(len(inputs) for inputs, _ in queries)
    ids = torch.zeros(len(queries), longest, dtype=torch.int64)
    for row, (inputs, _) in enumerate(queries):
        ids[row, : len(inputs)] = torch.tensor(inputs)
    with torch.inference_mode():
        out = logits(ids)
        return [
            [_likelihood(out[row, len(inputs) - len(target) : len(inputs)].float(), target) for target in targets]
            for row, (inputs, targets) in enumerate(queries)
        ]


def _likelihood(logits: "torch.Tensor", target: Ids) -> Likelihood:
    import torch

    answer = torch.tensor(target, device=logits.device)
    picked = logits.log_softmax(-1).gather(-1, answer[:, None])
    return picked.sum().item(), bool((logits.argmax(-1) == answer).all())


def model_logits(model) -> Logits:
    """The logits function of a HF causal model, on the model's own device."""
    return lambda ids: model(input_ids=ids.to(model.device), use_cache=False).logits


def model_scorer(model, tokenizer, *, max_length: int | None = None, batch_tokens: int = 4_096) -> LogitsScorer:
    """A scorer of a HF causal model and its HF tokenizer, special tokens left out as the harness does."""
    window = max_length or min(model.config.max_position_embeddings, WINDOW)
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []

    return LogitsScorer(model_logits(model), encode, prefix=prefix, max_length=window, batch_tokens=batch_tokens)


def bench_scorer(bench, model: Path, *, all_channels: bool = False, batch_tokens: int = 4_096) -> BatchScorer:
    """A scorer of a `Workbench` of the core, with the tokenizer and the window of the model folder `model`.

    Raises:
        InputError: E_VOCAB as `load_tokenizer` says, or when the model names neither a first nor a last token.
    """
    tokenizer = load_tokenizer(model)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    first = next((config[name] for name in ("bos_token_id", "eos_token_id") if config.get(name) is not None), None)
    prefix = first[0] if isinstance(first, list) and first else first
    if not isinstance(prefix, int):
        raise InputError("E_VOCAB", model / "config.json", "bos_token_id", "none, nor eos_token_id", "a token id")

    def answer(queries: list[Query]) -> list[list[Likelihood]]:
        return bench.score(queries, all_channels=all_channels)

    return BatchScorer(
        answer,
        tokenizer.encode,
        prefix=prefix,
        max_length=min(config["max_position_embeddings"], WINDOW),
        batch_tokens=batch_tokens,
    )
