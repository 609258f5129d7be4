"""What a chat template puts around the turns of a conversation, as token ids."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from outrider.refactor.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Ids that end a turn, ids behind it, temperature of its draws or 0 for that of all.
Turn = tuple[list[int], list[int], float]

_MARKS = ("outrider-first-question", "outrider-first-answer", "outrider-second-question")


@dataclass(frozen=True)
class ChatForm:
    """`start`: ids before the user's first turn, a default system prompt included.

    A user's turn ends with the id `user_end`, and `to_assistant` leads to the answer; an answer ends with
    `assistant_end`, and `to_user` leads to the next question.
    """

    start: list[int]
    user_end: int
    to_assistant: list[int]
    assistant_end: int
    to_user: list[int]

    def turns(self, pairs: int, *, questions: bool, temperature: float = 0.0) -> list[Turn]:
        """What the model writes in `pairs` of question and answer; `temperature` of the answers.

        Without `questions` the first question is given, and the first turn is its answer.
        """
        question, answer = ([self.user_end], self.to_assistant, 0.0), ([self.assistant_end], self.to_user, temperature)
        turns = [question, answer] * pairs
        return [*turns[0 if questions else 1 : -1], ([self.assistant_end], [], temperature)]


def special_ids(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Ids of special tokens; not every version of the library lists those that were added as such."""
    added = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset(tokenizer.all_special_ids) | frozenset(added)


def chat_form(tokenizer: "PreTrainedTokenizerBase", where: Path | str) -> ChatForm | None:
    """None for a tokenizer without a chat template.

    Raises:
        InputError: E_TEMPLATE when a turn does not end with a special token, which only a person can then tell.
    """
    if not tokenizer.chat_template:
        return None
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, _MARKS, strict=True)]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    places = [text.find(mark) for mark in _MARKS]
    if -1 in places or places != sorted(places):
        raise InputError("E_TEMPLATE", where, "chat template", "turns that are changed or left out", "them, in order")
    pieces = [text[: places[0]]]
    for index in range(2):
        pieces.append(text[places[index] + len(_MARKS[index]) : places[index + 1]])
    start, to_assistant, to_user = (tokenizer(piece, add_special_tokens=False).input_ids for piece in pieces)
    special = special_ids(tokenizer)
    for name, ids in (("user", to_assistant), ("assistant", to_user)):
        if not ids or ids[0] not in special:
            found = repr(tokenizer.decode(ids[:1])) if ids else "nothing"
            raise InputError("E_TEMPLATE", where, f"end of the {name}'s turn", found, "a special token")
    return ChatForm(start, to_assistant[0], to_assistant[1:], to_user[0], to_user[1:])


def text_start(tokenizer: "PreTrainedTokenizerBase", form: ChatForm | None) -> int:
    """The id that text without a conversation begins with: the first that no conversation begins with, of the token
    that begins texts, `<|endoftext|>`, and the one that ends them.

    Raises:
        InputError: E_TEMPLATE when there is no such token.
    """
    ids = [tokenizer.bos_token_id, tokenizer.get_vocab().get("<|endoftext|>"), tokenizer.eos_token_id]
    for number in ids:
        if number is not None and not (form and form.start and number == form.start[0]):
            return number
    raise InputError("E_TEMPLATE", tokenizer.name_or_path, "special tokens", "none that begins a text", "bos or eos")
