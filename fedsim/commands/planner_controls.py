"""What of a scenario the planner lets one turn: for each number its place, words, unit and range.

Only what the scenario states is offered. A place is a location in the scenario, keys and list positions joined by "/":
`fleet/compute/step_s`, `policies/2/k`. Of a list with one entry per device, those that are alike are turned together:
`policies/2/rates/=0.5` stands for all of its entries that are 0.5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedsim.commands.plan import SETTINGS, settings_of
from fedsim.scenario.contenders import Contender
from fedsim.scenario.places import value_at
from fedsim.scenario.read import LoadedScenario
from fedsim.statistics.words import plural
from fedsim.timing.fleet import Compute

AS_STATED = " (as stated)"
_WIDE = 10.0  # a number without bounds of its own goes from a tenth to ten times what is stated
_WORDS = {
    "k": "devices waited for (K)",
    "deadline_s": "deadline",
    "budget_s": "budget of a device",
    "local_steps": "local steps",
}
_WIDTHS = {"rates": "width", "kept_shares": "share that is kept", "depths": "layers trained"}
_MOST_WIDTHS = 4  # of a list with more different entries none is offered


@dataclass(frozen=True)
class Control:
    """One number or choice. key: its place. policy: position of the policy that it belongs to; None: the fleet's.

    unit: in which it is shown; "" where a number has none. scale: so many of the scenario's units make one of these.
    stated: the scenario's value. least, most: range of the scenario's values. is_whole: only whole numbers.
    is_log: the range is wide and is walked in ratios. until: the place of the control whose value is the largest one.
    choices: of a control that is no number, by what they are called.
    """

    key: str
    words: str
    unit: str
    stated: float | str
    least: float = 0.0
    most: float = 0.0
    is_whole: bool = False
    is_log: bool = False
    policy: int | None = None
    until: str | None = None
    scale: float = 1.0
    choices: Mapping[str, Any] = field(default_factory=dict)


def location(key: str) -> tuple[str | int, ...]:
    """A key's parts, list positions as numbers."""
    return tuple(int(part) if part.isdigit() else part for part in key.split("/"))


def put(block: Any, part: str | int, value: Any, stated: Any) -> None:
    """Write into the block what a control's last part stands for. stated: the block as it was before anything was turned."""
    if isinstance(block, list):
        for i, before in enumerate(stated):
            block[i] = value if before == float(str(part).removeprefix("=")) else block[i]
        return
    block[part] = value


def controls(loaded: LoadedScenario) -> list[Control]:
    """Of the fleet, then of each policy."""
    fleet, n_devices = loaded.scenario.model_dump(mode="json")["fleet"], loaded.scenario.fleet.n_devices
    found = [] if _lists_devices(fleet, loaded.contenders) else [_n_devices(n_devices)]
    found += [*_numbers(fleet), *_luck(loaded.scenario.fleet.compute, fleet["compute"])]
    return [*found, *(one for i, each in enumerate(loaded.contenders) for one in _of_policy(i, each, n_devices))]


# ---- the fleet ------------------------------------------------------------------------------------------------------


def _n_devices(stated: int) -> Control:
    return Control("fleet/n_devices", "devices", "", stated, 1, max(100, 4 * stated), is_whole=True)


def _lists_devices(fleet: Mapping[str, Any], contenders: tuple[Contender, ...]) -> bool:
    """Whether something has one entry per device: then another number of devices would need other lists."""
    stated = [*fleet.values(), *(v for block in fleet.values() if isinstance(block, dict) for v in block.values())]
    own = [value for contender in contenders for value in vars(contender.policy).values()]
    return any(isinstance(value, list | tuple) and len(value) == fleet["n_devices"] for value in [*stated, *own])


def _numbers(fleet: Mapping[str, Any]) -> Iterator[Control]:
    """The fleet's numbers that are stated, and the means and spreads of its laws."""
    for at, words, unit, scale in (
        ("compute/step_s", "a local step", "s", 1.0),
        ("compute/step_s/mean", "a local step, mean", "s", 1.0),
        ("compute/layer_s", "a layer's backward pass", "s", 1.0),
        ("compute/flops_per_s", "speed of a device", "GFLOP/s", 1e9),
        ("compute/flops_per_s/mean", "speed of a device, mean", "GFLOP/s", 1e9),
        ("uplink/rate_bits_per_s", "uplink", "Mbit/s", 1e6),
        ("downlink/rate_bits_per_s", "downlink", "Mbit/s", 1e6),
    ):
        stated = value_at(fleet, at.split("/"))
        if _is_number(stated):
            span = stated / _WIDE, stated * _WIDE
            yield Control(f"fleet/{at}", words, unit, stated, *span, is_log=True, scale=scale)
    for at in ("compute/device_factor", "compute/step_s", "compute/flops_per_s"):
        sigma = value_at(fleet, (*at.split("/"), "sigma"))
        if _is_number(sigma):
            words = "spread of the devices (sigma)"
            yield Control(f"fleet/{at}/sigma", words, "", sigma, 0.05, max(2.0, 2 * sigma))


def _luck(compute: Compute, stated: Mapping[str, Any]) -> Iterator[Control]:
    for factor, words in (("task_factor", "luck of a task"), ("step_factor", "luck of a step")):
        law = getattr(compute, factor)
        if law is not None:
            choices = {f"{_called(stated[factor])}{AS_STATED}": stated[factor], **_others(law.mean, stated[factor])}
            yield Control(f"fleet/compute/{factor}", words, "", next(iter(choices)), choices=choices)


def _others(mean: float, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Other laws of this mean, by what they are called; none where it is infinite."""
    if not np.isfinite(mean):
        return {}
    certain = None if abs(mean - 1.0) < 1e-12 else {"kind": "constant", "value": mean}
    laws = (
        {"kind": "exponential", "mean": mean},
        {"kind": "gamma", "shape": 4.0, "mean": mean},
        {"kind": "lognormal", "sigma": 1.0, "median": mean * float(np.exp(-0.5))},
        {"kind": "pareto", "shape": 1.5, "minimum": mean / 3.0},
    )
    return {"none": certain} | {_called(law): law for law in laws if _called(law) != _called(stated)}


def _called(law: Mapping[str, Any]) -> str:
    spread = next((f", {name} {law[name]:g}" for name in ("shape", "sigma") if name in law), "")
    return f"{law['kind']}{spread}"


# ---- a policy -------------------------------------------------------------------------------------------------------


def _of_policy(i: int, contender: Contender, n_devices: int) -> Iterator[Control]:
    yield from _widths(i, contender)
    for name in settings_of(contender):
        stated = getattr(contender.policy, name)
        key, words = f"policies/{i}/{name}", _WORDS[name]
        if name == "k":
            until = "fleet/n_devices"
            yield Control(key, words, "", stated, 1, n_devices, is_whole=True, policy=i, until=until)
        elif name == "local_steps":
            yield Control(key, words, "", stated, 1, max(40, 4 * stated), is_whole=True, policy=i)
        else:
            yield Control(key, words, SETTINGS[name], stated, stated / _WIDE, stated * _WIDE, is_log=True, policy=i)


def _widths(i: int, contender: Contender) -> Iterator[Control]:
    """Of the lists with one entry per device: one for each value that occurs in them."""
    for name, words in _WIDTHS.items():
        stated = getattr(contender.policy, name, None) or ()
        told = Counter(stated)
        for value, n in sorted(told.items()) if len(told) <= _MOST_WIDTHS else ():
            is_whole, who = isinstance(value, int), f"{words}, {plural(n, 'device')} at {value:g}"
            least, most = (1, max(stated)) if is_whole else (0.05, 1.0)
            key = f"policies/{i}/{name}/={value}"
            yield Control(key, who, "", value, least, most, is_whole=is_whole, policy=i)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
