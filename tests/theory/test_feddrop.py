"""FedDrop's closed forms against rounds in NumPy with costs counted by hand, and shares by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from fedsim.delays import Exponential, Gamma
from fedsim.protocols import NoClosedForm
from fedsim.theory import feddrop
from tests.theory.narrow import WIDTHS, fleet, kept, multiply_adds, n_bytes, played
from tests.theory.stories import assert_agree


@dataclass(frozen=True)
class Policy:
    kept_shares: tuple[float, ...] | None = None
    deadline_s: float | None = None
    local_steps: int = 5


def needed_s(share: float, unit_s: float, latency_s: float, s_per_byte: float, n_steps: int) -> float:
    widths = kept(WIDTHS, share)
    cost = multiply_adds(widths) / multiply_adds(WIDTHS)
    return 1.5 * (latency_s + s_per_byte * n_bytes(widths)) + n_steps * unit_s * cost


def test_a_share_is_the_largest_twentieth_whose_round_meets_the_deadline() -> None:
    """Deadlines that 12/20 meets exactly and misses by a millionth (11/20 keeps as many units); 2/20; more than enough."""
    own = (2.0, 0.25, 1e-3, 4)
    on = fleet([own[0]], latency_s=own[1], s_per_byte=own[2])
    exactly = needed_s(0.6, *own)
    for deadline_s, share in [(exactly, 0.6), (exactly * (1 - 1e-6), 0.5), (needed_s(0.1, *own), 0.1), (1e3, 1.0)]:
        assert feddrop.kept_shares(Policy(deadline_s=deadline_s, local_steps=4), on) == pytest.approx([share])


def test_a_deadline_counts_means_of_laws() -> None:
    on = fleet([1.0], task_factor=Gamma(shape=2.0, mean=1.5), step_factor=Exponential(mean=2.0))
    deadline_s = 5 * 3.0 * multiply_adds(kept(WIDTHS, 0.4)) / multiply_adds(WIDTHS)
    assert feddrop.kept_shares(Policy(deadline_s=deadline_s), on) == pytest.approx([0.4])


def test_slow_links_get_smaller_parts_of_equally_fast_devices() -> None:
    on = fleet([1.0, 1.0, 1.0], s_per_byte=[1e-3, 2e-3, 8e-3])
    shares = feddrop.kept_shares(Policy(deadline_s=6.0), on)
    assert (np.diff(shares) < 0).all()


def test_a_deadline_that_a_device_cannot_meet_has_no_closed_form() -> None:
    with pytest.raises(NoClosedForm, match="device 0"):
        feddrop.kept_shares(Policy(deadline_s=1.0), fleet([1.0], latency_s=5.0))


def test_links_that_are_redrawn_have_no_closed_form_for_the_share() -> None:
    on = fleet([1.0], has_fixed_links=False)
    (found, *_) = feddrop.expected(Policy(deadline_s=6.0), on)
    assert found.reason == "needs transfer times that are fixed for each device; got a link redrawn for each task"


def test_rounds_agree_with_numpy() -> None:
    latency_s, s_per_byte = [0.1, 0.3, 0.1, 0.2], [1e-3, 5e-4, 2e-3, 1e-4]
    n_rows = [16, 8, 16, 4]
    on = fleet(
        [1.0, 2.0, 0.5, 3.0], latency_s=latency_s, s_per_byte=s_per_byte, n_rows=n_rows, step_factor=Exponential()
    )
    policy = Policy(deadline_s=4.0, local_steps=3)
    shares = feddrop.kept_shares(policy, on)
    assert len(np.unique(shares)) > 2
    rounds = played(on, np.broadcast_to(shares, (60_000, 4)), 3, np.random.default_rng(7))
    assert_agree(feddrop.expected(policy, on), rounds)  # type: ignore[arg-type]
