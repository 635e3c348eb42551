"""What a figure shows, in one sentence: its title, and its text for those who cannot see it.

Says what the drawn points say and compares nothing that the statistics have not compared: medians at one place, from
the lowest to the highest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from fedsim.statistics.words import digits, format_bytes, format_s, format_share, plural


def accuracy_over_time(frame: pd.DataFrame) -> str:
    """The median accuracies at the last moment that every policy was evaluated."""
    moment_s = float(frame.groupby("policy")["time_s"].max().min())
    return f"After {format_s(moment_s)} {_span(_held(frame, 'time_s', moment_s), 'the median accuracy', format_share)}."


def loss_over_time(frame: pd.DataFrame) -> str:
    """The mean losses at the last moment that every policy was evaluated."""
    moment_s = float(frame.groupby("policy")["time_s"].max().min())
    return f"After {format_s(moment_s)} {_span(_held(frame, 'time_s', moment_s, of='loss'), 'the mean loss', digits)}."


def loss_over_rounds(frame: pd.DataFrame) -> str:
    """The mean losses after as many rounds as every policy had."""
    n_rounds = int(frame.groupby("policy")["round"].max().min())
    held = _held(frame, "round", n_rounds, of="loss")
    return f"After {plural(n_rounds, 'round')} {_span(held, 'the mean loss', digits)}."


def accuracy_over_bytes(frame: pd.DataFrame) -> str:
    """The median accuracies when every policy had uploaded as much as the most frugal one did in all."""
    n_bytes = float(frame.groupby("policy")["uploaded_bytes"].max().min())
    held = _held(frame, "uploaded_bytes", n_bytes)
    return f"With {format_bytes(n_bytes)} uploaded {_span(held, 'the median accuracy', format_share)}."


def round_times(frame: pd.DataFrame) -> str:
    """The median round times."""
    medians = {str(label): float(rows[rows["share"] >= 0.5]["round_s"].iloc[0]) for label, rows in _groups(frame)}
    return _capitalised(f"{_span(medians, 'the median round', format_s, verb='takes')}.")


def layer_contributors(frame: pd.DataFrame) -> str:
    """How many devices reach the layer next to the input, where shallow work does not get to."""
    first = frame[frame["layer"] == frame["layer"].min()]
    means = {str(label): float(rows["n_contributors"].iloc[0]) for label, rows in _groups(first)}
    name = first["layer_name"].iloc[0]
    return f"At the input, layer {name} {_span(means, '', digits, verb='hears from').strip()} devices a round."


def who_was_heard(frame: pd.DataFrame) -> str:
    """How many of the updates that entered the model came from the slowest devices."""
    slowest = frame[frame["place"] == frame["place"].max()]
    devices = format_share(float(slowest["device_share"].iloc[0]))
    shares = {str(label): float(rows["update_share"].iloc[0]) for label, rows in _groups(slowest)}
    sent = _span(shares, "", format_share, verb="sent").strip()
    return f"The slowest devices, {devices} of all, {sent} of the updates that were used."


def _groups(frame: pd.DataFrame) -> list[tuple[object, pd.DataFrame]]:
    return list(frame.groupby("policy", sort=False))


def _held(frame: pd.DataFrame, x: str, at: float, of: str = "accuracy") -> dict[str, float]:
    """The accuracy (or loss) of each policy at `at`; those drawn only from later on are left out."""
    past = [(label, rows[rows[x] <= at]) for label, rows in _groups(frame)]
    return {str(label): float(rows[of].iloc[-1]) for label, rows in past if len(rows)}


def _span(values: Mapping[str, float], subject: str, in_words: Callable[[float], str], verb: str = "is") -> str:
    low, high = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    if in_words(values[low]) == in_words(values[high]):
        whose = low if len(values) == 1 else "every policy"
        return f"{subject} {verb} {in_words(values[low])} ({whose})"
    if verb == "is":
        return f"{subject} lies between {in_words(values[low])} ({low}) and {in_words(values[high])} ({high})"
    return f"{subject} {verb} {in_words(values[low])} ({low}) to {in_words(values[high])} ({high})"


def _capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
