"""What int8 does to the results of a model: the tokens it would have chosen along a text, and perplexity."""

import numpy as np
from decode_sides import Ours, pieces

WINDOW = 512  # tokens of one text whose perplexity is taken


def logits_of(side, text):
    """Logits of every token of one text."""
    side.begin()
    return np.concatenate([side.step(texts, position, 0) for position, texts in pieces([text], side.step_tokens)])


def along(folder, parent, threads, prompt, text):
    """int8 along the greedy text of f32: where it would have gone on otherwise, and how near the two choices were."""
    whole = np.concatenate([prompt, text])
    behind = slice(len(prompt) - 1, len(whole) - 1)
    rows = {
        form: logits_of(Ours(folder, parent, form, threads, 1, len(whole)), whole)[behind] for form in ("f32", "int8")
    }
    chosen = rows["int8"].argmax(axis=1)
    gaps = rows["f32"].max(axis=1) - rows["f32"][np.arange(len(text)), chosen]
    return {
        "tokens": len(text),
        "equal": int((chosen == text).sum()),
        "largest_gap_where_not": float(gaps.max()),
        "mean_logit_difference": float(np.abs(rows["int8"] - rows["f32"]).mean()),
        "largest_logit_difference": float(np.abs(rows["int8"] - rows["f32"]).max()),
    }


def losses(side, text):
    """Nats of each token of `text` but the first."""
    rows = logits_of(side, text)[:-1].astype(np.float64)
    highest = rows.max(axis=1)
    totals = highest + np.log(np.exp(rows - highest[:, None]).sum(axis=1))
    return totals - rows[np.arange(len(rows)), text[1:]]


def perplexities(folder, parent, threads, text, windows):
    """Perplexity of f32 and int8 over windows of a held-out text, each read from its own start."""
    found = {}
    for form in ("f32", "int8"):
        side = Ours(folder, parent, form, threads, 1, WINDOW, step_tokens=128)
        nats = [losses(side, text[at * WINDOW : (at + 1) * WINDOW]) for at in range(windows)]
        found[form] = float(np.exp(np.concatenate(nats).mean()))
    return {
        "tokens": windows * (WINDOW - 1),
        "f32": found["f32"],
        "int8": found["int8"],
        "int8_worse_by": found["int8"] / found["f32"] - 1,
    }
