"""Widths within a budget and the round times that follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
from scipy import integrate

from fedsim import from_dict
from fedsim.commands.validate import validate
from fedsim.delays import Exponential, Gamma
from fedsim.facts import Array
from fedsim.theory import fedpmt
from tests.theory.stories import SHAPE, Played, assert_agree, fleet, mean_weights, shares, step_ends_s


@dataclass(frozen=True)
class Policy:
    budget_s: float | None = None
    depths: tuple[int, ...] | None = None
    local_steps: int = 5
    weighting: Literal["uniform", "n_samples"] = "uniform"
    dilute: bool = False


COST = SHAPE.step_flops / SHAPE.step_flops[-1]


def played(on: object, policy: Policy, depth: Array, n_rounds: int, seed: int) -> Played:
    """Everyone with a width is asked and waited for."""
    from fedsim.theory.fleet import Fleet

    assert isinstance(on, Fleet)
    n = policy.local_steps
    ends_s = step_ends_s(on, n_rounds, n, np.random.default_rng(seed), share=COST[depth])
    takes_part = depth > 0
    upload_s = on.upload_s[np.arange(on.n_devices), depth]
    arrived_s = np.where(takes_part, ends_s[:, :, -1] + upload_s, 0.0)
    round_s = arrived_s.max(axis=1)
    depths = np.broadcast_to(depth, arrived_s.shape)
    weights = mean_weights(depths)
    if policy.dilute:
        weight = takes_part * (on.n_samples if policy.weighting == "n_samples" else 1.0)
        weights = np.where(weights > 0, (weight / weight.sum())[:, None], 0.0)
    asked = np.where(takes_part, 1.0, 0.0) * np.ones((n_rounds, 1))
    return Played(
        on, int(takes_part.sum()), round_s, depths, weights, (n * asked).astype(np.int64), n, asked, depths,
        shares(round_s, np.zeros_like(arrived_s), np.broadcast_to(on.download_s, depths.shape)) * asked,
    )  # fmt: skip


def test_a_width_is_the_most_that_the_budget_pays() -> None:
    """Speeds at which the budget is exactly depth 3, 2, 1, and just short of 1."""
    speeds = np.array([*COST[:0:-1], COST[1] * (1 - 1e-6)])
    cost_s = COST[1:] / speeds[:, None]
    assert fedpmt.widths_within(cost_s, 1.0).tolist() == [3, 2, 1, 0]


def test_widths_count_means_of_laws() -> None:
    on = fleet([1.0, 2.0, 4.0], task_factor=Gamma(shape=2.0, mean=1.5), step_factor=Exponential(mean=2.0))
    budget_s = 5 * 1.5 * 2.0 * 2.0 * COST[2]  # device 1 exactly reaches depth 2
    expected = [int((u * COST[1:] <= 2.0 * COST[2] * (1 + 1e-9)).sum()) for u in (1.0, 2.0, 4.0)]
    assert fedpmt.widths(Policy(budget_s), on).tolist() == expected
    assert expected[1] == 2


def test_saved_compute_is_one_minus_the_mean_cost() -> None:
    cost = [0.0, 1.0, 3.0, 8.0]
    assert fedpmt.saved_share(cost, [3, 3]) == pytest.approx(0.0)
    assert fedpmt.saved_share(cost, [3, 2, 1, 0]) == pytest.approx(1 - 12 / 32)


def test_the_slowest_of_shifted_exponentials_is_the_integral() -> None:
    """1 - prod_k (1 - exp(-(t / g_k - a)^+ / b)), adaptively."""
    g, a, b = np.array([1.0, 0.7, 2.0]), 0.5, 1.5

    def survival(t: float) -> float:
        return float(1 - np.prod(-np.expm1(-np.maximum(t / g - a, 0.0) / b)))

    expected = integrate.quad(survival, 0, 120, points=sorted(a * g), epsabs=1e-12, limit=400)[0]
    found = fedpmt.round_time(g.tolist(), task_factor=Exponential(mean=a + b, shift=a))
    assert found.mean_s == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dilute", [False, True])
def test_rounds_agree_with_numpy(dilute: bool) -> None:
    on = fleet(
        [1.0, 2.0, 0.5, 3.0, 1.0],
        download_s=[0.1, 0.2, 0.1, 0.3, 0.0],
        latency_s=0.05,
        seconds_per_byte=[0.001, 0.002, 0.003, 0.001, 0.002],
        n_rows=[16, 8, 16, 4, 16],
        step_factor=Exponential(mean=1.0, shift=0.4),
    )
    policy = Policy(depths=(2, 1, 3, 0, 1), local_steps=3, weighting="n_samples", dilute=dilute)
    assert_agree(fedpmt.expected(policy, on), played(on, policy, np.array(policy.depths), 60_000, seed=4))


def test_a_layer_that_nobody_trains_is_always_empty() -> None:
    on = fleet([1.0, 1.0])
    policy = Policy(depths=(1, 2))
    found = {(one.quantity, one.layer): one.mean for one in fedpmt.expected(policy, on)}
    assert [found["is_layer_empty", layer] for layer in range(3)] == [1.0, 0.0, 0.0]
    assert [found["weight_sum", layer] for layer in range(3)] == [0.0, 1.0, 1.0]


def test_stated_widths_are_charged_the_rows_of_uneven_batches() -> None:
    """Steps that are drawn one by one leave the fleet as it is: the rows of a task must be counted, not steps times rows."""
    scenario = from_dict(
        {
            "name": "uneven",
            "train": False,
            "fleet": {"n_devices": 6, "compute": {"step_s": 1.0, "step_factor": {"kind": "gamma", "shape": 4}}},
            "data": {"kind": "gaussian_blobs", "n_samples": 137, "n_features": 4, "n_classes": 2},
            "model": {"kind": "mlp", "widths": [6, 5]},
            "training": {"local_steps": 5, "batch_size": 8},
            "policies": [{"kind": "fedpmt", "depths": [1, 2, 3, 1, 2, 3]}],
            "seeds": [1],
            "stop": {"n_rounds": 20},
        }
    )
    (row,) = [row for row in validate([(None, scenario)], n_rounds=20) if row.quantity == "used_flops"]
    assert row.agrees


def test_a_budget_within_which_nobody_trains_a_layer_has_no_closed_form() -> None:
    """The policy refuses it too; a slider may pass through it."""
    found = fedpmt.expected(Policy(budget_s=1e-9), fleet([1.0] * 4))
    assert {one.reason for one in found if one.quantity != "is_empty"} == {
        "needs a budget within which at least one device trains a layer"
    }
