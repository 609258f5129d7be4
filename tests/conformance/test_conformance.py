"""The first samples of torch's own operator, module and optimizer databases, bit for bit."""

import pytest
import runner
from cases import DATABASES

pytestmark = pytest.mark.timeout(600)

SAMPLES = 2
SHARDS = {"op": 12, "module": 3, "optim": 3}
SKIPPED_SHARE_MAX = 0.05
COVERED_SHARE_MIN = 0.6


@pytest.mark.parametrize("database", DATABASES)
def test_skip_list_is_short_and_current(database):
    """At most 5 % of the entries are skipped, each exists and has a reason."""
    names = {name for name, _ in DATABASES[database][0]()}
    skips = runner.SKIPS[database]
    assert skips.keys() <= names
    assert all(len(reason) > 10 for reason in skips.values())
    assert len(skips) <= SKIPPED_SHARE_MAX * len(names)


@pytest.mark.parametrize("database,shard", [(name, k) for name, count in SHARDS.items() for k in range(count)])
def test_shard(database, shard):
    """Every entry of the shard agrees with eager, and most of them were really covered."""
    verdicts = [
        runner.check_entry(database, name, info, SAMPLES)
        for name, info in runner.entries(database)[shard :: SHARDS[database]]
    ]
    failures = [line for verdict in verdicts for line in verdict.failures]
    assert not failures, f"{len(failures)} disagreements:\n  " + "\n  ".join(failures[:25])
    ran = [verdict for verdict in verdicts if verdict.samples]
    assert len(ran) >= 0.9 * len(verdicts), "entries without a single sample"
    by_itself = [verdict.entry for verdict in ran if verdict.by_itself]
    assert len(by_itself) <= 0.1 * len(ran), f"eager differs from eager: {by_itself}"
    raising = [verdict.entry for verdict in ran if verdict.raised]
    assert len(raising) <= 0.02 * len(ran), f"eager raises: {raising}"
    covered = sum(verdict.covered > 0 for verdict in ran) / len(ran)
    assert covered >= COVERED_SHARE_MIN, f"only {covered:.2f} of the entries were covered"


@pytest.mark.long
def test_all_samples_of_all_databases():
    """Every sample; leaves docs/results/conformance.json."""
    import run_all

    assert run_all.main([]) == 0
