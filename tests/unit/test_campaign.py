"""Many runs: what is told while they go, and what is left when one of them fails."""

from __future__ import annotations

import json

import pytest

import fedsim
from fedsim.campaign import pairs, run_pairs
from fedsim.manifest import of_run
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


def test_who_watches_a_run_is_told_what_it_is_and_what_it_has_closed(tiny, tmp_path):
    """Until it is finished: then the folder holds the results and nothing else."""
    loaded = fedsim.from_dict(tiny(seeds=[4], stop={"n_rounds": 3}, evaluation={"every_n_rounds": 1}))
    (pair,) = pairs(loaded, tmp_path)
    partial = pair.folder.with_name(".seed-4.partial")
    seen = []

    def tell(label, seed, how_far):
        if partial.exists():
            started = json.loads((partial / "started.json").read_text())
            lines = (partial / "journal.jsonl").read_text().splitlines()
            seen.append((started["policy"]["label"], started["seed"], [json.loads(line) for line in lines]))

    run_pairs(loaded, [pair], tell=tell)
    assert [(label, seed, len(lines)) for label, seed, lines in seen] == [("fedavg", 4, n) for n in (0, 1, 2)]
    (run,) = fedsim.read(pair.folder)
    told = [row for line in seen[-1][2] for row in line["evaluations"]]
    assert [row["accuracy"] for row in told] == run.evaluations["accuracy"].tolist()[:3]
    assert [line["uploaded_bytes"] for line in seen[-1][2]] == run.rounds["uploaded_bytes"].cumsum().tolist()[:2]
    assert not partial.exists()
    assert not [path.name for path in pair.folder.iterdir() if path.suffix not in (".parquet", ".json")]
    assert not (pair.folder / "started.json").exists()


def test_a_manifest_says_what_the_policy_does(tiny, tmp_path):
    loaded = fedsim.from_dict(tiny(train=False)).with_policies([KSync(k=1), Failing(k=2)])
    first, second = pairs(loaded, tmp_path)
    run_pairs(loaded, [first])
    (run,) = fedsim.read(first.folder)
    assert run.manifest["policy"]["summary"].startswith("K-sync SGD: one gradient from each of the K fastest")
    assert of_run(loaded, second.contender, second.seeds)["policy"]["summary"].startswith("Many runs: what is told")


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
