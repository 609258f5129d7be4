"""`outrider eval prompts`: how many short factual prompts a model still answers as its parent does."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from outrider.refactor.atomic import write_file
from outrider.refactor.cli import input_errors
from outrider.refactor.prompts import Prompt, load_prompts

ANSWER_TOKENS = 12
RULE = (
    "greedy continuation of the text, without a chat template; it agrees when it begins with the answer as a whole "
    "word, white space in front of it apart"
)


def prompts_command(
    model: Annotated[Path, typer.Argument(help="A model folder, dense or refactored.")],
    parent: Annotated[
        Path | None, typer.Option("--parent", "--model", help="The parent of a folder without weights.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first prompts.", min=1)] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    out: Annotated[Path | None, typer.Option(help="Write every answer as JSON.")] = None,
) -> None:
    """Counts the prompts whose answer is that of SmolLM2-135M-Instruct, the model that the list was made with.

    No measure of quality: the list holds what that model answers right. No self-made text contains one of them.
    """
    from outrider.generate_cli import check_device, check_vocabulary, load_text_tokenizer, open_model

    with input_errors():
        check_device("outrider eval prompts", device)
        tokenizer = load_text_tokenizer(model, parent)
        loaded = open_model(model, parent, dtype, device)
        check_vocabulary(model, loaded, tokenizer)
        result = answer_prompts(loaded, tokenizer, load_prompts()[:limit])
    for row in result["answers"]:
        if not row["agrees"]:
            print(f"{row['prompt']} ... {row['continuation']!r}, expected {row['answer']!r}")
    print(f"{result['agreed']} of {result['prompts']} agree ({result['agreed'] / result['prompts']:.1%})")
    if out:
        write_file(out, json.dumps({"model": str(model)} | result, indent=1, ensure_ascii=False) + "\n")


def answer_prompts(loaded: Any, tokenizer: Any, prompts: list[Prompt]) -> dict[str, Any]:
    """Every answer, and how many agree."""
    answers = []
    for prompt in prompts:
        made: list[int] = []
        loaded.generate(tokenizer(prompt.text).input_ids, made.append, ANSWER_TOKENS, loaded.end_ids)
        text = tokenizer.decode(made, skip_special_tokens=True)
        row = {"prompt": prompt.text, "answer": prompt.answer, "continuation": text}
        answers.append(row | {"agrees": prompt.answered_by(text)})
    agreed = sum(row["agrees"] for row in answers)
    return {"rule": RULE, "tokens": ANSWER_TOKENS, "prompts": len(answers), "agreed": agreed, "answers": answers}
