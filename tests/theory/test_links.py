"""Ends of transfers beside hand-worked cases, each other, known queues, and simulated means.

Payloads are in bytes and rates in bit/s, so a link of 8 C bit/s carries C bytes a second. Bounds of simulated means are
4 standard errors over independent paths or long batches; seeds were written down once.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from fractions import Fraction as Fr
from itertools import accumulate, pairwise, permutations
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.delays import AnyLaw, Classes, Constant, Exponential, Gamma, Lognormal, Pareto, Uniform
from fedsim.facts import Array
from fedsim.protocols import NoClosedForm
from fedsim.theory.links import (
    asynchronous_uploads,
    fair_ends_s,
    in_turn_s,
    in_turn_sojourn_s,
    last_end_s,
    link_shares_bits_per_s,
    network_rates_bits_per_s,
    shared_at_once_s,
    shared_sojourn_s,
    synchronous_round,
)

numbers = st.fractions(min_value=Fr(1, 8), max_value=20, max_denominator=8)
caps = st.lists(st.none() | numbers, min_size=1, max_size=6)


@st.composite
def transfers(draw: st.DrawFn) -> tuple[list[Fr], list[Fr]]:
    """Payloads and starts."""
    n = draw(st.integers(1, 6))
    starts = st.fractions(min_value=0, max_value=10, max_denominator=4)
    return (
        draw(st.lists(numbers, min_size=n, max_size=n)),
        draw(st.lists(starts, min_size=n, max_size=n)),
    )


def on_one_link(
    payloads: list[Fr], starts: list[Fr], capacity: Fr | int, flow_caps: list[Fr | int | None] | None = None
) -> list[Fr]:
    """`capacity` and caps in bytes per second."""
    bits = None if flow_caps is None else [None if cap is None else 8 * cap for cap in flow_caps]
    links, routes = {"server": 8 * capacity}, [["server"]] * len(payloads)
    return fair_ends_s(payloads, starts, capacity_bits_per_s=links, routes=routes, cap_bits_per_s=bits)


# ---- given starts and payloads ----------------------------------------------------------------------------------------


def test_equal_transfers_end_together_or_one_by_one() -> None:
    assert shared_at_once_s([3] * 4, 8 * 2) == [6] * 4
    assert in_turn_s([3] * 4, [0] * 4, 8 * 2) == [Fr(3, 2), 3, Fr(9, 2), 6]


def test_unequal_transfers_end_by_size() -> None:
    """Sizes 1, 2, 5 on one byte a second: at 3 the first is through, at 5 the second, at 8 the last."""
    assert shared_at_once_s([5, 1, 2], 8) == [8, 3, 5]


def test_a_cap_frees_capacity_for_the_others_and_starts_and_ends_move_rates() -> None:
    """C = 8, caps 2, 9, 9: rates (2, 6), then (2, 3, 3) from the third start at 1."""
    assert link_shares_bits_per_s(8, [2, 9]) == [2, 6]
    assert link_shares_bits_per_s(8, [2, 9, 9]) == [2, 3, 3]
    assert on_one_link([4, 10, 7], [0, 0, 1], 8, [2, 9, 9]) == [2, Fr(9, 4), Fr(21, 8)]


def test_two_gateways_and_a_server() -> None:
    links = {"g1": 4, "g2": 9, "server": 10}
    routes = [["g1", "server"], ["g1", "server"], ["g2", "server"], ["g2", "server"]]
    assert network_rates_bits_per_s(links, routes, [None, None, None, 1]) == [2, 2, 5, 1]


def test_an_idle_link_waits_for_the_next_start() -> None:
    assert on_one_link([1, 1], [0, 5], 1) == [1, 6]
    assert in_turn_s([1, 1], [5, 0], 8) == [6, 1]


def test_fractions_stay_fractions_and_empty_payloads_end_at_once() -> None:
    assert on_one_link([Fr(1, 3), Fr(0)], [Fr(1, 7), Fr(1, 7)], Fr(1, 11)) == [Fr(1, 7) + Fr(11, 3), Fr(1, 7)]


@given(numbers, caps)
def test_one_link_by_sorting_is_one_link_by_filling(capacity: Fr, flow_caps: list[Fr | None]) -> None:
    rates = link_shares_bits_per_s(capacity, flow_caps)
    assert rates == network_rates_bits_per_s({"server": capacity}, [["server"]] * len(flow_caps), flow_caps)


@settings(deadline=None)
@given(
    st.lists(numbers, min_size=3, max_size=3),
    st.lists(st.sets(st.sampled_from("abc"), min_size=1), min_size=1, max_size=6),
    st.lists(st.none() | numbers, min_size=6, max_size=6),
)
def test_each_flow_is_held_by_a_full_link_on_which_none_is_faster_or_by_its_cap(
    capacities: list[Fr], routes: list[set[str]], flow_caps: list[Fr | None]
) -> None:
    """What makes rates max-min fair (Bertsekas, Gallager, 6.5.2), and no link carries more than it can."""
    links = dict(zip("abc", capacities, strict=True))
    flow_caps = flow_caps[: len(routes)]
    rates = network_rates_bits_per_s(links, [sorted(route) for route in routes], flow_caps)
    loads = {name: sum(rate for rate, route in zip(rates, routes, strict=True) if name in route) for name in links}
    assert all(loads[name] <= links[name] for name in links)
    for rate, route, cap in zip(rates, routes, flow_caps, strict=True):
        fastest = {name: max(r for r, other in zip(rates, routes, strict=True) if name in other) for name in route}
        is_held = any(loads[name] == links[name] and fastest[name] == rate for name in route)
        assert rate == cap or (is_held and (cap is None or rate < cap))


@settings(deadline=None)
@given(transfers(), numbers)
def test_whoever_is_served_first_the_link_is_through_at_the_same_time(
    given_transfers: tuple[list[Fr], list[Fr]], capacity: Fr
) -> None:
    payloads, starts = given_transfers
    last = last_end_s(payloads, starts, 8 * capacity)
    assert max(in_turn_s(payloads, starts, 8 * capacity)) == last
    assert max(on_one_link(payloads, starts, capacity)) == last


@settings(deadline=None)
@given(transfers(), numbers)
def test_events_reproduce_the_formula_for_a_common_start(
    given_transfers: tuple[list[Fr], list[Fr]], capacity: Fr
) -> None:
    payloads, _ = given_transfers
    assert shared_at_once_s(payloads, 8 * capacity) == on_one_link(payloads, [Fr(0)] * len(payloads), capacity)


@settings(deadline=None)
@given(transfers(), numbers, st.lists(st.none() | numbers, min_size=6, max_size=6))
def test_each_transfer_gets_its_bytes(
    given_transfers: tuple[list[Fr], list[Fr]], capacity: Fr, flow_caps: list[Fr | None]
) -> None:
    """Second method: between any two instants at which something starts or ends, rates by sorting; summed up."""
    payloads, starts = given_transfers
    flow_caps = flow_caps[: len(payloads)]
    ends = on_one_link(payloads, starts, capacity, flow_caps)
    carried = [Fr(0)] * len(payloads)
    for begin, end in pairwise(sorted({*starts, *ends})):
        active = [i for i in range(len(payloads)) if starts[i] <= begin and end <= ends[i]]
        for i, rate in zip(active, link_shares_bits_per_s(capacity, [flow_caps[i] for i in active]), strict=True):
            carried[i] += rate * (end - begin)
    assert carried == payloads


def test_in_turn_serves_the_earlier_start_first_whatever_the_list_says() -> None:
    payloads, starts = [Fr(3), Fr(1), Fr(2)], [Fr(0), Fr(1), Fr(2)]
    ends = dict(zip(payloads, in_turn_s(payloads, starts, 8), strict=True))
    for order in permutations(range(3)):
        listed = in_turn_s([payloads[i] for i in order], [starts[i] for i in order], 8)
        assert listed == [ends[payloads[i]] for i in order]


# ---- transfers that start at random ------------------------------------------------------------------------------------


def shared_link(
    first_s: list[float],
    payload: Callable[[], float],
    again_s: Callable[[float], float | None],
    capacity: float,
    cap: float = inf,
    n_ends: int = 1 << 60,
) -> list[tuple[float, float]]:
    """Start and end of each transfer in the order of ends: all under way at min(cap, capacity / n) bytes a second.

    Every transfer has been served alike since it started, so one clock of service per flow is enough.
    again_s: when the one that ends at that time starts anew.
    """
    waiting, active, seen = sorted(first_s), [], []
    now = served = 0.0
    while (waiting or active) and len(seen) < n_ends:
        rate = min(cap, capacity / len(active)) if active else 0.0
        end = now + (active[0][0] - served) / rate if active else inf
        if waiting and waiting[0] < end:
            start = heapq.heappop(waiting)
            served, now = served + rate * (start - now), start
            heapq.heappush(active, (served + payload(), now))
        else:
            served, start = heapq.heappop(active)
            now = end
            seen.append((start, now))
            again = again_s(now)
            if again is not None:
                heapq.heappush(waiting, again)
    return seen


def drawing(law: AnyLaw, rng: np.random.Generator) -> Callable[[], float]:
    return lambda: float(law.draw(np.array(rng.random())))


def assert_batches(values: Array, expected: float) -> None:
    """Along one long path: 40 batches after the first tenth, which is left out."""
    means = values[len(values) // 10 :][: 40 * (len(values) * 9 // 400)].reshape(40, -1).mean(axis=1)
    standard_error = means.std(ddof=1) / np.sqrt(len(means))
    assert abs(means.mean() - expected) < 4 * standard_error, (means.mean(), expected, standard_error)


def erlang_c(n_servers: int, load: float) -> float:
    """P(wait) of M/M/m by the recursion of Erlang B."""
    blocked = 1.0
    for j in range(1, n_servers + 1):
        blocked = load * blocked / (j + load * blocked)
    return n_servers * blocked / (n_servers - load * (1 - blocked))


def test_an_uncapped_shared_link_stretches_every_transfer_alike() -> None:
    """S / (1 - rho): 2 bytes on 1 byte a second, 0.3 a second: 2 / 0.4."""
    for law in (Constant(2.0), Exponential(2.0), Lognormal(2.0, median=2.0 / np.exp(2.0)), Pareto(1.5, minimum=2 / 3)):
        assert shared_sojourn_s(0.3, law, 8.0) == pytest.approx(5.0, rel=1e-13)


@pytest.mark.parametrize("m", [1, 2, 7, 300])
@pytest.mark.parametrize("use", [0.1, 0.8, 0.99])
def test_capped_flows_wait_like_customers_of_m_servers(m: int, use: float) -> None:
    """C = m c: (B / c) (1 + ErlangC(m, a) / (m - a)), a = lambda B / c."""
    size, cap = 3.0, 0.5
    a = use * m
    expected = size / cap * (1 + erlang_c(m, a) / (m - a))
    assert shared_sojourn_s(a * cap / size, Constant(size), 8 * m * cap, 8 * cap) == pytest.approx(expected, rel=1e-11)


def test_a_cap_that_does_not_divide_the_capacity_agrees_with_the_balance_of_flows() -> None:
    """Second method: the stationary law of the birth-death chain up to 3,000 flows, C = 2.5 c."""
    starts, size, cap, capacity = 1.1, 2.0, 1.0, 2.5
    n = np.arange(3001)
    log_p = np.concatenate([[0.0], np.cumsum(np.log(starts * size / np.minimum(n[1:] * cap, capacity)))])
    p = np.exp(log_p - log_p.max())
    expected = n @ p / p.sum() / starts
    assert shared_sojourn_s(starts, Constant(size), 8 * capacity, 8 * cap) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("payload", [Constant(2.0), Classes((0.5, 8.0), (0.8, 0.2))], ids=repr)
def test_simulated_sharing_agrees_whatever_the_payloads(payload: AnyLaw) -> None:
    rng = np.random.default_rng(5)
    starts_per_s, capacity, cap, n = 0.7, 2.5, 1.0, 40_000
    first = list(np.cumsum(rng.exponential(1 / starts_per_s, n)))
    seen = sorted(shared_link(first, drawing(payload, rng), lambda _: None, capacity, cap))
    sojourn = np.array([end - start for start, end in seen])
    assert_batches(sojourn, shared_sojourn_s(starts_per_s, payload, 8 * capacity, 8 * cap))


def test_transfers_in_turn_wait_by_the_second_moment() -> None:
    """M/M/1: 1 / (mu - lambda). M/D/1: S (1 + rho / (2 (1 - rho)))."""
    assert in_turn_sojourn_s(0.6, Exponential(1.0), 8.0) == pytest.approx(1 / (1 - 0.6), rel=1e-14)
    assert in_turn_sojourn_s(0.6, Constant(1.0), 8.0) == pytest.approx(1 + 0.6 / 0.8, rel=1e-14)


def test_simulated_transfers_in_turn_agree() -> None:
    """Lindley's recursion, 120,000 gamma payloads."""
    rng, payload, capacity = np.random.default_rng(6), Gamma(0.5, 3.0), 5.0
    gaps, service = rng.exponential(1 / 0.8, 120_000), payload.draw(rng.random(120_000)) / capacity
    waits = list(accumulate(service[:-1] - gaps[1:], lambda wait, more: max(0.0, wait + more), initial=0.0))
    assert_batches(np.array(waits) + service, in_turn_sojourn_s(0.8, payload, 8 * capacity))


# ---- devices that compute, upload and start again ----------------------------------------------------------------------


def test_four_devices_on_an_uncapped_link() -> None:
    found = asynchronous_uploads(4, Exponential(3.0), Constant(1.0), 8.0)
    assert found.throughput_per_s == pytest.approx(104 / 131, rel=1e-14)
    assert found.throughput_per_s == pytest.approx(0.79389313, abs=5e-9)
    assert found.upload_s == pytest.approx(2.03846154, abs=5e-9)
    assert found.n_uploading_share.sum() == pytest.approx(1.0, rel=1e-15)


def test_where_nobody_is_held_up_devices_upload_independently() -> None:
    """M c <= C: the number is binomial, an upload takes B / c."""
    found = asynchronous_uploads(5, Uniform(1.0, 3.0), Gamma(2.0, 4.0), 8 * 50.0, 8 * 2.0)
    np.testing.assert_allclose(found.n_uploading_share, [1 / 32, 5 / 32, 10 / 32, 10 / 32, 5 / 32, 1 / 32], rtol=1e-13)
    assert found.upload_s == pytest.approx(2.0, rel=1e-13)
    assert found.throughput_per_s == pytest.approx(5 / 4, rel=1e-13)


def test_large_fleets_do_not_leave_the_range_of_numbers() -> None:
    """10,000 devices ask for 20 times the link: it never idles."""
    found = asynchronous_uploads(10_000, Exponential(500.0), Exponential(1.0), 8.0, 8.0)
    assert found.throughput_per_s == pytest.approx(1.0, rel=1e-12)
    assert found.upload_s == pytest.approx(10_000 - 500, rel=1e-10)


@pytest.mark.parametrize(
    ("compute", "payload"),
    [
        (Constant(2.0), Classes((0.5, 4.0), (0.7, 0.3))),
        (Uniform(0.0, 4.0), Constant(1.55)),
        (Gamma(0.4, 2.0), Gamma(3.0, 1.55)),
    ],
    ids=repr,
)
def test_simulated_uploads_depend_on_means_alone(compute: AnyLaw, payload: AnyLaw) -> None:
    m, capacity, cap, n = 5, 1.6, 0.7, 40_000
    rng = np.random.default_rng(8)
    think = drawing(compute, rng)
    seen = shared_link([think() for _ in range(m)], drawing(payload, rng), lambda end: end + think(), capacity, cap, n)
    found = asynchronous_uploads(m, compute, payload, 8 * capacity, 8 * cap)
    ends = np.array([end for _, end in seen])
    assert_batches(np.array([end - start for start, end in seen]), found.upload_s)
    assert_batches(np.diff(ends), 1 / found.throughput_per_s)


def test_constant_cycles_on_a_shared_link_remember_how_they_started() -> None:
    """Two devices, 2 s of compute, 1 byte: in step an upload takes 2 s for ever, out of step 1 s."""
    for first, upload_s in (([2.0, 2.0], 2.0), ([2.0, 3.5], 1.0)):
        seen = shared_link(first, lambda: 1.0, lambda end: end + 2.0, capacity=1.0, n_ends=50)
        assert {round(end - start, 9) for start, end in seen} == {upload_s}
    with pytest.raises(NoClosedForm, match="phases lock"):
        asynchronous_uploads(2, Constant(2.0), Constant(1.0), 8.0)
    assert asynchronous_uploads(1, Constant(2.0), Constant(1.0), 8.0).throughput_per_s == pytest.approx(1 / 3)


def test_a_round_of_three_on_a_shared_link() -> None:
    assert synchronous_round(3, 3, Exponential(1.0), Exponential(0.5), 8.0).mean_s == pytest.approx(
        2.63888889, abs=5e-9
    )


def test_a_round_on_an_endless_link_is_its_order_statistic() -> None:
    """H_M - H_(M-K) and the sum of 1 / j^2, the uploads taking next to nothing."""
    found = synchronous_round(6, 4, Exponential(2.0), Exponential(1e-12), 8.0)
    assert found.mean_s == pytest.approx(2 * sum(1 / j for j in range(3, 7)), rel=1e-9)
    assert found.variance_s2 == pytest.approx(4 * sum(1 / j**2 for j in range(3, 7)), rel=1e-9)


def test_a_round_whose_devices_upload_from_the_start_is_a_sum_of_services() -> None:
    """Compute takes next to nothing: K services of the whole link, each Exp(B / C)."""
    found = synchronous_round(6, 4, Exponential(1e-12), Exponential(3.0), 8 * 2.0)
    assert (found.mean_s, found.variance_s2) == (pytest.approx(4 * 1.5, rel=1e-9), pytest.approx(4 * 1.5**2, rel=1e-9))


@pytest.mark.parametrize(("k", "cap"), [(5, inf), (3, inf), (4, 0.9)])
def test_simulated_rounds_agree(k: int, cap: float) -> None:
    m, capacity, compute, payload = 5, 2.0, Exponential(1.5), Exponential(1.2)
    found = synchronous_round(m, k, compute, payload, 8 * capacity, 8 * cap)
    rng = np.random.default_rng(9)
    think, size = drawing(compute, rng), drawing(payload, rng)
    rounds = [
        shared_link([think() for _ in range(m)], size, lambda _: None, capacity, cap, k)[-1][1] for _ in range(3000)
    ]
    length_s = np.array(rounds)
    assert abs(length_s.mean() - found.mean_s) < 4 * np.sqrt(found.variance_s2 / len(length_s))
    squares = (length_s - found.mean_s) ** 2
    assert abs(squares.mean() - found.variance_s2) < 4 * squares.std(ddof=1) / np.sqrt(len(squares))


def test_what_has_no_closed_form_says_why() -> None:
    with pytest.raises(NoClosedForm, match="keeps up"):
        shared_sojourn_s(1.0, Exponential(1.0), 8.0)
    with pytest.raises(NoClosedForm, match="keeps up"):
        in_turn_sojourn_s(0.1, Pareto(1.0), 8.0)
    with pytest.raises(NoClosedForm, match="finite variance"):
        in_turn_sojourn_s(0.1, Pareto(1.5), 8.0)
    with pytest.raises(NoClosedForm, match="exponential payloads"):
        synchronous_round(3, 3, Exponential(1.0), Constant(1.0), 8.0)
    with pytest.raises(NoClosedForm, match="finite mean"):
        asynchronous_uploads(3, Pareto(1.0), Exponential(1.0), 8.0)
