"""Many runs: what is told while they go, and what is left when one of them fails."""

from __future__ import annotations

import pytest

import fedsim
from fedsim.campaign import pairs, run_pairs
from fedsim.policies.k_sync import KSync


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_every_run_is_told_of_to_its_end_even_if_it_ends_before_its_horizon(tiny, tmp_path, n_jobs):
    loaded = fedsim.from_dict(tiny(policies=[{"kind": "k_sync", "k": 1}], seeds=[1, 2], stop={"n_rounds": 3}))
    told = []
    run_pairs(
        loaded, pairs(loaded, tmp_path), n_jobs=n_jobs, tell=lambda label, seed, how_far: told.append((seed, how_far))
    )
    for seed in (1, 2):
        last = [how_far for told_of, how_far in told if told_of == seed][-1]
        assert (last.share, last.n_rounds) == (1.0, 3)


class Failing(KSync):
    """A policy with a fault of its own, met in the second round."""

    def rounds(self, server):
        story = KSync(k=1).rounds(server)
        for n, event in enumerate(story):
            if n:
                raise RuntimeError("a fault of the policy's own")
            yield event


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_policy_that_fails_leaves_finished_runs_whole_and_no_half_written_one(tiny, tmp_path, n_jobs):
    loaded = fedsim.from_dict(tiny(stop={"n_rounds": 3}, seeds=[1])).with_policies([KSync(k=1), Failing(k=2)])
    with pytest.raises(RuntimeError, match="a fault of the policy's own"):
        run_pairs(loaded, pairs(loaded, tmp_path), n_jobs=n_jobs)
    done = [pair.contender.kind for pair in pairs(loaded, tmp_path) if pair.is_done]
    assert set(done) <= {"k_sync"}
    if n_jobs == 1:
        assert done == ["k_sync"]
    assert len(fedsim.read(tmp_path / loaded.scenario.name)) == len(done)
