"""The policies of serving on one short recorded load, with the small model of the refactoring demo."""

from dataclasses import replace
from pathlib import Path

from outrider.demo.serve import small_model
from outrider.serve import start
from outrider.serve.replay import compare, load
from outrider.serve.replay.load_file import Prepared
from outrider.serve.replay.texts import domain_tokens, prompts_of

ROWS, SEED = 48, 0
PROMPT_MEAN, WRITTEN_MEAN = 48, 16
RATE = 1.2  # of what chunked_fcfs does at most: where policies differ
ENGINE: dict[str, int | float | bool] = {"decode_tokens": 8}  # fewer than run at once: some choice is left


def run(output: Path) -> int:
    """Prints the table of `outrider bench serve`; 1 when a policy changed what was written."""
    options = start.ServeOptions(model=small_model(output), engine=ENGINE)
    tokenizer = start.tokenizer_of(options)
    engine, _ = start.open_engine(options)
    context = engine.info["context"]
    engine.close()
    source = load.poisson(ROWS, SEED, prompt_mean=PROMPT_MEAN, written_mean=WRITTEN_MEAN)
    shaped = load.shape("poisson", source, count=ROWS, scale=1, context=context)
    domains = domain_tokens(None, lambda text: tokenizer.encode(text, special=False))
    result = compare.compare(
        compare.Plan(
            open_engine=lambda name: start.open_engine(replace(options, policy=name)),
            prepared=Prepared(shaped, prompts_of(shaped, domains, SEED)),
            rates=(RATE,),
            repetitions=1,
            say=lambda _: None,
        )
    )
    print(f"\n{len(shaped.rows)} requests, at {RATE} times the rate that chunked_fcfs keeps up with:\n")
    print(result["table"], end="")
    same = result["texts_equal"]
    print(f"\nEvery policy wrote texts of the same experts: {'yes' if same else 'NO'}.")
    print("So short a run is a look, no measurement.")
    return 0 if same else 1
