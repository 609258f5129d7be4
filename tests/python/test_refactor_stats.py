"""Statistics against hand-computed cases and plain loops."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outrider.refactor.stats.bootstrap import resample_sums
from outrider.refactor.stats.masks import mask_overlaps
from outrider.refactor.stats.perplexity import compare, domain_loss, geometric_mean
from outrider.refactor.stats.routing import expert_use
from outrider.refactor.stats.tasks import compare_tasks
from outrider.refactor.tasks.scoring import TaskScores


def test_nats_per_token_and_bits_per_byte_weigh_documents_by_length():
    loss = domain_loss([math.log(2) * 10, math.log(2) * 2], [5, 1], [20, 4])
    assert loss.nats_per_token == pytest.approx(2 * math.log(2))
    assert loss.perplexity == pytest.approx(4)
    assert loss.bits_per_byte == pytest.approx(0.5)
    assert domain_loss([1.0], [1]).bits_per_byte is None
    losses = {"a": domain_loss([math.log(2)], [1]), "b": domain_loss([math.log(8) * 3], [3])}
    assert geometric_mean(losses) == pytest.approx(4)


@pytest.mark.parametrize(("nats", "tokens"), [([1.0], [1, 2]), ([], []), ([float("nan")], [1]), ([1.0], [0])])
def test_losses_that_make_no_sense_are_refused(nats, tokens):
    with pytest.raises(ValueError, match=r"must be vectors|needs finite nats"):
        domain_loss(nats, tokens)


def _two_models(gap: float, documents: int = 400):
    random = np.random.default_rng(3)
    tokens = random.integers(50, 500, documents)
    base = random.normal(3, 0.5, documents) * tokens
    noise = random.normal(0, 0.02, documents) * tokens
    return {"x": domain_loss(base + gap * tokens + noise, tokens)}, {"x": domain_loss(base, tokens)}


def test_the_paired_interval_is_far_narrower_than_the_documents_spread():
    ours, base = _two_models(-0.05)
    found = compare(ours, base)
    for interval in (found["x"], found["geometric mean"]):
        assert interval.low < math.exp(-0.05) < interval.high < 1
        assert interval.high - interval.low < 0.01
    assert found == compare(ours, base) and found != compare(ours, base, seed=1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        tokens = np.full(60, 100)
        base = random.normal(300, 30, 60)
        ours = base + random.normal(-2, 10, 60)
        interval = compare(
            {"x": domain_loss(ours, tokens)}, {"x": domain_loss(base, tokens)}, resamples=400, seed=trial
        )
        covered += interval["x"].low < math.exp(-0.02) < interval["x"].high
    assert 178 <= covered <= 198


def test_the_geometric_mean_counts_each_domain_the_same():
    big, small = ([300.0] * 50, [100] * 50), ([30.0], [10])
    ours = {"big": domain_loss(*big), "small": domain_loss([29.0], [10])}
    base = {"big": domain_loss(*big), "small": domain_loss(*small)}
    found = compare(ours, base)
    assert found["big"].value == 1 and found["big"].low == found["big"].high == pytest.approx(1)
    assert found["geometric mean"].value == pytest.approx(math.exp(-0.05))


def test_sides_with_other_documents_cannot_be_compared():
    with pytest.raises(ValueError, match="domains differ"):
        compare({"a": domain_loss([1.0], [1])}, {"b": domain_loss([1.0], [1])})
    with pytest.raises(ValueError, match="a: the two sides scored other documents"):
        compare({"a": domain_loss([1.0], [1])}, {"a": domain_loss([1.0], [2])})


def test_resampling_draws_whole_items_with_replacement():
    rows = np.stack((np.arange(7.0), 10 * np.arange(7.0), np.ones(7)))
    sums = resample_sums(rows, 500, (1, 2))
    assert np.array_equal(sums[1], 10 * sums[0]) and np.array_equal(sums[2], np.full(500, 7.0))
    assert len(np.unique(sums[0])) > 20 and abs(sums[0].mean() - 21) < 1


def test_task_differences_are_paired():
    random = np.random.default_rng(1)
    base = (random.random(500) < 0.5).astype(float)
    ours = base.copy()
    ours[np.flatnonzero(base == 0)[:20]] = 1
    ids = [str(i) for i in range(500)]
    scores = [TaskScores(ids, {"acc": side.tolist(), "perplexity": (-side).tolist()}) for side in (ours, base)]
    found = compare_tasks(*scores)
    assert found["acc"].value == pytest.approx(0.04) and found["acc"].low < 0.04 < found["acc"].high
    assert found["acc"].high - found["acc"].low < 0.045  # unpaired it would be 0.12
    assert found["perplexity"].value == pytest.approx(math.exp(0.04))
    with pytest.raises(ValueError, match="other items"):
        compare_tasks(scores[0], TaskScores(ids[1:], scores[1].values))


def test_expert_use_of_a_text_by_hand():
    use = expert_use([np.array([0, 0, 1, 1, 1, 0]), np.array([0])], 3)
    assert use.load.tolist() == [4, 3, 0] and sorted(use.runs.tolist()) == [1, 1, 2, 3]
    assert use.stay_rate == pytest.approx(3 / 5) and use.imbalance == math.inf
    share = np.array([4, 3]) / 7
    assert use.entropy == pytest.approx(-(share * np.log(share)).sum() / math.log(3))
    assert use.histogram() == [2, 2]
    row = use.row()
    assert row["imbalance"] is None and row["run_mean"] == pytest.approx(7 / 4) and row["run_p90"] == 3
    with pytest.raises(ValueError, match="ids from 0 to 3 for 3 experts"):
        expert_use([np.array([0, 3])], 3)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.lists(st.integers(0, 3), max_size=40), min_size=1, max_size=5).filter(lambda t: any(t)))
def test_expert_use_equals_a_plain_loop(texts):
    use = expert_use([np.array(text, int) for text in texts], 4)
    tokens = sum(map(len, texts))
    stays = sum(a == b for text in texts for a, b in itertools.pairwise(text))
    assert use.load.sum() == use.runs.sum() == tokens and use.stays == stays
    assert use.pairs == tokens - sum(bool(text) for text in texts)
    assert sum(use.histogram()) == use.runs.size == use.pairs - use.stays + sum(bool(text) for text in texts)


def test_mask_overlaps_by_hand():
    signatures = np.array([[0b11, 0b01, 0b10, 0b00], [0b11, 0b11, 0b00, 0b01]], np.uint8)
    found = mask_overlaps(signatures, 2)
    assert found["size"] == [0.625, 0.5]
    assert (found["permanent"], found["union"], found["dead"]) == (0.375, 0.75, 0.25)
    assert found["live_signatures"] == [3, 2]
    assert found["pairs"][0] == [1.0, pytest.approx((1 / 2 + 2 / 3) / 2)]
    assert found["swap"] == [[0.0, 0.125], [0.25, 0.0]]
