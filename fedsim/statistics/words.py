"""Numbers as a reader meets them: three significant digits, a unit always, intervals in parentheses.

Seconds up to 10 min, then minutes up to 10 h, then hours; k/M/G for counts, kB/MB/GB (powers of 1000) for bytes.
Everything here returns plain text; whoever writes HTML escapes it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from math import floor, isfinite, log10


def digits(value: float) -> str:
    """Three significant digits, without exponent between 0.0001 and a million: 212, 2.6, 0.0123, 12,300."""
    rounded = float(f"{value:.3g}")
    if 1_000 <= abs(rounded) < 1_000_000:
        return f"{rounded:,.0f}"
    return f"{rounded:.3g}"


def format_s(seconds: float) -> str:
    """A duration: "212 s", "10.5 min", "12 h"."""
    # Round first: 599.9 s is "600 s" and not "10 min", whichever side of the limit it lies on.
    rounded = float(f"{seconds:.3g}")
    if abs(rounded) <= 600:
        return f"{digits(seconds)} s"
    if abs(rounded) <= 36_000:
        return f"{digits(seconds / 60)} min"
    return f"{digits(seconds / 3600)} h"


def format_count(count: float) -> str:
    """A count: "950", "12.3k", "4.56M", "7G"."""
    return _scaled(count, ("", "k", "M", "G", "T", "P", "E"))


def format_bytes(n_bytes: float) -> str:
    """An amount of data: "950 B", "12.3 kB", "4.56 MB"."""
    return _scaled(n_bytes, (" B", " kB", " MB", " GB", " TB", " PB", " EB"))


def format_share(share: float) -> str:
    """A share of one as a percentage: "90 %", "89.7 %"."""
    return f"{digits(100 * share)} %"


def format_ratio(ratio: float, low: float | None = None, high: float | None = None) -> str:
    """A ratio with its interval, "2.6 (2.2-3.1)", with no more digits than the interval allows."""
    if low is None or high is None:
        return digits(ratio)
    n_decimals = _decimals(ratio, high - low)
    return f"{ratio:.{n_decimals}f} ({low:.{n_decimals}f}-{high:.{n_decimals}f})"


def format_range(values: Sequence[float], in_words: Callable[[float], str], *, with_range: bool = True) -> str:
    """Median and range of some values, "212 s (204-231)"; the range is left out where it shows nothing."""
    low, median, high = (in_words(value) for value in (min(values), statistics.median(values), max(values)))
    if not with_range or low == high:
        return median
    _, _, unit = median.partition(" ")
    if unit and low.endswith(f" {unit}") and high.endswith(f" {unit}"):
        low, high = low.removesuffix(f" {unit}"), high.removesuffix(f" {unit}")
    return f"{median} ({low}-{high})"


def plural(n: int, noun: str) -> str:
    """ "1 seed", "3 seeds"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def listed(names: Sequence[str], last: str = "and") -> str:
    """Names in a row: "a", "a and b", "a, b and c"."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {last} {names[-1]}"


def _scaled(value: float, units: Sequence[str]) -> str:
    scaled = float(f"{value:.3g}")
    for unit in units[:-1]:
        if abs(scaled) < 1_000:
            return f"{digits(scaled)}{unit}"
        scaled /= 1_000
    return f"{digits(scaled)}{units[-1]}"


def _decimals(value: float, width: float) -> int:
    """Decimals that show a quarter of the interval's width, at most three significant digits."""
    if not (isfinite(width) and isfinite(value)) or value <= 0:
        return 1
    allowed = 2 - floor(log10(value))
    wanted = allowed if width <= 0 else -floor(log10(width / 4))
    return max(0, min(wanted, allowed))
