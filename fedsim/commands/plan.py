"""`fedsim plan`: from closed forms alone, how a policy's own settings trade round time against work that counts.

Each setting that a policy states (how many it waits for, its deadline, its local steps, its budget) is turned while the
others stay. Nothing is simulated or trained. The knee of a curve is its point farthest above the chord from its first to
its last point, both axes scaled to 0 ... 1 (Satopaa, Albrecht, Irwin, Raghavan, "Finding a Kneedle in a Haystack",
ICDCSW 2011, section 3): beyond it a round's seconds grow faster than the work that enters the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from fedsim.expectations import fleet_of
from fedsim.facts import Array
from fedsim.protocols import NoClosedForm
from fedsim.run import World, located
from fedsim.scenario.contenders import Contender
from fedsim.scenario.read import LoadedScenario
from fedsim.theory import registry
from fedsim.theory.fleet import Expectation, Fleet, none
from fedsim.theory.rounds import UNITS

SETTINGS = {"k": "devices", "deadline_s": "s", "budget_s": "s", "local_steps": "steps"}
_SPAN = 8.0  # a setting without a largest value goes from an eighth to eight times what is stated
_N_POINTS = 9
DEVICES = ("n_contributions", "is_empty", "inverse_n_contributions")
WORK = ("n_steps", "used_flops", "uploaded_bytes")
"""Dear where a fleet waits for some of many different devices: then left out along k, where a knee is told by devices."""
_LEFT_OUT = "left out along k, where it can take seconds for each value"
MEASURES = {"round_s": "round_s", "n_contributions": "n_contributions", "participation_share": "n_contributions"}
MEASURES |= {"effective_cohort": "inverse_n_contributions", **{name: name for name in WORK}}
_LEAST_KNEE = 0.05  # of the unit square: less of a bend than that is none


@dataclass(frozen=True)
class Point:
    """A round under one value of the setting; None where there is no closed form.

    round_s: mean. n_contributions: mean; participation_share: of the devices asked. effective_cohort: devices whose plain mean would have
    the same variance, 1 / E[1 / N | N >= 1]. n_steps: local steps per device asked. used_flops: of the work that counts.
    uploaded_bytes: of all devices. reasons: why there is none, by the name of the measure.
    """

    value: float
    round_s: float | None
    n_contributions: float | None
    participation_share: float | None
    effective_cohort: float | None
    n_steps: float | None
    used_flops: float | None
    uploaded_bytes: float | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """One setting of one policy. stated: its value in the scenario. knee: the value at the bend; None if there is none.

    reason: why there is no closed form at any point.
    """

    policy: str
    kind: str
    setting: str
    unit: str
    stated: float
    points: tuple[Point, ...]
    knee: float | None
    reason: str | None = None


Ask = Callable[[str, Any, Fleet, tuple[str, ...]], list[Expectation]]
"""Closed forms of a policy of that kind on a fleet, these quantities."""


def plan(loaded: LoadedScenario) -> list[Curve]:
    """Every setting of every policy, on the fleet of the first seed. Raises ScenarioError on bad input."""
    seeds = loaded.scenario.seed_sets[0]
    with located(loaded, loaded.contenders[0]):
        world = World.of(loaded, seeds)
    found = []
    for contender in loaded.contenders:
        with located(loaded, contender):
            planned = world.planned_for(contender)
            planned.refuse_problems(contender, train=True)
        try:
            fleet = fleet_of(planned.weather)
        except NoClosedForm as reason:
            found += [unplanned(contender, name, str(reason)) for name in settings_of(contender)]
            continue
        found += [curve_of(contender, name, fleet) for name in settings_of(contender)]
    return found


def settings_of(contender: Contender) -> list[str]:
    """The settings that the policy states as a number."""
    stated = {f.name: getattr(contender.policy, f.name) for f in fields(contender.policy)}  # type: ignore[arg-type]
    return [name for name in SETTINGS if isinstance(stated.get(name), int | float)]


def asked(kind: str, policy: Any, fleet: Fleet, wanted: tuple[str, ...]) -> list[Expectation]:
    """These quantities, each with its closed form or the reason why it has none."""
    try:
        return registry.expected(kind, policy, fleet, wanted=wanted)
    except NoClosedForm as reason:
        return [none(quantity, UNITS[quantity], str(reason)) for quantity in wanted]


def curve_of(contender: Contender, name: str, fleet: Fleet, ask: Ask = asked) -> Curve:
    """One setting turned while the others stay. ask: where the closed forms come from, a memory of them for example."""
    points = []
    for value, turned in turns_of(contender, name, fleet):
        found = [one for wanted in groups_along(name) for one in ask(contender.kind, turned, fleet, wanted)]
        points.append(point_of(value, found, fleet.n_devices, dict.fromkeys(WORK, _LEFT_OUT) if name == "k" else {}))
    reasons = [point.reasons["round_s"] for point in points if point.round_s is None]
    return _curve(contender, name, points, reasons[-1] if len(reasons) == len(points) else None)


def unplanned(contender: Contender, name: str, reason: str) -> Curve:
    """Of a setting on a fleet that has no closed forms at all."""
    return _curve(contender, name, [], reason)


def turns_of(contender: Contender, name: str, fleet: Fleet) -> list[tuple[Any, Any]]:
    """The values that a setting is turned through, each with the policy that has it."""
    values = values_of(name, getattr(contender.policy, name), fleet.n_devices)
    return [(value, replace(contender.policy, **{name: value})) for value in values]  # type: ignore[type-var]


def groups_along(name: str) -> tuple[tuple[str, ...], ...]:
    """What is asked at each value of a setting, the cheap before the dear."""
    return (("round_s",), DEVICES) if name == "k" else (("round_s",), DEVICES, WORK)


def _curve(contender: Contender, name: str, points: list[Point], reason: str | None) -> Curve:
    stated = float(getattr(contender.policy, name))
    return Curve(contender.label, contender.kind, name, SETTINGS[name], stated, tuple(points), knee_of(points), reason)


def values_of(name: str, stated: float, n_devices: int) -> list[Any]:
    """Values that the setting is turned through, ascending, the stated one among them."""
    if name == "k":
        found = np.unique([*np.linspace(1, n_devices, min(n_devices, _N_POINTS)).round(), stated])
        return [int(k) for k in found]
    spread = np.geomspace(stated / _SPAN, stated * _SPAN, _N_POINTS)
    if name == "local_steps":
        return [int(n) for n in np.unique([*np.maximum(1, spread.round()), stated])]
    return [float(s) for s in np.unique([*np.delete(spread, _N_POINTS // 2), stated])]


def point_of(
    value: float, found: Sequence[Expectation], n_devices: int, reasons: Mapping[str, str] | None = None
) -> Point:
    """found: what is known there. reasons: of what was not asked, by quantity."""
    whole = [one for one in found if one.layer is None and one.device is None]
    means, n_empty = (
        {one.quantity: one.mean for one in whole},
        next((o.mean for o in whole if o.quantity == "is_empty"), 0),
    )
    why = {one.quantity: one.reason for one in found if one.reason} | dict(reasons or {})
    n, inverse = means.get("n_contributions"), means.get("inverse_n_contributions")
    if n == 0:
        inverse, why["inverse_n_contributions"] = None, "no device's work ever enters a round"
    numbers = {name: means.get(quantity) for name, quantity in MEASURES.items()} | {
        "participation_share": None if n is None else n / n_devices,
        "effective_cohort": (1.0 - (n_empty or 0.0)) / inverse if inverse else None,
    }
    lacking = {name: why.get(MEASURES[name], "the policy has none for it") for name in numbers if numbers[name] is None}
    return Point(float(value), **numbers, reasons=lacking)


def knee_of(points: Sequence[Point]) -> float | None:
    """Where the work of a round (FLOPs that count, else devices) falls behind its seconds; None if it never bends."""
    work = "used_flops" if any(p.used_flops is not None for p in points) else "n_contributions"
    whole = [p for p in points if p.round_s is not None and getattr(p, work) is not None]
    if len(whole) < 3:
        return None
    seconds = np.array([p.round_s for p in whole], dtype=np.float64)
    if (np.diff(seconds) < 0).any() or seconds[-1] < 1.01 * seconds[0]:  # nothing to trade: seconds do not buy work
        return None
    x, y = _scaled(seconds), _scaled(np.array([getattr(p, work) for p in whole], dtype=np.float64))
    above = y - x
    best = int(above.argmax())
    return whole[best].value if above[best] >= _LEAST_KNEE and 0 < best < len(whole) - 1 else None


def _scaled(values: Array) -> Array:
    """To 0 ... 1."""
    span = values[-1] - values[0]
    return np.asarray((values - values[0]) / span) if span > 0 else np.zeros(len(values))


def next_step(curves: Sequence[Curve]) -> Iterator[str]:
    """What to simulate next, a line each: the policies' entries with each setting at its knee."""
    for label in dict.fromkeys(curve.policy for curve in curves):
        own = [curve for curve in curves if curve.policy == label and curve.knee is not None]
        if own:
            settings = ", ".join(f"{curve.setting}: {curve.knee:.4g}" for curve in own)
            yield f"  - {{kind: {own[0].kind}, {settings}}}"


def as_json(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    return [asdict(curve) for curve in curves]
