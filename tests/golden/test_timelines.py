"""The shipped policies' timelines are what they were; a change that is meant is written down by `regenerate.py`."""

from __future__ import annotations

import math

import pytest

from fedsim.randomness import Luck
from tests.golden.timelines import FOLDER, POLICIES, timeline


@pytest.mark.parametrize("kind", POLICIES)
def test_the_timeline_is_the_stored_one(kind):
    """If a change is meant: python -m tests.golden.regenerate, and read the difference."""
    assert timeline(kind) == (FOLDER / f"{kind}.txt").read_text(encoding="utf-8")


def test_no_timeline_is_stored_of_a_policy_that_is_gone():
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(POLICIES)


def stored(kind, n_round, device):
    """A job's line as its cells: sent, downloaded, computed, arrived, steps, depth, outcome."""
    rounds = (FOLDER / f"{kind}.txt").read_text(encoding="utf-8").split("\nround ")[1:]
    (line,) = [line for line in rounds[n_round].splitlines()[2:] if line.split()[0] == str(device)]
    return line.split()[1:]


def test_the_stored_lines_of_the_first_salf_round_are_those_of_a_pocket_calculator():
    """Deadline 1.25 s. The model has 1,008 bytes: down 0.1 + 8,064 / 80,640 = 0.2 s, up 0.1 + 8,064 / 40,320 = 0.3 s.

    A step's FLOPs per sample, a multiply-add as two: layers of 8 x 8, 8 x 8, 8 x 8 and 8 x 4 weights cost 128, 128, 128
    and 64 forward (448 together), the same again for weight gradients and, but for the first, for input gradients. The
    output layer is done after 448 + 64 = 512, depth 2 after 512 + 128 + 64 = 704, depth 3 after 704 + 128 + 128 = 960, all
    after 1,216.
    Task factors -ln(1 - u) with u = 0.679781, 0.044881, ..., 0.956140 (device 3): 1.138750, 0.045920, ..., 3.126757.
    Device 0 (1 s a step): depth 3 at 0.2 + 960 / 1,216 x 1.138750 = 1.099 s, depth 4 at 1.338750 s, too late. It uploads
        3 layers, 720 bytes: 1.25 + 0.1 + 5,760 / 40,320 = 1.492857 s.
    Device 1: through at 0.2 + 0.045920 = 0.245920 s, arrives 0.3 s later.
    Device 3 (1.5 s a step): its output layer would take until 0.2 + 512 / 1,216 x 4.690135 = 2.175 s: empty.
    """
    u = Luck(1, "task_factor").row(6)
    factor = [-math.log(1 - each) for each in u.tolist()]
    assert [round(factor[d], 6) for d in (0, 1, 3)] == [1.138750, 0.045920, 3.126757]
    arrived_s = 1.25 + 0.1 + 8 * 4 * (36 + 72 + 72) / 40_320
    assert stored("salf", 0, 0) == ["0.000000", "0.200000", "1.250000", f"{arrived_s:.6f}", "0", "3", "used"]
    assert stored("salf", 0, 1) == [
        "0.000000", "0.200000", f"{0.2 + factor[1]:.6f}", f"{0.2 + factor[1] + 0.3:.6f}", "1", "4", "used"
    ]  # fmt: skip
    assert stored("salf", 0, 3) == ["0.000000", "0.200000", "1.250000", "-", "0", "0", "empty"]


def test_the_stored_lines_of_the_first_stsyn_round_are_those_of_a_pocket_calculator():
    """k = 2, two steps. Step seconds: 1.138750, 0.045920, 0.990919, 4.690135, 4.186876, 2 x 0.088134 = 0.176269.

    Device 1 has two steps at 0.2 + 0.091840 = 0.291840 s, device 5 at 0.2 + 0.352537 = 0.552537 s: then all stop. Device 1
    has floor(0.352537 / 0.045920) = 7 steps; the others, whose first step ends at 1.19 s or later, none. Up: 0.3 s.
    """
    assert stored("stsyn", 0, 1) == ["0.000000", "0.200000", "0.552537", "0.852537", "7", "4", "used"]
    assert stored("stsyn", 0, 5) == ["0.000000", "0.200000", "0.552537", "0.852537", "2", "4", "used"]
    for device in (0, 2, 3, 4):
        assert stored("stsyn", 0, device) == ["0.000000", "0.200000", "0.552537", "-", "0", "0", "empty"]
