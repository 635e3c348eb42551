"""Policies that turn into FedAvg when nothing is scarce; and one that does not."""

from __future__ import annotations

import numpy as np
import pytest

from tests.laws.playing import learned, tables

AGES_S = 1e9
SPEEDS = {"n_devices": 5, "compute": {"step_s": [1.0, 1.25, 2.0, 2.5, 3.0], "task_factor": {"kind": "exponential"}}}
ONE_STEP = {
    "k_sync": {"kind": "k_sync", "k": 5},
    "salf": {"kind": "salf", "deadline_s": AGES_S},
    "salf, inverse_probability": {"kind": "salf", "deadline_s": AGES_S, "rule": "inverse_probability"},
    "salf, diluted": {"kind": "salf", "deadline_s": AGES_S, "rule": "diluted"},
    "fedpmt": {"kind": "fedpmt", "budget_s": AGES_S, "local_steps": 1, "weighting": "uniform"},
    "drop_stragglers": {"kind": "drop_stragglers", "deadline_s": AGES_S, "local_steps": 1},
    "heterofl": {"kind": "heterofl", "rates": [1.0] * 5, "local_steps": 1},  # everybody has every class: no mask
    "heterofl, budget": {"kind": "heterofl", "budget_s": AGES_S, "local_steps": 1, "dilute": True},
    "feddrop": {"kind": "feddrop", "deadline_s": AGES_S, "local_steps": 1},
    "feddrop, contributors": {"kind": "feddrop", "kept_shares": [1.0] * 5, "local_steps": 1, "fill": "contributors"},
}
SAME = {"rtol": 1e-12, "atol": 1e-13}  # float64, weights and losses of order 1


def values(tiny, policy, **changes):
    training = {"batch_size": 8, "dtype": "float64", **changes}
    return tiny(fleet=SPEEDS, policies=[policy], training=training, stop={"n_rounds": 6}, evaluation={"every_s": 0.5})


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("name", ONE_STEP)
def test_with_nothing_scarce_and_one_local_step_it_is_fedavg(tiny, name, engine):
    fedavg = {"kind": "fedavg", "local_steps": 1, "weighting": "uniform"}
    own, reference = (values(tiny, policy, engine=engine) for policy in (ONE_STEP[name], fedavg))
    for found, expected in zip(learned(own), learned(reference), strict=True):
        np.testing.assert_allclose(found, expected, **SAME)
    found, expected = tables(own), tables(reference)
    assert found["rounds"]["end_s"].tolist() == expected["rounds"]["end_s"].tolist()
    assert found["evaluations"]["accuracy"].tolist() == expected["evaluations"]["accuracy"].tolist()
    np.testing.assert_allclose(found["evaluations"]["loss"], expected["evaluations"]["loss"], **SAME)
    assert found["evaluations"]["loss"].nunique() == 6, "the start and five rounds, each with its own loss"


@pytest.mark.parametrize(
    ("entry", "weighting"),
    [
        ({"kind": "fedpmt", "budget_s": AGES_S}, "n_samples"),
        ({"kind": "fedpmt", "budget_s": AGES_S, "weighting": "uniform"}, "uniform"),
        ({"kind": "drop_stragglers", "deadline_s": AGES_S}, "uniform"),
        ({"kind": "drop_stragglers", "deadline_s": AGES_S, "dilute": True}, "uniform"),
        ({"kind": "heterofl", "rates": [1.0] * 5, "masked_loss": False}, "uniform"),
        ({"kind": "heterofl", "rates": [1.0] * 5, "masked_loss": False, "weighting": "n_samples"}, "n_samples"),
        ({"kind": "feddrop", "deadline_s": AGES_S}, "uniform"),
        ({"kind": "feddrop", "deadline_s": AGES_S, "weighting": "n_samples", "fill": "contributors"}, "n_samples"),
    ],
)
def test_with_several_local_steps_too_where_the_policy_has_them(tiny, entry, weighting):
    """Devices with unequal amounts of data, so that the two weightings differ."""
    data = {"kind": "gaussian_blobs", "n_samples": 100, "n_features": 4, "n_classes": 3}
    data["partition"] = {"kind": "dirichlet", "alpha": 1.0}
    own = {**values(tiny, {**entry, "local_steps": 3}), "data": data}
    fedavg = {**own, "policies": [{"kind": "fedavg", "local_steps": 3, "weighting": weighting}]}
    np.testing.assert_allclose(learned(own)[0], learned(fedavg)[0], **SAME)
    other = {"uniform": "n_samples", "n_samples": "uniform"}[weighting]
    differs = {**own, "policies": [{"kind": "fedavg", "local_steps": 3, "weighting": other}]}
    assert np.abs(learned(own)[0] - learned(differs)[0]).max() > 1e-3


def test_stsyn_that_waits_for_everyone_is_not_fedavg_because_fast_devices_run_on(tiny):
    stsyn = values(tiny, {"kind": "stsyn", "k": 5, "local_steps": 2})
    fedavg = values(tiny, {"kind": "fedavg", "local_steps": 2, "weighting": "uniform"})
    assert tables(stsyn)["rounds"]["end_s"].tolist() == tables(fedavg)["rounds"]["end_s"].tolist()
    n_steps = tables(stsyn)["tasks"].groupby("round")["n_steps"]
    assert (n_steps.min() == 2).all()
    assert (n_steps.max() > 2).all()
    assert np.abs(learned(stsyn)[0] - learned(fedavg)[0]).max() > 1e-3


def test_among_equally_fast_devices_stsyn_that_waits_for_everyone_is_fedavg(tiny):
    """The other side of the coin: nobody can run on."""
    alike = {"n_devices": 5, "compute": {"step_s": 1.5}}
    stsyn = {**values(tiny, {"kind": "stsyn", "k": 5, "local_steps": 2}), "fleet": alike}
    fedavg = {**stsyn, "policies": [{"kind": "fedavg", "local_steps": 2, "weighting": "uniform"}]}
    np.testing.assert_allclose(learned(stsyn)[0], learned(fedavg)[0], **SAME)
