"""What a figure shows, in one sentence: its title, and its text for those who cannot see it.

Says what the drawn points say and compares nothing that the statistics have not compared: medians at one place, from
the lowest to the highest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from fedsim.statistics.words import digits, format_bytes, format_count, format_s, format_share, listed, plural


def curve(frame: pd.DataFrame, over: str, of: str) -> str:
    """The middle values at the last point of the axis that every policy has."""
    at = float(frame.groupby("policy")[over].max().min())
    subject, in_words = ("the median accuracy", format_share) if of == "accuracy" else ("the mean loss", digits)
    return f"{_at_words(over, at)} {_span(_held(frame, over, at, of), subject, in_words)}."


def _at_words(over: str, at: float) -> str:
    if over == "time_s":
        return f"After {format_s(at)}"
    if over == "round":
        return f"After {plural(int(at), 'round')}"
    name, _, unit = over.rpartition("_")
    amount = format_bytes(at) if unit == "bytes" else f"{format_count(at)} {unit.replace('flops', 'FLOPs')}"
    verb = {"device": "computed"}.get(name, name.replace("_", " "))
    return f"With {amount} {verb}"


def accuracy_at_budget(frame: pd.DataFrame) -> str:
    """Which policy has the most when the time is up."""
    best, words = frame["accuracy"].max(), format_s(float(frame["budget_s"].iloc[0]))
    labels = [str(label) for label in frame[frame["accuracy"] == best]["policy"]]
    if len(labels) == len(frame) > 1:
        return f"With {words} every policy has {format_share(best)} (median)."
    most = "have the most" if len(labels) > 1 else "has the most"
    return f"With {words} {listed(labels)} {most}: {format_share(best)} (median)."


def pareto_front(frame: pd.DataFrame) -> str:
    """Who stands on the front, from when to when."""
    front = frame[frame["is_front"]].sort_values("time_s")
    spans: list[tuple[str, float]] = []
    for row in front.to_dict("records"):
        if not spans or spans[-1][0] != row["policy"]:
            spans.append((str(row["policy"]), float(row["time_s"])))
    if len(spans) == 1:
        return f"At every accuracy {spans[0][0]} is the soonest."
    if len(spans) > 4:
        labels = list(dict.fromkeys(label for label, _ in spans))
        return f"The highest median accuracy so far changes hands {len(spans) - 1} times, among {listed(labels)}."
    said = [f"{label} from {format_s(since_s)} on" for label, since_s in spans]
    return f"The highest median accuracy so far has {listed(said, last='then')}."


def time_shares(frame: pd.DataFrame) -> str:
    """How much of the devices' time is spent computing what counts."""
    computing = frame[frame["phase"] == "compute"]
    shares = {str(row["policy"]): float(row["share"]) for row in computing.to_dict("records")}
    return f"Devices {_span(shares, '', format_share, verb='spend').strip()} of their time computing what counts."


def served(frame: pd.DataFrame) -> str:
    """How well the slowest devices are served."""
    slowest = frame[frame["place"] == frame["place"].max()]
    shares = {str(row["policy"]): float(row["accuracy"]) for row in slowest.to_dict("records")}
    return _capitalised(f"{_span(shares, 'the accuracy on the labels of the slowest devices', format_share)}.")


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
