"""When transfers on shared links end: exactly for given starts and sizes, on average for random ones.

Capacity C and flow cap c in bit/s, payloads in bytes, 8 bits each. n flows on one link run at phi(n) = min(n c, C) together.

    equal shares, all at once    i-th smallest of n payloads: 8 (sum_{j <= i} s_j + (n - i) s_i) / C
    in turn (FIFO)               end_i = max(start_i, end_{i-1}) + 8 s_i / C
    any discipline without idling or caps: last end = max_i (start_(i) + 8 sum_{j >= i} s_j / C), in the order of starts
    max-min fairness             again and again: the link with the least capacity per flow freezes its flows at that rate
    Poisson starts, equal shares P(n) ~ (lambda B)^n / prod_{j <= n} phi(j), any payload of mean B; no cap: S / (1 - rho)
    Poisson starts, in turn      S + lambda E[S^2] / (2 (1 - rho))
    M devices that compute for x seconds, upload B bits, and start again:
                                 P(n upload) ~ M! / (M - n)! (B / x)^n / prod_{j <= n} phi(j), any laws
    one round, exponential laws  E[a, c] = (1 + (M - a) lambda E[a + 1, c] + phi(a - c) E[a, c + 1] / B)
                                           / ((M - a) lambda + phi(a - c) / B), E[., K] = 0; a have computed, c have uploaded

Sources: Bertsekas, Gallager, "Data Networks" (1992), 6.5.2 (max-min fairness); Kleinrock, "Queueing Systems" (1975, 1976)
(Pollaczek-Khinchine, processor sharing); Baskett, Chandy, Muntz, Palacios, J. ACM 22(2), 1975 (insensitivity).
Given starts and payloads are reckoned in fractions, so that ties are ties. Knows nothing of latency: add it to the start.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import floor, inf

import numpy as np
from scipy import special

from fedsim.delays import Exponential
from fedsim.facts import Array
from fedsim.protocols import Law, NoClosedForm

Exact = int | float | Fraction
"""A number that is taken as the fraction it is."""


@dataclass(frozen=True)
class Moments:
    """Mean and variance of a time; the variance may be infinite."""

    mean_s: float
    variance_s2: float


# ---- given starts and payloads: exact ---------------------------------------------------------------------------------


def in_turn_s(payload_bytes: Sequence[Exact], start_s: Sequence[Exact], capacity_bits_per_s: Exact) -> list[Fraction]:
    """Ends of transfers that have the link one after another, in the order of starts, then of the list."""
    ends, free_s = [Fraction(0)] * len(payload_bytes), Fraction(0)
    for i in sorted(range(len(payload_bytes)), key=lambda i: start_s[i]):
        free_s = max(free_s, Fraction(start_s[i])) + 8 * Fraction(payload_bytes[i]) / Fraction(capacity_bits_per_s)
        ends[i] = free_s
    return ends


def shared_at_once_s(payload_bytes: Sequence[Exact], capacity_bits_per_s: Exact) -> list[Fraction]:
    """Ends of transfers that start together at 0 and share one link equally, without caps."""
    n, sent = len(payload_bytes), Fraction(0)
    ends = [Fraction(0)] * n
    for place, i in enumerate(sorted(range(n), key=lambda i: payload_bytes[i]), start=1):
        sent += Fraction(payload_bytes[i])
        ends[i] = 8 * (sent + (n - place) * Fraction(payload_bytes[i])) / Fraction(capacity_bits_per_s)
    return ends


def last_end_s(payload_bytes: Sequence[Exact], start_s: Sequence[Exact], capacity_bits_per_s: Exact) -> Fraction:
    """When a link that never idles while anything waits is through, in whatever order it serves."""
    pairs = zip(start_s, payload_bytes, strict=True)
    by_start = sorted((Fraction(start), Fraction(payload)) for start, payload in pairs)
    left = list(accumulate(payload for _, payload in reversed(by_start)))[::-1]
    return max(
        start + 8 * rest / Fraction(capacity_bits_per_s) for (start, _), rest in zip(by_start, left, strict=True)
    )


def link_shares_bits_per_s(capacity_bits_per_s: Exact, cap_bits_per_s: Sequence[Exact | None]) -> list[Fraction]:
    """Max-min fair rates of flows on one link; None: the flow has no cap."""
    left, rates = Fraction(capacity_bits_per_s), [Fraction(0)] * len(cap_bits_per_s)
    caps = [inf if cap is None else Fraction(cap) for cap in cap_bits_per_s]
    order = sorted(range(len(caps)), key=lambda i: caps[i])
    for n_before, i in enumerate(order):
        fair = left / (len(order) - n_before)
        rates[i] = fair if fair < caps[i] else Fraction(caps[i])
        left -= rates[i]
    return rates


def network_rates_bits_per_s(
    capacity_bits_per_s: Mapping[str, Exact], routes: Sequence[Sequence[str]], cap_bits_per_s: Sequence[Exact | None]
) -> list[Fraction]:
    """Max-min fair rates of flows, each through all links of its route and under its own cap."""
    left = {("link", name): Fraction(capacity) for name, capacity in capacity_bits_per_s.items()}
    left |= {("cap", str(i)): Fraction(cap) for i, cap in enumerate(cap_bits_per_s) if cap is not None}
    open_flows = {
        i: [key for key in left if key == ("cap", str(i)) or (key[0] == "link" and key[1] in route)]
        for i, route in enumerate(routes)
    }
    rates = [Fraction(0)] * len(routes)
    while open_flows:
        n_flows = {key: sum(key in keys for keys in open_flows.values()) for key in left}
        tightest = min((key for key in left if n_flows[key]), key=lambda key: left[key] / n_flows[key])
        rate = left[tightest] / n_flows[tightest]
        for i in [i for i, keys in open_flows.items() if tightest in keys]:
            rates[i] = rate
            for key in open_flows.pop(i):
                left[key] -= rate
    return rates


def fair_ends_s(
    payload_bytes: Sequence[Exact],
    start_s: Sequence[Exact],
    *,
    capacity_bits_per_s: Mapping[str, Exact],
    routes: Sequence[Sequence[str]],
    cap_bits_per_s: Sequence[Exact | None] | None = None,
) -> list[Fraction]:
    """Ends of transfers under max-min fairness, rates reckoned anew at every start and end."""
    caps = [None] * len(routes) if cap_bits_per_s is None else cap_bits_per_s
    waiting = deque(sorted(range(len(routes)), key=lambda i: start_s[i]))
    left_bits: dict[int, Fraction] = {}
    ends, now_s = [Fraction(0)] * len(routes), Fraction(0)
    while waiting or left_bits:
        if not left_bits:
            now_s = Fraction(start_s[waiting[0]])
        while waiting and start_s[waiting[0]] <= now_s:
            i = waiting.popleft()
            left_bits[i] = 8 * Fraction(payload_bytes[i])
        active = list(left_bits)
        rates = network_rates_bits_per_s(capacity_bits_per_s, [routes[i] for i in active], [caps[i] for i in active])
        span_s = min(left_bits[i] / rate for i, rate in zip(active, rates, strict=True))
        if waiting:
            span_s = min(span_s, Fraction(start_s[waiting[0]]) - now_s)
        now_s += span_s
        for i, rate in zip(active, rates, strict=True):
            left_bits[i] -= rate * span_s
            if left_bits[i] == 0:
                del left_bits[i]
                ends[i] = now_s
    return ends


# ---- transfers that start at random ------------------------------------------------------------------------------------


def shared_sojourn_s(
    starts_per_s: float, payload_bytes: Law, capacity_bits_per_s: float, cap_bits_per_s: float = inf
) -> float:
    """Mean seconds of a transfer that starts at a random (Poisson) time, where all under way share the link equally.

    Depends on the payload's law by its mean alone.
    """
    load = _load(starts_per_s, payload_bytes, capacity_bits_per_s)
    cap = min(cap_bits_per_s, capacity_bits_per_s)
    n_full = floor(capacity_bits_per_s / cap)  # so many flows the link serves at their cap
    n = np.arange(n_full + 1)
    log_p = special.xlogy(n, load * capacity_bits_per_s / cap) - special.gammaln(n + 1)
    p = np.exp(log_p - log_p.max())
    # From n_full on each further flow has `load` times the probability of the one before.
    beyond, n_beyond = p[-1] * load / (1 - load), n_full + 1 / (1 - load)
    return float((n @ p + beyond * n_beyond) / (p.sum() + beyond) / starts_per_s)


def in_turn_sojourn_s(starts_per_s: float, payload_bytes: Law, capacity_bits_per_s: float) -> float:
    """Mean seconds from a random (Poisson) time until a transfer ends that waits for all those before it."""
    load = _load(starts_per_s, payload_bytes, capacity_bits_per_s)
    if not np.isfinite(payload_bytes.variance):
        raise NoClosedForm(f"needs payloads of finite variance, else the mean wait is infinite; got {payload_bytes}")
    s_per_byte = 8.0 / capacity_bits_per_s
    second_moment_s2 = (payload_bytes.variance + payload_bytes.mean**2) * s_per_byte**2
    return payload_bytes.mean * s_per_byte + starts_per_s * second_moment_s2 / (2 * (1 - load))


def _load(starts_per_s: float, payload_bytes: Law, capacity_bits_per_s: float) -> float:
    load = starts_per_s * 8.0 * payload_bytes.mean / capacity_bits_per_s
    if not 0 < load < 1:
        raise NoClosedForm(f"needs a link with something to carry that keeps up; got {load:.3g} times its capacity")
    return float(load)


# ---- devices that compute, upload and start again --------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Uploads:
    """Long-run state of an upload link that always-working devices share.

    n_uploading_share: share of time with 0 ... M uploads under way, `[n]`. throughput_per_s: uploads that end.
    upload_s: mean seconds of one.
    """

    n_uploading_share: Array
    throughput_per_s: float
    upload_s: float


def asynchronous_uploads(
    n_devices: int,
    compute_s: Law,
    payload_bytes: Law,
    capacity_bits_per_s: float,
    cap_bits_per_s: float = inf,
) -> Uploads:
    """Alike devices, each computing and then uploading through one equally shared link, over and over.

    Depends on both laws by their means alone, but raises NoClosedForm where both are constant: the phases of several
    devices then lock, and what is seen depends on how they started.
    """
    if n_devices > 1 and compute_s.variance == payload_bytes.variance == 0.0:
        raise NoClosedForm("needs compute times or payloads that vary, else phases lock; got constants of both")
    if not (0 < compute_s.mean < inf and 0 < payload_bytes.mean < inf):
        raise NoClosedForm(
            f"needs compute times and payloads of finite mean above 0; got {compute_s.mean} s, {payload_bytes.mean} bytes"
        )
    n = np.arange(n_devices + 1)
    rate_bits_per_s = np.minimum(n * np.minimum(cap_bits_per_s, capacity_bits_per_s), capacity_bits_per_s)
    steps = np.log((n_devices - n[:-1]) * 8.0 * payload_bytes.mean / compute_s.mean) - np.log(rate_bits_per_s[1:])
    log_p = np.concatenate([[0.0], np.cumsum(steps)])
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    throughput_per_s = float(p @ rate_bits_per_s) / (8.0 * payload_bytes.mean)
    return Uploads(p, throughput_per_s, float(n @ p) / throughput_per_s)


def synchronous_round(
    n_devices: int,
    n_awaited: int,
    compute_s: Law,
    payload_bytes: Law,
    capacity_bits_per_s: float,
    cap_bits_per_s: float = inf,
) -> Moments:
    """Until `n_awaited` of the devices have uploaded, all having begun to compute together; uploads share one link equally.

    Raises NoClosedForm unless compute times and payloads are memoryless.
    """
    for what, law in (("compute times", compute_s), ("payloads", payload_bytes)):
        if not isinstance(law, Exponential) or law.shift > 0.0:
            raise NoClosedForm(f"needs exponential {what} without a shift; got {law}")
    cap = min(cap_bits_per_s, capacity_bits_per_s)

    # Level by level in the number of those through: a recursive call would go as deep as 2 M.
    mean, square = np.zeros(n_devices + 2), np.zeros(n_devices + 2)
    for n_through in reversed(range(n_awaited)):
        mean_after, square_after = mean, square
        mean, square = np.zeros(n_devices + 2), np.zeros(n_devices + 2)
        for n_computed in reversed(range(n_through, n_devices + 1)):
            arrive = (n_devices - n_computed) / compute_s.mean
            leave = min((n_computed - n_through) * cap, capacity_bits_per_s) / (8.0 * payload_bytes.mean)
            hold_s = 1.0 / (arrive + leave)
            p, q = arrive * hold_s, leave * hold_s
            later = p * mean[n_computed + 1] + q * mean_after[n_computed]
            mean[n_computed] = hold_s + later
            square[n_computed] = (
                2 * hold_s * mean[n_computed] + p * square[n_computed + 1] + q * square_after[n_computed]
            )
    return Moments(float(mean[0]), float(square[0] - mean[0] ** 2))
