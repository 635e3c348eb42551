"""Rounds that come in cycles: traffic, round times, and who is asked, beside cycles played in NumPy and tables in print."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.delays import Exponential, Gamma, Pareto
from fedsim.facts import Array, BoolArray, IntArray
from fedsim.protocols import NoClosedForm
from fedsim.theory import fedavg, fedlama, registry
from fedsim.theory.arrivals import kth_arrival
from fedsim.theory.cycles import Cycle
from fedsim.theory.fleet import Expectation, Fleet
from fedsim.theory.published import relaxed_share, traffic_share
from tests.theory.stories import N_LAYERS, SHAPE, fleet


@dataclass(frozen=True)
class Policy:
    local_steps: int = 5
    interval_factor: int = 2
    n_sampled: int | None = None
    relaxed: tuple[int, ...] | None = ()
    crossing: Literal["excluded", "included"] = "excluded"
    over_selected: int = 0  # of the FedAvg that it is compared with


DOWN_LATENCY_S, UP_LATENCY_S = np.array([0.1, 0.3, 0.0, 0.2, 0.1]), np.array([0.05, 0.0, 0.1, 0.4, 0.2])
DOWN_S_PER_BYTE, UP_S_PER_BYTE = np.array([1, 2, 8, 1, 3]) / 1000, np.array([2, 9, 4, 1, 16]) / 1000


def linked(unit_s: list[float], **laws: Any) -> Fleet:
    """Five devices with links of their own."""

    def down_s_of(n_bytes: IntArray) -> Array:
        return np.asarray(DOWN_LATENCY_S + DOWN_S_PER_BYTE * n_bytes)

    def up_s_of(n_bytes: IntArray) -> Array:
        return np.asarray(UP_LATENCY_S + UP_S_PER_BYTE * n_bytes)

    whole = np.full(5, SHAPE.suffix_bytes[-1])
    return fleet(
        unit_s,
        download_s=down_s_of(whole).tolist(),
        latency_s=UP_LATENCY_S.tolist(),
        seconds_per_byte=UP_S_PER_BYTE.tolist(),
        n_rows=[16, 8, 16, 4, 12],
        down_s_of=down_s_of,
        up_s_of=up_s_of,
        **laws,
    )


# ---- cycles played in NumPy -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cycles:
    """round_s: `[cycle, round]`. is_asked: `[cycle, device]`. n_bytes: down and up of a device, `[round]` each."""

    on: Fleet
    policy: Policy
    round_s: Array
    is_asked: BoolArray
    n_bytes: tuple[Array, Array]
    is_due: BoolArray

    def value(self, one: Expectation) -> Array:
        """Mean over the rounds of each cycle, `[cycle]`."""
        n, steps = self.is_asked.sum(axis=1), self.policy.local_steps
        if one.device is not None:
            return np.asarray(self.is_asked[:, one.device] * (steps if one.quantity == "n_steps" else 1.0))
        if one.layer is not None:
            due = self.is_due[:, one.layer]  # [round]
            by_layer = {"n_contributors": n[:, None] * due, "is_layer_empty": ~due & (n[:, None] > 0)}
            return np.asarray(by_layer.get(one.quantity, due & (n[:, None] > 0)).mean(axis=1), dtype=np.float64)
        flops = steps * self.on.n_rows * SHAPE.step_flops[-1]
        values: dict[str, Any] = {
            "round_s": self.round_s.mean(axis=1),
            "n_contributions": n,
            "is_empty": n == 0,
            "inverse_n_contributions": 1.0 / n,
            "n_steps": np.full(len(n), steps),
            "used_flops": self.is_asked @ flops,
            "downloaded_bytes": n * self.n_bytes[0].mean(),
            "uploaded_bytes": n * self.n_bytes[1].mean(),
        }
        return np.asarray(values[one.quantity], dtype=np.float64)


def played(on: Fleet, policy: Policy, n_cycles: int, seed: int) -> Cycles:
    rng, m, phi, steps = np.random.default_rng(seed), on.n_devices, policy.interval_factor, policy.local_steps
    asked = rng.permuted(np.tile(np.arange(m), (n_cycles, 1)), axis=1) < (policy.n_sampled or m)
    is_relaxed = np.isin(np.arange(N_LAYERS), policy.relaxed or ())
    all_bytes, due_bytes = SHAPE.parameter_bytes.sum(), SHAPE.parameter_bytes[~is_relaxed].sum()
    down, up = np.full(phi, due_bytes), np.full(phi, due_bytes)
    down[0], up[-1] = all_bytes, all_bytes
    is_due = np.tile(~is_relaxed, (phi, 1))
    is_due[-1] = True
    size = (n_cycles, phi, m)
    task = np.ones(size) if on.task_factor is None else on.task_factor.draw(rng.random(size))
    step = np.ones((*size, steps)) if on.step_factor is None else on.step_factor.draw(rng.random((*size, steps)))
    moved_s = np.stack([on.down_s_of(np.full(m, d)) + on.up_s_of(np.full(m, u)) for d, u in zip(down, up, strict=True)])
    arrived_s = moved_s + on.unit_s * task * step.sum(axis=3)
    round_s = np.where(asked[:, None, :], arrived_s, 0.0).max(axis=2)
    return Cycles(on, policy, round_s, asked, (down, up), is_due)


def assert_agree(found: list[Expectation], cycles: Cycles) -> None:
    """Every cycle's mean within 4.5 standard errors, every variance within 8 of its own."""
    assert [one.quantity for one in found if one.mean is None] == []
    for one in found:
        assert one.mean is not None
        assert one.period == cycles.policy.interval_factor
        values = cycles.value(one)
        n, scale = len(values), max(abs(one.mean), 1e-300)
        assert one.variance is not None
        if one.variance <= 1e-18 * scale**2:
            np.testing.assert_allclose(values, one.mean, rtol=1e-9, atol=1e-12, err_msg=str(one))
            continue
        of_mean = one.variance / one.period
        assert abs(values.mean() - one.mean) < 4.5 * np.sqrt(of_mean / n), (one, values.mean())
        squares = (values - one.mean) ** 2
        assert abs(squares.mean() - of_mean) < 8 * squares.std() / np.sqrt(n), (one, squares.mean())


UNEQUAL = [1.0, 2.0, 0.5, 3.0, 1.2]


@pytest.mark.parametrize("n_sampled", [None, 3])
@pytest.mark.parametrize(("factor", "relaxed"), [(2, (0,)), (3, (0, 2)), (5, (1,)), (2, ())])
def test_cycles_agree_with_numpy(n_sampled: int | None, factor: int, relaxed: tuple[int, ...]) -> None:
    """Unequal devices that are drawn for a whole cycle make its rounds depend on each other."""
    on = linked(UNEQUAL, task_factor=Exponential(mean=1.0, shift=0.4))
    policy = Policy(3, factor, n_sampled, relaxed)
    assert_agree(fedlama.expected(policy, on), played(on, policy, 60_000, seed=5))


def test_the_law_of_a_round_picked_at_random_is_the_mixture_over_the_cycle() -> None:
    on = linked(UNEQUAL, step_factor=Gamma(shape=2.0, mean=1.0))
    policy = Policy(2, 5, 4, (0, 2))
    (one,) = [each for each in fedlama.expected(policy, on) if each.quantity == "round_s"]
    round_s = played(on, policy, 60_000, seed=6).round_s
    assert one.time is not None
    assert one.mean == pytest.approx(one.time.mean_s, rel=1e-9)
    for p in (0.1, 0.5, 0.9):
        share = (round_s <= one.time.quantile_s(p)).mean(axis=1)  # of a cycle's rounds
        assert abs(share.mean() - p) < 4.5 * share.std() / np.sqrt(len(share))


def test_rounds_of_a_cycle_on_a_fleet_without_luck_covary_by_who_was_asked() -> None:
    """All ten ways to ask three of five, written out."""
    download_s = [np.array([3.0, 1.0, 5.0, 0.0, 2.0]), np.array([0.0, 4.0, 3.5, 0.5, 6.0])]
    rounds = [kth_arrival(fleet(UNEQUAL, download_s=each.tolist()), 2, 3, 3) for each in download_s]
    arrived_s = [each + 2 * np.array(UNEQUAL) for each in download_s]
    subsets = [list(subset) for subset in combinations(range(5), 3)]
    by_subset = np.array([[own_s[subset].max() for subset in subsets] for own_s in arrived_s])
    in_all = by_subset[0] + 3 * by_subset[1]
    cycle = Cycle(rounds, [1, 3])
    assert cycle.mean_s == pytest.approx(in_all.mean() / 4, rel=1e-9)
    assert cycle.variance_s2 == pytest.approx(in_all.var() / 4, rel=1e-9)


def test_equal_devices_make_rounds_independent_however_few_are_asked() -> None:
    on = fleet([1.0] * 6, task_factor=Exponential(mean=1.0))
    (all_alike,) = [one for one in fedlama.expected(Policy(2, 4, 3, (0,)), _free(on)) if one.quantity == "round_s"]
    single = fedavg.round_time(6, 2, 1.0, n_sampled=3, task_factor=Exponential(mean=1.0))
    assert all_alike.mean == pytest.approx(single.mean_s, rel=1e-9)
    assert all_alike.variance == pytest.approx(single.variance_s2, rel=1e-9)


def _free(on: Fleet) -> Fleet:
    """Whose messages take no time."""
    return replace(on, down_s_of=lambda n: 0.0 * n, up_s_of=lambda n: 0.0 * n)


def test_a_tail_without_variance_leaves_the_mean() -> None:
    on = _free(fleet([1.0, 2.0], task_factor=Pareto(shape=1.5, minimum=1.0)))
    (one,) = [each for each in fedlama.expected(Policy(2, 3, 1, (0,)), on) if each.quantity == "round_s"]
    assert one.mean is not None
    assert one.variance is None


# ---- what is FedAvg in other words ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "relaxed", "n_steps"), [(1, (0, 1), 4), (3, (0, 1, 2), 12)])
def test_a_factor_of_one_is_fedavg_and_everything_relaxed_is_fedavg_with_longer_tasks(
    factor: int, relaxed: tuple[int, ...], n_steps: int
) -> None:
    on = linked(UNEQUAL, task_factor=Exponential(mean=1.0, shift=0.4))
    found = fedlama.expected(Policy(4, factor, 3, relaxed), on)
    same = fedavg.expected(Policy(n_steps, n_sampled=3), on)
    assert [(one.quantity, one.layer, one.device) for one in found] == [(o.quantity, o.layer, o.device) for o in same]
    np.testing.assert_allclose([one.mean for one in found], [o.mean for o in same], rtol=1e-12)  # type: ignore[arg-type]
    assert {one.period for one in found} == {1}


def test_uneven_steps_are_evened_over_the_task_that_is_really_sent() -> None:
    """Everything relaxed: one task of phi tau' steps, whose rows are those of its own epochs."""
    on = fleet(
        [1.0, 2.0], has_even_steps=False, rows_before=lambda n: np.array([10.0 * (n // 2) + 8 * (n % 2), 16.0 * n])
    )
    on = _free(on)
    for factor, relaxed, rows in ((3, (0, 1, 2), (10 * 4 + 8, 16 * 9)), (3, (0,), (18, 48))):
        found = registry.expected("fedlama", Policy(3, factor, None, relaxed), on)
        (flops,) = [one.mean for one in found if one.quantity == "used_flops"]
        assert flops == pytest.approx(sum(rows) * SHAPE.step_flops[-1], rel=1e-12)


# ---- a policy that chooses by itself --------------------------------------------------------------------------------


def test_what_training_chooses_has_no_closed_form_and_what_does_not_depend_on_it_has_one() -> None:
    on = linked(UNEQUAL, task_factor=Exponential(mean=1.0))
    reasons = {one.quantity: one.reason for one in fedlama.expected(Policy(relaxed=None, n_sampled=3), on)}
    unknown = {quantity for quantity, reason in reasons.items() if reason is not None}
    layered = {"n_contributors", "is_layer_empty", "weight_sum", "downloaded_bytes", "uploaded_bytes"}
    assert unknown == {*layered, "round_s"}
    assert "stated set of relaxed layers" in str(reasons["round_s"])
    without_links = _free(fleet(UNEQUAL, task_factor=Exponential(mean=1.0)))
    known = {one.quantity: one.mean for one in fedlama.expected(Policy(relaxed=None, n_sampled=3), without_links)}
    assert {quantity for quantity, mean in known.items() if mean is None} == layered
    everything = fedlama.expected(Policy(relaxed=None, crossing="included"), on)
    assert {one.mean for one in everything} == {None}, "a cycle may also be a single round"


# ---- traffic --------------------------------------------------------------------------------------------------------

# Every row in print: traffic against averaging everything at the short interval, and phi.
PRINTED = [
    *[(0.6233, 2), (0.4217, 4)],  # CIFAR-10, iid
    *[(0.6601, 2), (0.3991, 4)],  # CIFAR-100, iid
    *[(0.5283, 2), (0.2997, 4), (0.5332, 2), (0.2998, 4), (0.5186, 2), (0.2998, 4)],  # FEMNIST
    *[(0.3952, 4), (0.4240, 4), (0.4249, 4), (0.4273, 4)],  # CIFAR-10, Dirichlet
    *[(0.6314, 2), (0.6320, 2), (0.6048, 2), (0.6173, 2)],  # CIFAR-100, Dirichlet
    *[(0.6155, 2), (0.4436, 4)],  # CIFAR-10, 25 % of the devices
]


@pytest.mark.parametrize(("printed", "factor"), PRINTED)
def test_every_ratio_in_print_is_that_of_a_share_of_parameters(printed: float, factor: int) -> None:
    """The share that explains it lies in 0 ... 1, and a model cut there has the printed traffic."""
    share = relaxed_share(printed, factor)
    assert 0.65 < share < 0.97
    assert traffic_share(share, factor) == pytest.approx(printed, rel=1e-14)
    n = 1_000_000
    cut = np.array([round(n * share), n - round(n * share)])
    by_round = fedlama.bytes_per_round(cut, np.array([True, False]), factor)
    assert by_round / n == pytest.approx(printed, abs=1e-6)


@given(
    st.lists(st.tuples(st.integers(1, 10**7), st.booleans()), min_size=1, max_size=20).filter(
        lambda x: not all(r for _, r in x)
    ),
    st.integers(1, 9),
)
def test_bytes_per_round_by_counting_a_cycles_messages(layers: list[tuple[int, bool]], factor: int) -> None:
    """Second method: what each layer sends in each round of a cycle, added up."""
    n_bytes, relaxed = (np.array(column) for column in zip(*layers, strict=True))
    in_all = sum(
        int(b) for i in range(factor) for b, r in zip(n_bytes, relaxed, strict=True) if not r or i == factor - 1
    )
    assert fedlama.bytes_per_round(n_bytes, relaxed.astype(bool), factor) == pytest.approx(in_all / factor, rel=1e-12)


def test_too_many_unequal_devices_for_the_covariance_are_refused_in_words() -> None:
    on = _free(fleet(np.linspace(1, 2, 400).tolist(), task_factor=Exponential(mean=1.0)))
    rounds = [kth_arrival(on, 1, 100, 100)] * 2
    with pytest.raises(NoClosedForm, match=r"needs equal devices"):
        _ = Cycle(rounds, [1, 1]).variance_s2
