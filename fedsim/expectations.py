"""From a scenario to its closed forms: the fleet that was drawn, in theory's words.

What a fleet's work takes is derived here from the scenario's own numbers and the model's FLOPs and bytes, and not taken
from the clock's tables: agreement is between two derivations. Only the luck is common to both.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.datasets.quadratic import facts
from fedsim.facts import Array, IntArray, ModelShape
from fedsim.protocols import Law, NoClosedForm
from fedsim.scenario.contenders import Contender
from fedsim.theory import learning, registry
from fedsim.theory.fleet import Expectation, Fleet, reach_share
from fedsim.theory.quadratic import Quadratic
from fedsim.timing.fleet import Compute, Link
from fedsim.timing.weather import Weather
from fedsim.training.dealing import Dealt

MOST_DIFFERENT = 10_000
_MOST_ROUNDS, _N_MOMENTS = 1_000, 101
_SPARE = 3  # times as many rounds, so that fast runs are covered at every moment
_CDF_LEVELS = np.concatenate([[0.001, 0.01], np.linspace(0.025, 0.975, 39), [0.99, 0.999]])


def expected(contender: Contender, weather: Weather) -> list[Expectation]:
    """What a round of this policy should have on average on this fleet, or why there is no closed form."""
    try:
        fleet = fleet_of(weather)
        if (n := len(np.unique(fleet.unit_s))) > MOST_DIFFERENT:
            raise NoClosedForm(f"needs at most {MOST_DIFFERENT} different devices to be computed at all; got {n}")
        return registry.expected(contender.kind, contender.policy, fleet)
    except NoClosedForm as reason:
        return [Expectation("round_s", "s", None, reason=str(reason))]


def fleet_of(weather: Weather) -> Fleet:
    """The devices of one seed. Raises NoClosedForm where even their mean speed has no expression."""
    stated, shape, plan = weather.fleet, weather.shape, weather.plan
    everyone = np.arange(stated.n_devices)
    n_rows = plan.full_rows(everyone)
    share, unit_s = _steps(stated.compute, weather, n_rows)
    down_s = _link_s(stated.downlink, "downlink", np.array([shape.suffix_bytes[-1]]), weather)[:, 0]
    up_s = _link_s(stated.uplink, "uplink", shape.suffix_bytes, weather)
    up_s[:, 0] = 0.0  # nothing to send
    law = stated.compute.depth_law
    return Fleet(
        unit_s=unit_s,
        reach_share=share,
        download_s=down_s,
        upload_s=up_s,
        shape=shape,
        n_rows=n_rows.astype(np.float64),
        n_samples=plan.n_samples,
        task_factor=stated.compute.task_factor,
        step_factor=stated.compute.step_factor,
        layer_factor=stated.compute.layer_factor,
        lowest_depth=None if law is None else law.lowest,
        has_fixed_links=not any(_is_redrawn(link) for link in (stated.downlink, stated.uplink)),
        has_even_steps=plan.is_even,
        rows_before=lambda n: plan.rows_before(everyone, np.broadcast_to(n, len(everyone))).astype(np.float64),
        down_s_of=lambda n_bytes: _link_s(stated.downlink, "downlink", n_bytes[:, None], weather)[:, 0],
        up_s_of=lambda n_bytes: _link_s(stated.uplink, "uplink", n_bytes[:, None], weather)[:, 0],
        has_layer_seconds=stated.compute.layer_s is not None,
        batch_size=n_rows,
        memory_bytes=None if stated.memory_bytes is None else weather.persistent(stated.memory_bytes, "memory_bytes"),
        block_io_s=np.broadcast_to(_block_io_s(stated.compute, shape.n_layers), (len(everyone), shape.n_layers + 1)),
    )


def _steps(compute: Compute, weather: Weather, n_rows: IntArray) -> tuple[Array, Array]:
    """Share of a full step until each depth, `[depth]`, and seconds of a full step, `[device]`."""
    shape, n = weather.shape, weather.fleet.n_devices
    if compute.layer_s is not None:
        layer_s = np.broadcast_to(np.asarray(compute.layer_s, dtype=np.float64), (shape.n_layers,))
        until_s = compute.forward_s + np.concatenate([[0.0], np.cumsum(layer_s[::-1])])
        share, base_s = until_s / until_s[-1], np.full(n, until_s[-1])
    else:
        share = reach_share(shape, compute.backward_factor)
        if compute.step_s is not None:
            base_s = weather.persistent(compute.step_s, "step_s")
        else:
            assert compute.flops_per_s is not None  # Compute has exactly one base
            base_s = (
                _counted_flops(shape, compute.backward_factor)
                * n_rows
                / weather.persistent(compute.flops_per_s, "flops_per_s")
            )
    if compute.device_factor is not None:
        base_s = base_s * weather.persistent(compute.device_factor, "device_factor")
    return share, np.asarray(base_s, dtype=np.float64)


def _counted_flops(shape: ModelShape, backward_factor: float) -> float:
    """Of a full step on one row; the input layer hands no gradient on."""
    backward = shape.weight_gradient_flops.sum() + shape.input_gradient_flops[1:].sum()
    return float(shape.forward_flops.sum() + backward_factor * backward)


def _block_io_s(compute: Compute, n_layers: int) -> Array:
    """Of the layers before the d output-most ones, `[depth]`."""
    per_layer = np.broadcast_to(np.asarray(compute.block_io_s, dtype=np.float64), (n_layers,))
    return np.array([per_layer[: n_layers - depth].sum() for depth in range(n_layers + 1)])


def _is_redrawn(link: Link | None) -> bool:
    return (
        link is not None
        and link.redrawn == "task"
        and (isinstance(link.rate_bits_per_s, Law) or isinstance(link.latency_s, Law))
    )


def _link_s(link: Link | None, name: str, n_bytes: IntArray, weather: Weather) -> Array:
    """Seconds of messages of these sizes, `[message]` or `[device, message]`, as `[device, message]`; zeros where they are
    drawn anew for each task."""
    n = weather.fleet.n_devices
    if link is None or _is_redrawn(link):
        return np.zeros((n, n_bytes.shape[-1]))
    latency_s = weather.persistent(link.latency_s, f"{name}.latency_s")
    rate = weather.persistent(link.rate_bits_per_s, f"{name}.rate")
    return np.asarray(latency_s[:, None] + 8.0 * n_bytes / rate[:, None])


# ---- training -------------------------------------------------------------------------------------------------------


def problem_of(contender: Contender, dealt: Dealt, start: Array, layer_of: IntArray) -> Quadratic:
    """The least squares that the devices solve, as the data themselves say it.

    start: weights before the first round, `[parameter]`. layer_of: layer of each, `[parameter]`.
    Raises NoClosedForm for other data sets, and where a setting leaves the training without closed form.
    """
    data, training = dealt.data, contender.training
    if data.input_shape != (len(start) * (len(start) + 1),):
        raise NoClosedForm("needs the model quadratic on the data set quadratic")
    groups = np.array([data.train_labels[rows[0]] if len(rows) else -1 for rows in dealt.samples])
    whole = np.bincount(data.train_labels, minlength=data.n_classes)
    is_one_each = (np.sort(groups) == np.arange(data.n_classes)).all() if len(groups) == data.n_classes else False
    if not is_one_each or any(
        len(rows) != whole[g] or (data.train_labels[rows] != g).any()
        for g, rows in zip(groups, dealt.samples, strict=True)
    ):
        raise NoClosedForm("needs one group of the data on each device: partition one_class, as many devices as groups")
    plain = {"momentum": 0.0, "weight_decay": 0.0, "learning_rate_decay": 1.0}
    if any(getattr(training, name, value) != value for name, value in plain.items()) or contender.server_optimizer:
        raise NoClosedForm("needs plain SGD: no momentum, weight decay, rate decay or server optimizer")
    hessian, optimum, covariance = (each[groups] for each in facts(data))
    if isinstance(training.batch_size, str):
        noise = np.zeros_like(covariance)
    elif training.batches == "with_replacement":
        noise = covariance / training.batch_size
    else:
        raise NoClosedForm(
            "needs batch_size: all, or batches: with_replacement; an epoch's batches depend on each other"
        )
    return Quadratic(hessian, optimum, noise, np.asarray(layer_of), start, training.learning_rate)


def losses(
    contender: Contender, weather: Weather, problem: Quadratic, n_rounds: int | None, horizon_s: float
) -> dict[str, Any]:
    """Expected losses as an entry of expected.json: after each round, and at moments of the clock where that is known."""
    try:
        fleet = fleet_of(weather)
        n = n_rounds or _rounds_within(contender, fleet, horizon_s)
        curve = learning.after_rounds(contender.kind, contender.policy, fleet, problem, _SPARE * n)
    except NoClosedForm as reason:
        return {"quantity": "loss", "unit": "1", "no_closed_form": str(reason)}
    entry: dict[str, Any] = {
        "quantity": "loss",
        "unit": "1",
        "rounds": list(range(n + 1)),
        "mean": curve.loss[: n + 1].tolist(),
    }
    try:
        until_s = horizon_s if np.isfinite(horizon_s) else n * _round_s(contender, fleet)
        times_s = np.linspace(0.0, until_s, _N_MOMENTS)
        at = learning.at_times(contender.kind, contender.policy, fleet, problem, curve.loss, times_s)
    except NoClosedForm:
        return entry
    return entry | {"times_s": times_s.tolist(), "mean_at": at.tolist()}


def _round_s(contender: Contender, fleet: Fleet) -> float:
    found = registry.expected(contender.kind, contender.policy, fleet)
    mean_s = next((one.mean for one in found if one.quantity == "round_s"), None)
    if mean_s is None:
        raise NoClosedForm("needs the mean round time")
    return mean_s


def _rounds_within(contender: Contender, fleet: Fleet, horizon_s: float) -> int:
    """Rounds that the horizon holds on average, and no more than can be drawn."""
    return int(np.clip(np.ceil(horizon_s / _round_s(contender, fleet)), 1, _MOST_ROUNDS))


# ---- as a file ------------------------------------------------------------------------------------------------------


def as_json(found: list[Expectation]) -> list[dict[str, Any]]:
    """A list of objects; a time also carries points of its cdf, `[[seconds, probability], ...]`."""
    return [_entry(one) for one in found]


def _entry(one: Expectation) -> dict[str, Any]:
    entry: dict[str, Any] = {"quantity": one.quantity, "unit": one.unit}
    entry |= {name: getattr(one, name) for name in ("layer", "device") if getattr(one, name) is not None}
    entry |= {"period": one.period} if one.period > 1 else {}
    if one.reason is not None:
        return entry | {"no_closed_form": one.reason}
    entry |= {"mean": one.mean, "variance": one.variance}
    if one.time is not None:
        t_s = one.time.quantiles_s(_CDF_LEVELS)
        entry["cdf"] = np.column_stack([t_s, one.time.cdf(t_s)]).tolist()
    return entry
