"""Scorers: a HF model, or any function from ids to logits."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from outrider.refactor.tasks.scoring import Likelihood

if TYPE_CHECKING:
    import torch

Encode = Callable[[str], list[int]]
Logits = Callable[["torch.Tensor"], "torch.Tensor"]
# (input ids, ids to be predicted at the last positions)
_Pair = tuple[tuple[int, ...], tuple[int, ...]]


class LogitsScorer:
    """`logits(ids)`: int64 [B, S], padded on the right -> [B, S, V]; a causal model needs no attention mask for that.

    Texts are cut into ids as lm-evaluation-harness does: context and continuation together, the continuation being
    what lies behind the context's own number of ids. A text that is too long loses its beginning. Equal inputs are
    computed once, so the four letters of a question with a long context cost one row. `prefix` stands for an empty
    context. `batch_tokens` bounds the padded size of a batch.
    """

    def __init__(
        self, logits: Logits, encode: Encode, *, prefix: int, max_length: int = 2_048, batch_tokens: int = 4_096
    ) -> None:
        self._logits, self._encode, self._prefix = logits, encode, prefix
        self._max_length, self._batch_tokens = max_length, batch_tokens

    def loglikelihood(self, requests: list[tuple[str, str]]) -> list[Likelihood]:
        """Sums in nats of fp32 log-probabilities.

        Raises:
            ValueError: a continuation has no ids or is longer than the model's window.
        """
        pairs = [self._pair(*request) for request in requests]
        wanted: dict[tuple[int, ...], list[int]] = {}
        for number, (inputs, _) in enumerate(pairs):
            wanted.setdefault(inputs, []).append(number)
        answers: list[Likelihood] = [(0.0, False)] * len(pairs)
        for batch in self._batches(list(wanted)):
            rows = [(inputs, [(n, pairs[n][1]) for n in wanted[inputs]]) for inputs in batch]
            for number, likelihood in self._run(rows):
                answers[number] = likelihood
        return answers

    def _pair(self, context: str, continuation: str) -> _Pair:
        if context:
            stripped = context.rstrip()
            continuation = context[len(stripped) :] + continuation
            start = self._encode(stripped) if stripped else []
            whole = self._encode(stripped + continuation)
            if not start:
                start, whole = [self._prefix], [self._prefix, *whole]
        else:
            start = [self._prefix]
            whole = [self._prefix, *self._encode(continuation)]
        targets = whole[len(start) :]
        if not targets or len(targets) > self._max_length:
            raise ValueError(f"a continuation of {len(targets)} ids: {continuation[:60]!r}")
        return tuple([*start, *targets][-(self._max_length + 1) :][:-1]), tuple(targets)

    def _batches(self, inputs: list[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
        """Longest first, so that memory runs out at once or never."""
        batches: list[list[tuple[int, ...]]] = []
        for row in sorted(inputs, key=lambda ids: (-len(ids), ids)):
            if not batches or (len(batches[-1]) + 1) * len(batches[-1][0]) > self._batch_tokens:
                batches.append([])
            batches[-1].append(row)
        return batches

    def _run(
        self, rows: list[tuple[tuple[int, ...], list[tuple[int, tuple[int, ...]]]]]
    ) -> list[tuple[int, Likelihood]]:
        import torch

        longest = max(len(inputs) for inputs, _ in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        for row, (inputs, _) in enumerate(rows):
            ids[row, : len(inputs)] = torch.tensor(inputs)
        with torch.inference_mode():
            logits = self._logits(ids)
            found = []
            for row, (inputs, targets) in enumerate(rows):
                for number, target in targets:
                    at = logits[row, len(inputs) - len(target) : len(inputs)].float()
                    answer = torch.tensor(target, device=at.device)
                    picked = at.log_softmax(-1).gather(-1, answer[:, None])
                    found.append((number, (picked.sum().item(), bool((at.argmax(-1) == answer).all()))))
        return found


def model_logits(model) -> Logits:
    """The logits function of a HF causal model, on the model's own device."""
    return lambda ids: model(input_ids=ids.to(model.device), use_cache=False).logits


def model_scorer(model, tokenizer, *, max_length: int | None = None, batch_tokens: int = 4_096) -> LogitsScorer:
    """A scorer of a HF causal model and its HF tokenizer, special tokens left out as the harness does."""
    window = max_length or min(model.config.max_position_embeddings, 2_048)
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    return LogitsScorer(model_logits(model), encode, prefix=prefix, max_length=window, batch_tokens=batch_tokens)
