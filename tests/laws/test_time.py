"""What holds for the clock whatever the fleet: units, names, luck."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.laws.playing import tables

STEP_S = st.lists(st.floats(0.25, 4.0), min_size=5, max_size=5)
EXAMPLES = (Phase.explicit, Phase.generate)  # a failing example is a whole run: shown as it is, not shrunk for minutes
EXPONENTIAL = {"kind": "exponential", "mean": 1.0}


def policies(scale=1.0):
    """An entry for each rule, with every duration multiplied by `scale`."""
    return {
        "fedavg": {"kind": "fedavg"},
        "fedavg, over-selected": {"kind": "fedavg", "n_sampled": 3, "over_selected": 1},
        "drop_stragglers": {"kind": "drop_stragglers", "deadline_s": 3.5 * scale},
        "k_sync": {"kind": "k_sync", "k": 3},
        "stsyn": {"kind": "stsyn", "k": 2},
        "stsyn, capped": {"kind": "stsyn", "k": 2, "cap_factor": 1.5},
        "salf": {"kind": "salf", "deadline_s": 1.25 * scale},
        "salf on arrival": {"kind": "salf", "deadline_s": 1.25 * scale, "deadline_on": "arrival", "p_l": "estimated"},
        "fedpmt": {"kind": "fedpmt", "budget_s": 2.0 * scale},
        "heterofl": {"kind": "heterofl", "budget_s": 4.0 * scale},
        "heterofl, dynamic": {"kind": "heterofl", "rates": [1.0, 0.5, 0.25, 0.5, 0.1], "assignment": "dynamic"},
        "feddrop": {"kind": "feddrop", "deadline_s": 8.0 * scale},
    }


def fleet(step_s, scale=1.0):
    """Five devices with luck on every level that a scenario may state, and links with a latency."""
    link = {"rate_bits_per_s": 40_000 / scale, "latency_s": 0.05 * scale}
    return {
        "n_devices": 5,
        "compute": {
            "step_s": [each * scale for each in step_s],
            "device_factor": {"kind": "lognormal", "sigma": 0.3},
            "task_factor": EXPONENTIAL,
            "step_factor": {"kind": "gamma", "shape": 4.0},
        },
        "uplink": link,
        "downlink": {**link, "rate_bits_per_s": {"kind": "uniform", "low": 20_000 / scale, "high": 90_000 / scale}},
    }


@pytest.mark.parametrize("name", policies())
@settings(max_examples=3, phases=EXAMPLES)
@given(step_s=STEP_S, scale=st.sampled_from([0.5, 2.0, 4.0]), seed=st.integers(0, 1000))
def test_doubling_every_duration_doubles_every_time_stamp_and_changes_no_learning_result(
    tiny, name, step_s, scale, seed
):
    """Bit for bit: a power of two changes only exponents."""

    def played(scale):
        values = tiny(fleet=fleet(step_s, scale), policies=[policies(scale)[name]], seeds=[seed])
        return tables(values | {"evaluation": {"every_s": 0.75 * scale}})

    once, scaled = played(1.0), played(scale)
    for table, columns in once.items():
        for column, values in columns.items():
            expected = values * scale if column.endswith("_s") else values
            pd.testing.assert_series_equal(scaled[table][column], expected, check_exact=True)


@pytest.mark.parametrize(
    "name", ["fedavg", "drop_stragglers", "k_sync", "stsyn", "stsyn, capped", "salf", "fedpmt", "heterofl"]
)
@settings(max_examples=4, phases=EXAMPLES)
@given(step_s=STEP_S, new_name=st.permutations(range(5)))
def test_renaming_devices_changes_names_only(tiny, name, step_s, new_name):
    """Fixed speeds; nobody is sampled. Sums over devices may differ in their last bits: 1e-12."""

    def played(step_s):
        compute = {"step_s": list(step_s)}
        return tables(tiny(fleet={"n_devices": 5, "compute": compute}, policies=[policies()[name]], train=False))

    renamed = np.empty(5)
    renamed[list(new_name)] = step_s
    before, after = played(step_s), played(renamed)
    in_round = ["round", "device", "ordinal"]
    for table, order in (("tasks", in_round), ("milestones", [*in_round, "step", "ended_s"]), ("devices", ["device"])):
        before[table]["device"] = np.array(new_name, before[table]["device"].dtype)[before[table]["device"]]
        before[table] = before[table].sort_values(order, ignore_index=True)
        after[table] = after[table].sort_values(order, ignore_index=True)
    for table, expected in before.items():
        pd.testing.assert_frame_equal(after[table], expected, check_exact=False, rtol=1e-12, atol=0)


@pytest.mark.parametrize("entry", [policies()["drop_stragglers"], policies()["salf"], policies()["salf on arrival"]])
@settings(max_examples=5, phases=EXAMPLES)
@given(
    step_s=STEP_S,
    deadlines_s=st.lists(st.floats(0.05, 8.0), min_size=2, max_size=2).map(sorted),
    seed=st.integers(0, 1000),
)
def test_no_layer_gets_fewer_contributors_by_giving_the_devices_more_time(tiny, entry, step_s, deadlines_s, seed):
    """Every device is asked in every round, so that its n-th task meets the same luck under both deadlines."""

    def n_contributors(deadline_s):
        entries = [{**entry, "deadline_s": deadline_s}]
        found = tables(tiny(fleet=fleet(step_s), policies=entries, seeds=[seed], train=False))
        return found["layers"]["n_contributors"], found["tasks"].set_index(["device", "ordinal"])["depth"]

    (fewer, shallower), (more, deeper) = map(n_contributors, deadlines_s)
    assert (more >= fewer).all()
    if entry["kind"] == "salf":
        assert (deeper >= shallower.reindex(deeper.index)).all()


@pytest.mark.parametrize("name", policies())
def test_a_run_that_trains_nothing_takes_the_same_time(tiny, name):
    """Also with an uneven last batch of an epoch, which costs less."""
    values = tiny(
        fleet=fleet([1.0, 1.5, 2.0, 2.5, 3.0]),
        policies=[policies()[name]],
        training={"local_steps": 3, "batch_size": 6},
    )
    trained, timed = tables(values), tables({**values, "train": False})
    pd.testing.assert_frame_equal(timed["tasks"], trained["tasks"], check_exact=True)
    for table in ("classes", "devices"):
        pd.testing.assert_frame_equal(timed[table], trained[table], check_exact=True)
    for table, learned in (("rounds", "computed_flops"), ("layers", "change_norm")):
        unlearned = [found[table].drop(columns=learned) for found in (timed, trained)]
        pd.testing.assert_frame_equal(*unlearned, check_exact=True)
    assert len(timed["evaluations"]) == 0 < len(trained["evaluations"])


def test_a_new_device_leaves_the_luck_of_the_others(tiny):
    def first_round(n_devices):
        compute = {"step_s": 1.0, "device_factor": EXPONENTIAL, "task_factor": EXPONENTIAL, "step_factor": EXPONENTIAL}
        link = {"rate_bits_per_s": {"kind": "uniform", "low": 1e4, "high": 9e4}, "redrawn": "task"}
        values = tiny(
            fleet={"n_devices": n_devices, "compute": compute, "uplink": link, "downlink": link},
            training={"batches": "with_replacement"},
            stop={"n_rounds": 1},
            train=False,
        )
        return tables(values)["tasks"]

    pd.testing.assert_frame_equal(first_round(9).head(5), first_round(5), check_exact=True)
