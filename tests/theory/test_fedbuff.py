"""What a buffer's version comes to: beside counts along paths, enumerations in fractions, and simulated means."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from fedsim.delays import AnyLaw, Exponential, Gamma, Lognormal
from fedsim.theory import fedasync, fedbuff
from fedsim.theory.fedbuff import discount
from tests.theory import test_fedasync
from tests.theory.paths import assert_mean, path
from tests.theory.stories import SHAPE, fleet

UNEQUAL_S = [0.5, 0.5, 1.0, 1.0, 2.0, 3.0]


@dataclass(frozen=True)
class Policy:
    buffer_size: int = 4
    local_steps: int = 2
    concurrency: int | None = None
    staleness_exponent: float = 0.5
    normalise_at: float | None = None
    server_learning_rate: float = 1.0


def found(policy: Policy, on: Any) -> dict[str, list[Any]]:
    """By quantity."""
    by_name: dict[str, list[Any]] = {}
    for one in fedbuff.expected(policy, on):
        by_name.setdefault(one.quantity, []).append(one)
    return by_name


def the(name: str, policy: Policy, on: Any) -> Any:
    (one,) = [one for one in found(policy, on)[name] if one.device is None and not one.layer]
    return one


def test_discounts_are_those_of_the_paper_and_of_its_code() -> None:
    s = np.array([0, 1, 3, 8])
    np.testing.assert_allclose(discount(s), (1.0 + s) ** -0.5, rtol=1e-15)
    np.testing.assert_allclose(discount(s, 1.0, normalise_at=3.0), 4 / (1.0 + s), rtol=1e-15)
    np.testing.assert_array_equal(discount(s, 0.0, 3.0), np.ones(4))


def test_a_buffer_of_one_is_fedasync_on_changes() -> None:
    """All that does not depend on what an upload counts."""
    on = fleet(UNEQUAL_S, n_rows=[16, 8, 16, 4, 16, 2], task_factor=Exponential())
    one = found(Policy(buffer_size=1), on)
    for name, entries in test_fedasync.found(test_fedasync.Policy(), on).items():
        if name != "weight_sum":
            assert [(e.mean, e.variance) for e in entries] == [(e.mean, e.variance) for e in one[name]], name


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_mean_weight_counts_versions_and_not_uploads(size: int) -> None:
    """Shares 1/2, 1/4, 1/4, in fractions: n others upload, the buffer holds 0 ... K-1 when it begins, all alike."""
    on = fleet([0.5, 1.0, 1.0], task_factor=Exponential())
    expected = 0.0
    for p in (Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)):
        for n in range(250):
            late = [(held + n) // size for held in range(size)]
            expected += float(p * p * (1 - p) ** n / size) * sum(((1 + s) / 3) ** -0.7 for s in late)
    policy = Policy(size, staleness_exponent=0.7, normalise_at=2.0, server_learning_rate=0.5)
    assert the("weight_sum", policy, on).mean == pytest.approx(0.5 * expected, rel=1e-12)


def test_memoryless_rounds_are_independent_from_the_start() -> None:
    on = fleet(UNEQUAL_S, n_rows=[16, 8, 16, 4, 16, 2], task_factor=Exponential())
    run, policy = path(on, 2, 15_000, 11, size=4), Policy()
    time, work = the("round_s", policy, on), the("used_flops", policy, on)
    assert_mean(run.round_s, time.mean, time.variance)
    assert_mean((run.round_s - time.mean) ** 2, time.variance)
    flops = (2 * on.n_rows[run.device] * SHAPE.step_flops[-1]).sum(axis=1)
    assert_mean(flops, work.mean, work.variance)
    assert_mean((flops - work.mean) ** 2, work.variance)
    for one in found(policy, on)["participation"]:
        assert_mean((run.device == one.device).any(axis=1).astype(float), one.mean, one.variance)
    for one in found(policy, on)["n_steps"]:
        if one.device is not None:
            steps = 2 * (run.device == one.device).sum(axis=1)
            assert_mean(steps, one.mean, one.variance)
            assert_mean((steps - one.mean) ** 2, one.variance)


@pytest.mark.parametrize("at_work", [None, 4])
@pytest.mark.parametrize("law", [Gamma(6.0), Lognormal(sigma=0.8), Exponential()], ids=repr)
def test_in_the_long_run_versions_last_as_stated(law: AnyLaw, at_work: int | None) -> None:
    on, policy = fleet(UNEQUAL_S, latency_s=0.2, task_factor=law), Policy(concurrency=at_work)
    settled = int(the("settled_after", policy, on).mean)
    runs = [path(on, 2, settled + 400, seed, at_work=at_work, size=4) for seed in range(40)]
    assert_mean(np.array([run.round_s[settled:].mean() for run in runs]), the("round_s", policy, on).mean)


@pytest.mark.parametrize("at_work", [None, 1, 4])
@pytest.mark.parametrize("size", [2, 5, 12])
def test_what_is_late_and_what_is_under_way_add_up_to_the_others_at_work(size: int, at_work: int | None) -> None:
    on = fleet(UNEQUAL_S, task_factor=Gamma(3.0))
    run, n_others = path(on, 2, 123, 13, at_work=at_work, size=size), (at_work or 6) - 1
    assert run.staleness.sum() + run.age.sum() == n_others * 123
    one = the("staleness", Policy(size, concurrency=at_work), on)
    assert (one.mean, one.variance) == (n_others / size, 0.0)


def test_the_law_of_the_staleness_in_versions() -> None:
    on = fleet(UNEQUAL_S, task_factor=Exponential())
    late = np.array([path(on, 2, 300, seed, size=3).staleness[200:] for seed in range(150)])
    law = fedbuff.cycles(Policy(3), on).staleness()
    assert sum(part * one.mean for part, one in law) == pytest.approx(5 / 3)
    for k in (1, 2, 5, 10):
        expected = sum(part * float(one.survival(k)) for part, one in law)
        assert_mean((late >= k).mean(axis=(1, 2)), expected)


def test_a_buffer_settles_in_as_many_fewer_versions_as_it_holds() -> None:
    on = fleet(UNEQUAL_S, task_factor=Gamma(3.0))
    one = fedasync.cycles(test_fedasync.Policy(), on).settled_after()
    assert abs(fedbuff.cycles(Policy(10), on).settled_after() - one / 10) <= 1


def test_who_takes_part_in_a_version_of_several_uploads_needs_memoryless_cycles() -> None:
    on = fleet(UNEQUAL_S, task_factor=Gamma(3.0))
    assert "since a version has several uploads" in the("participation", Policy(), on).reason
    assert found(Policy(1), on)["participation"][0].mean is not None
