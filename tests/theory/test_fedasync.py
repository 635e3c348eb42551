"""What every upload's version comes to: beside counts along paths, enumerations, exact fractions, and simulated means."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import prod
from typing import Any

import numpy as np
import pytest

from fedsim.delays import AnyLaw, Constant, Exponential, Gamma, Lognormal, Pareto
from fedsim.protocols import NoClosedForm
from fedsim.theory import fedasync
from fedsim.theory.asynchronous_rounds import Cycles, _rates_of_some
from fedsim.theory.fedasync import Weighting, discount
from tests.theory.paths import assert_mean, path
from tests.theory.stories import SHAPE, fleet

UNEQUAL_S = [0.5, 0.5, 1.0, 1.0, 2.0, 3.0]


@dataclass(frozen=True)
class Policy:
    local_steps: int = 2
    mixing_share: float = 0.6
    staleness_weighting: Weighting = "polynomial"
    staleness_exponent: float | None = None
    hinge_slope: float | None = None
    hinge_start: int | None = None
    concurrency: int | None = None


def found(policy: Policy, on: Any) -> dict[str, list[Any]]:
    """By quantity."""
    by_name: dict[str, list[Any]] = {}
    for one in fedasync.expected(policy, on):
        by_name.setdefault(one.quantity, []).append(one)
    return by_name


def the(name: str, policy: Policy, on: Any) -> Any:
    (one,) = [one for one in found(policy, on)[name] if one.device is None and not one.layer]
    return one


# ---- weights --------------------------------------------------------------------------------------------------------


def test_discounts_are_those_of_the_paper() -> None:
    s = np.array([0, 1, 3, 4, 5, 14])
    np.testing.assert_array_equal(discount(s, "constant"), np.ones(6))
    np.testing.assert_allclose(discount(s, "polynomial"), (s + 1.0) ** -0.5, rtol=1e-15)
    np.testing.assert_allclose(discount(s, "hinge"), [1, 1, 1, 1, 1 / 11, 1 / 101], rtol=1e-15)
    np.testing.assert_allclose(discount(s, "hinge", hinge_slope=0.5, hinge_start=3), [1, 1, 1, 1 / 1.5, 0.5, 1 / 6.5])


@pytest.mark.parametrize(
    ("changes", "f"),
    [
        ({}, lambda s: 1 / np.sqrt(s + 1)),
        ({"staleness_exponent": 2.0}, lambda s: 1 / (s + 1) ** 2),
        ({"staleness_weighting": "hinge"}, lambda s: 1.0 if s <= 4 else 1 / (10 * (s - 4) + 1)),
        ({"staleness_weighting": "hinge", "hinge_slope": 1.0, "hinge_start": 0}, lambda s: 1 / (s + 1)),
    ],
)
def test_the_mean_weight_is_that_of_geometric_staleness(changes: dict[str, Any], f: Any) -> None:
    """Shares 1/2, 1/4, 1/4: sum_i p_i sum_s p_i (1 - p_i)^s f(s), in fractions."""
    on = fleet([0.5, 1.0, 1.0], task_factor=Exponential())
    shares = [Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)]
    expected = sum(float(p * p * (1 - p) ** s) * f(s) for p in shares for s in range(250))
    assert the("weight_sum", Policy(mixing_share=0.3, **changes), on).mean == pytest.approx(0.3 * expected, rel=1e-12)


def test_constant_weights_do_not_vary() -> None:
    one = the("weight_sum", Policy(staleness_weighting="constant"), fleet([1.0, 2.0], task_factor=Gamma(2.0)))
    assert (one.mean, one.variance) == (0.6, 0.0)


def test_a_single_device_is_never_late() -> None:
    on = fleet([1.0], task_factor=Exponential())
    assert the("staleness", Policy(), on).mean == 0.0
    assert the("weight_sum", Policy(), on).mean == pytest.approx(0.6, rel=1e-15)
    assert found(Policy(), on)["participation"][0].mean == 1.0


# ---- who uploads how often ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_work", [1, 2, 4, 5])
def test_rates_where_some_are_idle_are_ratios_of_symmetric_polynomials(at_work: int) -> None:
    m = [0.1, 1.0, 1.0, 2.5, 40.0, 7.0]

    def e(j: int, values: list[float]) -> float:
        return sum(prod(some) for some in combinations(values, j))

    expected = [e(at_work - 1, [*m[:i], *m[i + 1 :]]) / e(at_work, m) for i in range(len(m))]
    np.testing.assert_allclose(_rates_of_some(np.array(m), at_work), expected, rtol=1e-11)


def test_rates_where_some_are_idle_solve_the_markov_chain() -> None:
    """Exponential cycles: the stationary law of the set at work, from its generator, 4 devices of which 2 work."""
    m = np.array([0.5, 1.0, 3.0, 4.0])
    sets = list(combinations(range(4), 2))
    q = np.zeros((len(sets), len(sets)))
    for a, now in enumerate(sets):
        for out in now:
            for into in [out, *(set(range(4)) - set(now))]:
                after = tuple(sorted({*now, into} - ({out} - {into})))
                q[a, sets.index(after)] += 1 / m[out] / 3
                q[a, a] -= 1 / m[out] / 3
    law = np.linalg.lstsq(np.vstack([q.T, np.ones(len(sets))]), np.array([0.0] * len(sets) + [1.0]), rcond=None)[0]
    rates = [sum(p for p, now in zip(law, sets, strict=True) if i in now) / m[i] for i in range(4)]
    np.testing.assert_allclose(_rates_of_some(m, 2), rates, rtol=1e-11)


def test_rates_of_thousands_of_devices_do_not_overflow() -> None:
    """Equal devices share the rate of those at work; a device works rate x cycle of the time, all together as many as do."""
    np.testing.assert_allclose(_rates_of_some(np.full(1000, 2.0), 300), 300 / 1000 / 2.0, rtol=1e-10)
    many = _rates_of_some(np.repeat([1.0, 2.0, 4.0], 1000), 1500)
    assert (many * np.repeat([1.0, 2.0, 4.0], 1000)).sum() == pytest.approx(1500, rel=1e-9)


LAWS: list[AnyLaw] = [Exponential(), Gamma(4.0), Gamma(0.5), Exponential(mean=1.0, shift=0.7), Lognormal(sigma=0.8)]


@pytest.mark.parametrize("at_work", [None, 3])
@pytest.mark.parametrize("law", LAWS, ids=repr)
def test_in_the_long_run_versions_last_and_devices_share_as_stated(law: AnyLaw, at_work: int | None) -> None:
    """Forty independent paths, each after its start is forgotten; whatever the law, only its mean counts."""
    on = fleet(UNEQUAL_S, download_s=0.1, latency_s=[0.0, 0.1, 0.2, 0.3, 0.4, 0.5], task_factor=law)
    policy = Policy(concurrency=at_work)
    settled = int(the("settled_after", policy, on).mean)
    runs = [path(on, 2, settled + 1500, seed, at_work=at_work) for seed in range(40)]
    assert_mean(np.array([run.round_s[settled:].mean() for run in runs]), the("round_s", policy, on).mean)
    for one in found(policy, on)["participation"]:
        assert_mean(np.array([(run.device[settled:] == one.device).mean() for run in runs]), one.mean)


def test_work_that_counts_is_that_of_the_devices_by_their_rates() -> None:
    on = fleet([0.5, 2.0], n_rows=[16, 4], task_factor=Gamma(3.0))
    one = the("used_flops", Policy(), on)
    assert one.mean == pytest.approx(2 * SHAPE.step_flops[-1] * (0.8 * 16 + 0.2 * 4))
    assert one.variance is None


# ---- exponential cycles: from the first round on ----------------------------------------------------------------------


def test_memoryless_rounds_are_independent_from_the_start() -> None:
    """One long path: seconds, whose upload it is, and its work; with the closed forms' own variances."""
    on = fleet(UNEQUAL_S, n_rows=[16, 8, 16, 4, 16, 2], task_factor=Exponential())
    run = path(on, 2, 40_000, 5)
    time, work = the("round_s", Policy(), on), the("used_flops", Policy(), on)
    assert_mean(run.round_s, time.mean, time.variance)
    assert_mean((run.round_s - time.mean) ** 2, time.variance)
    for at_s in (0.05, 0.2, 0.6):
        assert_mean((run.round_s <= at_s).astype(float), float(time.time.cdf(at_s)[0]))
    flops = 2 * on.n_rows[run.device[:, 0]] * SHAPE.step_flops[-1]
    assert_mean(flops, work.mean, work.variance)
    assert_mean((flops - work.mean) ** 2, work.variance)
    for one in found(Policy(), on)["participation"]:
        assert_mean((run.device[:, 0] == one.device).astype(float), one.mean, one.variance)
    lags = np.corrcoef(run.round_s[:-1], run.round_s[1:])[0, 1], np.corrcoef(flops[:-1], run.round_s[1:])[0, 1]
    assert max(map(abs, lags)) < 4.5 / np.sqrt(40_000)


def test_equal_memoryless_devices_of_which_some_are_idle_make_versions_at_the_rate_of_those_at_work() -> None:
    on, policy = fleet([2.0] * 6, task_factor=Exponential()), Policy(concurrency=4)
    run, time = path(on, 2, 20_000, 6, at_work=4), the("round_s", policy, on)
    assert time.mean == pytest.approx(2 * 2.0 / 4)
    assert_mean(run.round_s, time.mean, time.variance)
    law = Cycles.of(on, 2, 4, 1).staleness()
    assert [(part, one.rate_share) for part, one in law] == [(1.0, 0.25)]


def test_one_step_with_an_exponential_factor_is_memoryless_and_two_are_not() -> None:
    on = fleet([1.0, 1.0], step_factor=Exponential())
    assert Cycles.of(on, 1, None, 1).is_exponential
    assert not Cycles.of(on, 2, None, 1).is_exponential
    assert not Cycles.of(fleet([1.0, 1.0], latency_s=0.1, task_factor=Exponential()), 1, None, 1).is_exponential
    assert not Cycles.of(fleet([1.0] * 2, task_factor=Exponential(shift=0.1)), 1, None, 1).is_exponential


# ---- staleness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_work", [None, 1, 4])
@pytest.mark.parametrize("law", [Exponential(), Gamma(4.0), Pareto(shape=1.2)], ids=repr)
def test_what_is_late_and_what_is_under_way_add_up_to_the_others_at_work(law: AnyLaw, at_work: int | None) -> None:
    """Integers, along a path, from the common start on."""
    on = fleet(UNEQUAL_S, task_factor=law)
    run = path(on, 2, 777, 7, at_work=at_work)
    n_others = (at_work or 6) - 1
    assert run.staleness.sum() + run.age.sum() == n_others * 777
    one = the("staleness", Policy(concurrency=at_work), on)
    assert (one.mean, one.variance) == (n_others, 0.0)


def test_the_law_of_the_staleness_is_the_mixture_of_the_devices() -> None:
    on = fleet(UNEQUAL_S, task_factor=Exponential())
    late = np.array([path(on, 2, 600, seed).staleness[400:, 0] for seed in range(150)])
    law = Cycles.of(on, 2, None, 1).staleness()
    assert sum(part for part, _ in law) == pytest.approx(1.0)
    assert sum(part * one.mean for part, one in law) == pytest.approx(5.0)
    for k in (1, 3, 8, 20):
        expected = sum(part * float(one.survival(k)) for part, one in law)
        assert_mean((late >= k).mean(axis=1), expected)


# ---- how long the start is remembered ---------------------------------------------------------------------------------


def remembered(law: AnyLaw, n_devices: int = 1) -> float:
    """In cycles."""
    return Cycles.of(fleet([1.0] * n_devices, task_factor=law), 1, None, 1).settled_after() / n_devices


@pytest.mark.parametrize("n_phases", [3, 10, 40, 200])
def test_erlang_cycles_forget_their_start_within_the_stated_rounds(n_phases: int) -> None:
    """The renewal density of Erlang cycles, a sum over roots of unity w: 1 + sum w exp(k (w - 1) t), at unit mean."""
    t = remembered(Gamma(float(n_phases)))
    w = np.exp(2j * np.pi * np.arange(1, n_phases) / n_phases)
    assert abs(float((w * np.exp(n_phases * (w - 1) * t)).sum().real)) < 1e-4


def test_the_start_is_remembered_longer_by_more_regular_and_by_more_irregular_cycles() -> None:
    memories = [remembered(law) for law in (Gamma(1000.0), Gamma(50.0), Exponential(), Gamma(0.1), Gamma(0.01))]
    assert np.argmin(memories) == 2
    assert memories[0] > memories[1] > memories[2] < memories[3] < memories[4]
    assert remembered(Exponential(), 20) == pytest.approx(remembered(Exponential()), abs=1.0)


def test_a_device_that_comes_back_rarely_keeps_its_first_model_for_long() -> None:
    """The last one that may still have it is heard of with probability 1 - 1e-4 by then."""
    on = fleet([1.0] * 9 + [20.0], task_factor=Exponential())
    cycles = Cycles.of(on, 1, None, 1)
    assert (1 - cycles.share[-1]) ** cycles.settled_after() < 1.1e-4


# ---- what has none ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("laws", "name", "words"),
    [
        ({}, "settled_after", "phases of devices can lock"),
        ({"task_factor": Constant(2.0)}, "settled_after", "needs cycles of a continuous law"),
        ({"task_factor": Gamma(2.0)}, "weight_sum", "needs exponential cycles"),
        ({"task_factor": Pareto(shape=0.9)}, "round_s", "finite mean"),
        ({"task_factor": Pareto(shape=1.5)}, "settled_after", "finite variance"),
        ({"task_factor": Exponential(), "layer_factor": Gamma(2.0)}, "round_s", "random factor of their own"),
        ({"task_factor": Exponential(), "has_fixed_links": False}, "round_s", "transfer times that are fixed"),
    ],
)
def test_what_has_no_closed_form_says_why(laws: dict[str, Any], name: str, words: str) -> None:
    one = the(name, Policy(), fleet([1.0, 2.0], **laws))
    assert one.mean is None
    assert words in one.reason


def test_too_many_speeds_are_refused_where_some_are_idle() -> None:
    with pytest.raises(NoClosedForm, match="300 different speeds"):
        _rates_of_some(np.linspace(1.0, 2.0, 301), 7)


def test_infinite_variance_still_has_a_throughput() -> None:
    """A Pareto law of shape 1.5 from 1 on has mean 3."""
    on = fleet([1.0, 2.0], task_factor=Pareto(shape=1.5, minimum=1.0))
    assert fedasync.cycles(Policy(), on).throughput_per_s == pytest.approx(1.5 / (2 * 3.0), rel=1e-12)
