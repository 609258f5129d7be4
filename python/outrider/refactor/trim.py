"""`outrider data trim`: a smaller copy of prepared text, for a machine that can take only little of it."""

import json
from pathlib import Path
from typing import Any

from outrider.refactor.atomic import atomic_folder, write_file
from outrider.refactor.data_set import Split, load_data
from outrider.refactor.errors import InputError


def trim(source: Path, out: Path, tokens: int, held_out: int, *, force: bool = False) -> dict[str, Any]:
    """Writes the first documents of each domain and split; returns what OUT/data.json holds.

    `tokens`: train tokens in all, in the domains' own proportions; `held_out`: tokens of each valid, test and unseen
    split. Both are rounded up to a whole document of each file, so that no document is cut.

    Raises:
        InputError: E_DATA for a folder that is no prepared text; E_EXISTS and E_DISK for `out`.
    """
    source = Path(source)
    data = load_data(source)
    header = json.loads((source / "data.json").read_text(encoding="utf-8"))
    train = {name: len(data.splits[name]["train"].tokens) for name in data.domains if "train" in data.splits[name]}
    if not train:
        raise InputError("E_DATA", source / "data.json", "splits", "no train text", "the split train of a domain")
    total = sum(train.values())
    counts = {
        (name, split): _documents_up_to(group, -(-tokens * train[name] // total) if split == "train" else held_out)
        for name, splits in data.splits.items()
        for split, group in splits.items()
    }
    size = sum(_tokens_of(data.splits[name][split], count) for (name, split), count in counts.items())
    needed_bytes = size * next(iter(next(iter(data.splits.values())).values())).tokens.itemsize
    with atomic_folder(out, force=force, needed_bytes=needed_bytes) as folder:
        (folder / "tokens").mkdir()
        for (name, split), count in counts.items():
            group = data.splits[name][split]
            kept = _tokens_of(group, count)
            group.tokens[:kept].tofile(folder / "tokens" / f"{name}.{split}.bin")
            documents, sizes = group.starts[:count], group.text_bytes[:count]
            header["splits"][name][split] = {"tokens": kept, "documents": documents, "document_bytes": sizes}
        header["trimmed"] = {"train": tokens, "held_out": held_out}
        write_file(folder / "data.json", json.dumps(header, separators=(",", ":")) + "\n")
    return header


def _documents_up_to(split: Split, tokens: int) -> int:
    """The least number of documents from the beginning on that hold `tokens` tokens; all where there are fewer."""
    ends = [*split.starts[1:], len(split.tokens)]
    return next((count for count, end in enumerate(ends, 1) if end >= tokens), len(ends))


def _tokens_of(split: Split, documents: int) -> int:
    return split.starts[documents] if documents < len(split.starts) else len(split.tokens)
