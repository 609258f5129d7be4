"""The policies of serving on one short recorded load, with the small model of the refactoring demo."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from outrider.demo.serve import small_model
from outrider.serve import start
from outrider.serve.replay import compare, load
from outrider.serve.replay.figures import apart_from_best, spread_table
from outrider.serve.replay.load_file import Prepared
from outrider.serve.replay.texts import domain_tokens, prompts_of

ROWS, SEED, REPETITIONS = 600, 0, 5  # about a second each; fewer rows are over before one hiccup of the machine is
PROMPT_MEAN, WRITTEN_MEAN = 48, 16
RATE = 0.9  # of what chunked_fcfs does at most; above 1 a longer run only has a longer queue
CALM, FACTOR = 0.3, 10.0  # goals: so many times the medians of chunked_fcfs at that rate, for all policies
ENGINE: dict[str, int | float | bool] = {"decode_tokens": 8}  # fewer than run at once: some choice is left


def run(output: Path) -> int:
    """Prints a table of all policies; 1 when a policy changed what was written."""
    options = start.ServeOptions(model=small_model(output), engine=ENGINE)
    options = replace(options, loaded=start.load_model(options))
    tokenizer = start.tokenizer_of(options)
    engine, _ = start.open_engine(options)
    context = engine.info["context"]
    engine.close()
    source = load.poisson(ROWS, SEED, prompt_mean=PROMPT_MEAN, written_mean=WRITTEN_MEAN)
    shaped = load.shape("poisson", source, count=ROWS, scale=1, context=context)
    domains = domain_tokens(None, lambda text: tokenizer.encode(text, special=False))
    plan = compare.Plan(
        open_engine=lambda name: start.open_engine(replace(options, policy=name)),
        prepared=Prepared(shaped, prompts_of(shaped, domains, SEED)),
        rates=(RATE,),
        repetitions=REPETITIONS,
        factors=(FACTOR, FACTOR),
        calm=CALM,
        say=lambda _: None,
    )
    print(f"\nThe policies on {len(shaped.rows)} requests, {REPETITIONS} times in turns,", flush=True)
    result = compare.compare(plan)
    print(report(result), end="")
    return 0 if result["texts_equal"] else 1


def report(result: dict[str, Any]) -> str:
    """The table, what its goals are, and which differences are larger than the spread."""
    goal, calm = result["goal"], result["alone"]
    best, apart = apart_from_best(result["summary"])
    told = f"{best} has the highest median goodput. Below its lowest run in all of theirs: {', '.join(apart) or 'none'}"
    return (
        f"at {RATE} times the rate that {compare.BASE} keeps up with. Median (lowest to highest):\n\n"
        f"{spread_table(result['summary'])}\n"
        f"Goals, for all: the first token within {1000 * goal['ttft_s']:.0f} ms, then "
        f"{1000 * goal['tpot_s']:.1f} ms a token, {FACTOR:g} times the medians of {compare.BASE} at "
        f"{calm['rate_share']:g} of that rate.\n{told}.\n"
        f"Every policy wrote texts of the same experts: {'yes' if result['texts_equal'] else 'NO'}.\n"
        "So short a run is a look, no measurement.\n"
    )
