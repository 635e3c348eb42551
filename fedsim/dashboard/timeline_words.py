"""What a round timeline says in words: what is seen, and how to read it."""

from __future__ import annotations

import pandas as pd

from fedsim.dashboard.timeline_frame import RoundFacts
from fedsim.dashboard.timeline_parts import N_TICKS, group_size, within
from fedsim.statistics.words import format_s, format_share


def finding(frame: pd.DataFrame, facts: RoundFacts) -> str:
    """What became of the devices' work, in one sentence."""
    name = f"Round {facts.number} of {facts.label}, seed {facts.seed}"
    if frame.empty:
        return f"{name} took {format_s(facts.length_s)}; what its devices did is not known."
    n = int(frame["device"].nunique())
    heard = f"the work of {facts.n_contributions:,} of {n:,} devices entered the model"
    if n != facts.n_sent:  # some were sent their task in an earlier round, or more than one in this
        uploads = "1 upload" if facts.n_contributions == 1 else f"{facts.n_contributions:,} uploads"
        heard = f"{uploads} entered the model, of {n:,} devices at work,"
    computing = frame[frame["doing"] == "compute"]
    spent_s = (computing["end_s"] - computing["start_s"]).groupby(computing["phase"] == "dropped").sum()
    lost = spent_s.get(True, 0.0) / spent_s.sum() if len(spent_s) else 0.0
    dropped = "no computing was dropped" if lost == 0 else f"{format_share(lost)} of the computing was dropped"
    return f"{name}: {heard} after {format_s(facts.length_s)}; {dropped}."


def decision(facts: RoundFacts) -> str:
    """What ended the round's last wait, in a word or three; "" if nothing did or it was not recorded."""
    if facts.decided_by == "deadline":
        return "deadline"
    if facts.decided_by == "total_steps":
        return f"{int(facts.decided_n)} steps in all"
    if facts.decided_by not in ("arrival", "step"):
        return ""
    n, is_arrival = int(facts.decided_n), facts.decided_by == "arrival"
    if n == facts.n_sent and n > 1:
        return "all have arrived" if is_arrival else "all have finished"
    if n == 1 and facts.n_contributions > 1:  # waited for again and again
        return "an arrival" if is_arrival else "a finisher"
    return f"{ordinal(n)} {'arrival' if is_arrival else 'finisher'}"


def ordinal(n: int) -> str:
    """ "1st", "2nd", "3rd", "4th", "11th"."""
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def caption(frame: pd.DataFrame, facts: RoundFacts, devices: tuple[int, int] | None = None) -> str:
    """How to read it."""
    if frame.empty:
        return ""
    n = int(frame["row"].max()) + 1
    size = group_size(n) if devices is None else 1
    order = "in the order in which their work was done, those of whom nothing enters the model last"
    words = f"One row a device, {order}."
    if devices is not None:
        words = f"{_places(devices, n)} of {n:,} devices, {order}."
    elif size > 1:
        words = (
            f"{n:,} devices {order}, about {size} to a row: the height of a colour is the share of them in this phase, "
            f"drawn to a {N_TICKS}th of the round. White: half of a row had ended a step and gone on."
        )
    if size == 1 and (frame["step"] >= 0).any():
        words += " A white line ends a local step; in the last step that counts, layers are lighter towards the input."
    if facts.decided_by:
        line = "Dotted: the deadline" if facts.decided_by == "deadline" else f"Solid line: {decision(facts)}"
        words += f" {line}, {format_s(facts.decided_s)}."
    if n != facts.n_sent:
        words += " Tasks may have been sent before the round and go on after it; they are cut off at its ends."
    return words


def _places(devices: tuple[int, int], n: int) -> str:
    first, last = within(devices, n)
    return f"Places {first + 1:,} to {last:,}"
