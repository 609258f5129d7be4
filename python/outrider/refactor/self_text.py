"""`outrider data self`: a data folder of texts that the parent writes itself. The format is docs/formats/data.md.

Conversations begin with what the chat template puts before a user's first turn, so that the model asks the
question, too (the way of Magpie, arXiv 2406.08464); other texts begin with the token that begins a text, or with that
and a name that the texts before them mention.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outrider.refactor.atomic import atomic_folder, write_file
from outrider.refactor.chat_form import ChatForm, Turn, chat_form, special_ids, text_start
from outrider.refactor.documents import SPLITS, hash_of, read_documents, split_of
from outrider.refactor.errors import InputError
from outrider.refactor.prepare import FORMAT
from outrider.refactor.prompts import load_prompts
from outrider.refactor.self_filter import SHORT_TOKENS, SelfFilter
from outrider.refactor.self_names import names_in
from outrider.refactor.tokenizer import ModelTokenizer, load_tokenizer

CHAT, TEXT, NAMES = "chat", "text", "names"
# A parent of whose tokens less than one in this many is kept cannot be tuned on its own text.
_TRIES = 10

# domain, tokens kept of it so far
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class SelfOptions:
    """`text_share`: of the tokens, in texts that are no conversation; all of them without a chat template.

    `name_share`: of all tokens, in texts that begin with a name; the others are shared out as if it were 0.
    `turns`: questions and answers of a conversation; answers, and texts about names, are drawn at a temperature of
    their own. `length`: tokens of a text at most. `rows`: texts at once.
    """

    tokens: int
    text_share: float = 0.25
    name_share: float = 0.0
    turns: int = 1
    length: int = 512
    temperature: float = 1.0
    answer_temperature: float = 0.7
    top_k: int = 256
    top_p: float = 0.95
    seed: int = 0
    prompts: Path | None = None
    rows: int = 64
    device: str = "cpu"
    dtype: str = "float32"


@dataclass(frozen=True)
class _Plan:
    """How the texts of one domain begin and go on. `written`: place of the first token that the model writes, by
    prompt. `special`: ids that are no text. `asks`: the first turn is a question."""

    domain: str
    tokens: int
    prompts: list[list[int]]
    turns: list[Turn]
    written: list[int]
    special: frozenset[int]
    asks: bool = False

    def is_sound(self, number: int, ids: list[int], ended: int) -> bool:
        """Whether special tokens stand only where a turn ends, and there is an answer; the last turn may be cut off.

        `ended` turns of the text are over.
        """
        start = self.written[number % len(self.written)]
        place = answer = start
        for ends, tail, _ in self.turns:
            while place < len(ids) and ids[place] not in self.special:
                place += 1
            if place >= len(ids):
                break
            if ids[place] not in ends:
                return False
            place += 1 + len(tail)
            if answer == start:
                answer = place
        return not self.asks or ended > 1 or (ended == 1 and len(ids) - answer >= SHORT_TOKENS)


def write_self_text(
    parent: Path,
    out: Path,
    options: SelfOptions,
    *,
    force: bool = False,
    progress: Progress = lambda domain, tokens: None,
) -> dict[str, Any]:
    """Samples the parent's texts into a data folder; returns what data.json holds.

    Raises:
        InputError: E_USAGE for options out of range, E_DATA for prompts that cannot be read, E_SELF when the parent
            writes too little that is worth keeping, E_TEMPLATE, E_TOKENIZER and E_EXISTS as their owners say.
        ValueError: an error line of the core.
    """
    from transformers import AutoTokenizer

    from outrider import _core

    _check(options)
    tokenizer = load_tokenizer(parent)
    wide = AutoTokenizer.from_pretrained(parent)
    plans = _plans(parent, wide, tokenizer, options)
    sources, banned = _sources(parent, options), [prompt.text for prompt in load_prompts()]
    dtype = np.dtype("<u2" if tokenizer.vocab <= 65_536 else "<u4")
    with atomic_folder(out, force=force, needed_bytes=(options.tokens + options.length) * dtype.itemsize) as folder:
        model = _core.Model.load(str(parent), options.dtype, options.device)
        (folder / "tokens").mkdir()
        splits, domains = {}, {}
        mentioned: list[str] = []
        decoded = functools.partial(wide.decode, skip_special_tokens=True)
        while plans:
            plan = plans.pop(0)
            keeper = SelfFilter(decoded, banned)
            kept, written = _sample(model, plan, options, keeper, progress)
            _require_enough(parent, plan, kept, written, keeper)
            splits[plan.domain] = _write(kept, wide, folder / "tokens", plan.domain, dtype)
            domains[plan.domain] = {
                "written": written,
                "kept": len(kept),
                "dropped": dict(sorted(keeper.dropped.items())),
            }
            if options.name_share and plan.domain != NAMES:
                mentioned += [decoded(ids) for _, ids in kept]
                plans = plans or [_names_plan(parent, wide, tokenizer, mentioned, options)]
        settings = {key: value for key, value in asdict(options).items() if key not in ("prompts", "rows")}
        summary = {
            "format": FORMAT,
            "vocab": tokenizer.vocab,
            "dtype": "uint16" if dtype.itemsize == 2 else "uint32",
            "domains": list(domains),
            "unseen": [],
            "separator": None,
            "splits": splits,
            "tokenizer_sha256": tokenizer.sha256,
            "sources": sources,
            "self": {"parent_sha256": _core.weights_sha256(str(parent)), **settings, "texts": domains},
        }
        write_file(folder / "data.json", json.dumps(summary, separators=(",", ":")) + "\n")
    return summary


def token_count(command: str, text: str) -> int:
    """`250000`, `250_000`, `250k` or `0.25M` as a number of tokens."""
    factor = {"k": 1_000, "K": 1_000, "M": 1_000_000}.get(text[-1:], 1)
    try:
        count = float(text if factor == 1 else text[:-1]) * factor
    except ValueError:
        count = 0.0
    if not (count >= 1 and count.is_integer()):
        raise InputError("E_USAGE", command, "tokens", repr(text), "a whole number, also with k or M behind it")
    return int(count)


def _check(options: SelfOptions) -> None:
    ranges = {
        "--tokens": (options.tokens, options.tokens >= 1, "at least 1"),
        "--text-share": (options.text_share, 0 <= options.text_share <= 1, "0 to 1"),
        "--name-share": (options.name_share, 0 <= options.name_share < 1, "0 or more, below 1"),
        "--turns": (options.turns, options.turns >= 1, "at least 1"),
        "--length": (options.length, options.length > SHORT_TOKENS, f"more than {SHORT_TOKENS}"),
        "--temperature": (options.temperature, options.temperature > 0, "above 0: equal texts are of no use"),
        "--answer-temperature": (options.answer_temperature, options.answer_temperature > 0, "above 0"),
        "--top-p": (options.top_p, 0 < options.top_p <= 1, "above 0, up to 1"),
        "--top-k": (options.top_k, options.top_k >= 0, "at least 0"),
        "--rows": (options.rows, options.rows >= 1, "at least 1"),
    }
    for name, (value, good, expected) in ranges.items():
        if not good:
            raise InputError("E_USAGE", "outrider data self", name, f"{value}", expected)


def _plans(parent: Path, wide: Any, tokenizer: ModelTokenizer, options: SelfOptions) -> list[_Plan]:
    form = chat_form(wide, parent / "tokenizer_config.json")
    if form is None and options.prompts:
        raise InputError("E_TEMPLATE", parent, "chat template", "none", "one, to put --prompts into")
    tokens = options.tokens - _name_tokens(options)
    text_tokens = round(tokens * options.text_share) if form else tokens
    plans = []
    if form and tokens > text_tokens:
        plans.append(_chat_plan(form, tokens - text_tokens, tokenizer, special_ids(wide), options))
    if text_tokens:
        plans.append(_text_plan(TEXT, text_tokens, [[]], wide, form))
    for plan in plans:
        _require_room(plan, options)
    return plans


def _require_room(plan: _Plan, options: SelfOptions) -> None:
    longest = max(len(prompt) for prompt in plan.prompts)
    if longest >= options.length - SHORT_TOKENS:
        found = f"{longest} tokens of prompt"
        expected = f"fewer than {options.length - SHORT_TOKENS} tokens"
        raise InputError("E_USAGE", "outrider data self", "--length", found, expected)


def _name_tokens(options: SelfOptions) -> int:
    return round(options.tokens * options.name_share)


def _names_plan(
    parent: Path, wide: Any, tokenizer: ModelTokenizer, texts: Sequence[str], options: SelfOptions
) -> _Plan:
    """Texts that begin with the names of other texts, so that what the model knows of them is written down."""
    names = names_in(texts)
    if not names:
        raise InputError("E_SELF", parent, NAMES, f"no name in {len(texts)} texts", "texts that mention names")
    form = chat_form(wide, parent / "tokenizer_config.json")
    # What the parent says of a name when it is asked, not all that it might: at the temperature of answers.
    plan = _text_plan(NAMES, _name_tokens(options), tokenizer.encode(names), wide, form, options.answer_temperature)
    _require_room(plan, options)
    return plan


def _text_plan(
    domain: str,
    tokens: int,
    begins: Sequence[Sequence[int]],
    wide: Any,
    form: ChatForm | None,
    temperature: float = 0.0,
) -> _Plan:
    """Texts that are no conversation, behind the token that begins a text and each of `begins` in turns.

    `temperature`: 0 for that of the options.
    """
    start = text_start(wide, form)
    ends = sorted({*special_ids(wide), start})
    prompts = [[start, *ids] for ids in begins]
    return _Plan(domain, tokens, prompts, [(ends, [], temperature)], [1] * len(prompts), frozenset(ends))


def _chat_plan(
    form: ChatForm, tokens: int, tokenizer: ModelTokenizer, special: frozenset[int], options: SelfOptions
) -> _Plan:
    if options.prompts is None:
        turns = form.turns(options.turns, questions=True, temperature=options.answer_temperature)
        return _Plan(CHAT, tokens, [form.start], turns, [len(form.start)], special, asks=True)
    questions = [document.text for document in read_documents(options.prompts.parent, options.prompts.name)]
    if not questions:
        raise InputError("E_DATA", options.prompts, "prompts", "no text", 'lines of {"text": ...}')
    behind = [form.user_end, *form.to_assistant]
    prompts = [[*form.start, *ids, *behind] for ids in tokenizer.encode(questions)]
    turns = form.turns(options.turns, questions=False, temperature=options.answer_temperature)
    return _Plan(CHAT, tokens, prompts, turns, [len(ids) for ids in prompts], special)


def _sample(
    model: Any, plan: _Plan, options: SelfOptions, keeper: SelfFilter, progress: Progress
) -> tuple[list[tuple[int, list[int]]], int]:
    """(number, ids) of the texts that were kept, and how many were written."""
    kept: list[tuple[int, list[int]]] = []
    tokens = written = made = 0

    def take(number: int, ids: list[int], turns: int) -> bool:
        nonlocal tokens, written, made
        written += 1
        made += len(ids)
        start = plan.written[number % len(plan.written)]
        if keeper.keeps(ids, start, sound=plan.is_sound(number, ids, turns)):
            kept.append((number, ids))
            tokens += len(ids)
        progress(plan.domain, tokens)
        enough = tokens >= plan.tokens and len(kept) >= len(SPLITS)
        return not enough and made < _TRIES * plan.tokens + 100 * options.length

    sampling = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    shape = {"texts": 1 << 40, "length": options.length, "rows": options.rows}
    # Domains do not share draws.
    seed = int.from_bytes(hashlib.sha256(f"{plan.domain}\0{options.seed}".encode()).digest()[:8], "big")
    model.sample_texts(plan.prompts, plan.turns, take, seed=seed, **shape, **sampling)
    return kept, written


def _require_enough(
    parent: Path, plan: _Plan, kept: Sequence[tuple[int, list[int]]], written: int, keeper: SelfFilter
) -> None:
    tokens = sum(len(ids) for _, ids in kept)
    if tokens >= plan.tokens and len(kept) >= len(SPLITS):
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(keeper.dropped.items()))
    found = f"{tokens} tokens in {written} texts ({reasons})"
    raise InputError("E_SELF", parent, plan.domain, found, f"{plan.tokens} tokens worth keeping")


def _write(kept: list[tuple[int, list[int]]], wide: Any, folder: Path, domain: str, dtype: np.dtype) -> dict[str, Any]:
    """Token files of one domain, split by the numbers of the texts; no split is empty."""
    split = {number: split_of(domain, number) for number, _ in kept}
    for empty in (one for one in SPLITS if one not in split.values()):
        fullest = max(SPLITS, key=lambda one: sum(value == one for value in split.values()))
        moved = min((number for number, value in split.items() if value == fullest), key=lambda n: hash_of(domain, n))
        split[moved] = empty
    rows = {}
    for name in SPLITS:
        texts = [ids for number, ids in kept if split[number] == name]
        starts = np.cumsum([0, *(len(ids) for ids in texts)]).tolist()
        write_file(folder / f"{domain}.{name}.bin", np.concatenate([np.asarray(ids, dtype) for ids in texts]).tobytes())
        sizes = [len(wide.decode(ids).encode()) for ids in texts]
        rows[name] = {"tokens": starts[-1], "documents": starts[:-1], "document_bytes": sizes}
    return rows


def _sources(parent: Path, options: SelfOptions) -> list[dict[str, Any]]:
    """The prompts; the parent is under `self`."""
    if options.prompts is None:
        return []
    try:
        text = options.prompts.read_bytes()
    except OSError as error:
        raise InputError("E_DATA", options.prompts, "prompts", str(error), "a readable file") from error
    digest = hashlib.sha256(text).hexdigest()
    return [{"domain": CHAT, "file": options.prompts.name, "bytes": len(text), "sha256": digest}]
