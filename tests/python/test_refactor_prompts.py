"""The prompts that come along, and what counts as an answer."""

from outrider.refactor.prompts import Prompt, answered, load_prompts


def test_there_are_enough_prompts_each_once_and_none_gives_its_answer_away():
    prompts = load_prompts()
    assert len(prompts) >= 120 and len({prompt.text for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert prompt.text == prompt.text.strip() and prompt.answer == prompt.answer.strip() != ""
        assert f" {prompt.answer} " not in f" {prompt.text} "


def test_an_answer_is_a_whole_word_at_the_beginning():
    prompt = Prompt("The chemical symbol for gold is", "Au")
    assert prompt.answered_by(" Au, which is") and prompt.answered_by("\nAu")
    assert not prompt.answered_by(" Australia") and not prompt.answered_by(" not Au") and not prompt.answered_by("")
    right = answered(lambda text: " Paris." if "France" in text else " Rome.", load_prompts()[:2])
    assert right == [True, True]
    assert answered(lambda text: " nothing", load_prompts()) == [False] * len(load_prompts())
