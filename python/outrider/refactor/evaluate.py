"""Perplexity of any function from ids to logits on prepared text, document by document."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from outrider.refactor.data_set import DataSet, Split
from outrider.refactor.stats.perplexity import DomainLoss, domain_loss

if TYPE_CHECKING:
    import torch

    Logits = Callable[[torch.Tensor], torch.Tensor]

WINDOW = 1_024


def perplexities(
    logits: "Logits",
    data: DataSet,
    *,
    split: str = "test",
    names: list[str] | None = None,
    window: int = WINDOW,
    max_tokens: int | None = None,
    batch: int = 4,
    progress: Callable[[str, int], None] = lambda name, tokens: None,
) -> dict[str, DomainLoss]:
    """Domain -> loss of each document of `split`; unseen domains have the split `test` only.

    `logits`: int64 [B, S], padded on the right -> [B, S, V]. A document is read in windows of at most `window` tokens;
    each token but the first of a document is scored once, given the tokens before it in its window. With `max_tokens`
    only the first window of each of `max_tokens` / `window` documents is read, which are spread evenly over the split.
    Bytes are those of a document times the share of its tokens that was scored.
    """
    losses: dict[str, DomainLoss] = {}
    for name in names or data.domains:
        chosen = _documents(data.splits[name][split], window, max_tokens)
        nats = np.zeros(len(chosen))
        pieces = [
            (i, ids[at : at + window + 1]) for i, (ids, _) in enumerate(chosen) for at in range(0, ids.size - 1, window)
        ]
        for begin in range(0, len(pieces), batch):
            part = pieces[begin : begin + batch]
            for (document, _), loss in zip(part, _batch_nats(logits, [ids for _, ids in part]), strict=True):
                nats[document] += loss
            progress(name, sum(ids.size - 1 for _, ids in part))
        scored = [ids.size - 1 for ids, _ in chosen]
        losses[name] = domain_loss(nats, scored, [size for _, size in chosen])
    return losses


def _documents(split: Split, window: int, max_tokens: int | None) -> list[tuple[np.ndarray, int]]:
    """(ids, bytes of the scored text) of the documents to be scored."""
    documents = list(zip(split.documents(), split.text_bytes, strict=True))
    if max_tokens is not None and max_tokens < len(split.tokens):
        count = min(len(documents), max(1, max_tokens // window))
        picked = [documents[(2 * i + 1) * len(documents) // (2 * count)] for i in range(count)]
        documents = [(ids[: window + 1], round(size * min(1, (window + 1) / ids.size))) for ids, size in picked]
    return [(ids, round(size * (ids.size - 1) / ids.size)) for ids, size in documents if ids.size > 1]


def _batch_nats(logits: "Logits", rows: list[np.ndarray]) -> list[float]:
    """Summed nats of each row's tokens but the first."""
    import torch
    from torch.nn import functional

    longest = max(row.size for row in rows) - 1
    ids = torch.zeros(len(rows), longest + 1, dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, : row.size] = torch.from_numpy(row.astype(np.int64))
    with torch.inference_mode():
        out = logits(ids[:, :-1])
        sums = []
        for number, row in enumerate(rows):
            count = row.size - 1
            target = ids[number, 1 : count + 1].to(out.device)
            loss = functional.cross_entropy(out[number, :count].float(), target, reduction="none")
            sums.append(loss.double().sum().item())
    return sums
