"""FedLAMA with a whole model per device in NumPy: losses after every round and round ends to the last digits; what it
reduces to; what it sends.

Full-batch gradients in float64 and fixed times, as in `test_numpy.py`, whose world this is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.theory.published import relaxed_share, traffic_share
from tests.agreement import by_hand
from tests.agreement.by_hand import Layers, World
from tests.agreement.test_numpy import SIZES, both_engines, run, scenario, world

__all__ = ["world"]  # a fixture

N_PARAMETERS = [64 * 14 + 14, 14 * 32 + 32, 32 * 10 + 10]
Choose = Callable[[list[float]], set[int]]  # from d_l of every layer to the relaxed ones


# ---- by hand --------------------------------------------------------------------------------------------------------


def stepped(w: World, layers: Layers, device: int, n_steps: int, version: int) -> Layers:
    """All layers move from wherever they are; momentum starts anew."""
    change = by_hand.local_change(w, layers, device, [w.n_layers] * n_steps, version)
    return [(old[0] + new[0], old[1] + new[1]) for old, new in zip(layers, change, strict=True)]


def message_s(w: World, device: int, *, down: set[int], up: set[int]) -> float:
    bits = [32.0 * sum(N_PARAMETERS[layer] for layer in layers) for layers in (down, up)]
    return 0.125 + bits[0] / 2**20 + w.upload_latency_s[device] + bits[1] / w.upload_bits_per_s


def played(
    w: World,
    n_rounds: int,
    *,
    steps: int,
    factor: int,
    relaxed: set[int],
    choose: Choose | None = None,
    by_samples: bool = True,
    adjust_from_round: int = 0,
) -> tuple[list[float], list[float], list[set[int]]]:
    """Loss after each round, when each ended, and the layers that each averaged. choose: anew after each full average."""
    everything = set(range(w.n_layers))
    size = [float(len(rows[1])) if by_samples else 1.0 for rows in w.shards]
    p = [each / sum(size) for each in size]
    u: Layers = w.start
    losses, ends_s, averaged, now_s, version, passed = [], [], [], 0.0, 0, 0
    while len(losses) < n_rounds:
        x = {d: list(u) for d in range(w.n_devices)}
        n_in_cycle = 1 if relaxed == everything else factor
        n_steps = steps * factor // n_in_cycle
        down = everything
        for i in range(n_in_cycle):
            due = everything if i == n_in_cycle - 1 else everything - relaxed
            x = {d: stepped(w, own, d, n_steps, version) for d, own in x.items()}
            now_s += max(message_s(w, d, down=down, up=due) + n_steps * w.step_s[d] for d in x)
            d_l = [0.0] * w.n_layers
            for layer in due:
                pairs = [x[d][layer] for d in range(w.n_devices)]
                mean = [np.sum([p[d] * pair[j] for d, pair in enumerate(pairs)], axis=0) for j in (0, 1)]
                off = sum(
                    p[d] * float(((pair[j] - mean[j]) ** 2).sum()) for d, pair in enumerate(pairs) for j in (0, 1)
                )
                d_l[layer] = off / ((steps * factor if layer in relaxed else steps) * N_PARAMETERS[layer])
                u = [(mean[0], mean[1]) if other == layer else pair for other, pair in enumerate(u)]
                for own in x.values():
                    own[layer] = (mean[0], mean[1])
            version, down = version + 1, due
            losses.append(by_hand.loss(u, w.test))
            ends_s.append(now_s)
            averaged.append(due)
        passed += factor
        if choose is not None and passed - 1 >= adjust_from_round:
            relaxed = choose(d_l)
    return losses[:n_rounds], ends_s[:n_rounds], averaged[:n_rounds]


def algorithm_2(*, literal: bool = False, included: bool = False) -> Choose:
    """One layer after the other, sums anew for each."""

    def choose(d_l: list[float]) -> set[int]:
        order = sorted(range(len(d_l)), key=lambda layer: d_l[layer])
        whole = sum(d * n for d, n in zip(d_l, N_PARAMETERS, strict=True))
        relaxed: set[int] = set()
        for i, layer in enumerate(order):
            delta = sum(d_l[o] * N_PARAMETERS[o] for o in order[: i + 1]) / whole
            share = sum(N_PARAMETERS[o] for o in order[: i + 1]) / sum(N_PARAMETERS)
            fits = delta < (share if literal else 1 - share) * (1 - 1e-12 * literal)  # the last two are both 1
            if fits or included:
                relaxed.add(layer)
            if not fits:
                break
        return relaxed

    return choose


# ---- beside the simulator -------------------------------------------------------------------------------------------


def simulated(
    folder: Path, w: World, policy: dict[str, Any], n_rounds: int, engine: str = "auto", **training: Any
) -> tuple[list[float], list[float], list[set[int]]]:
    """The same of fedsim."""
    values = scenario(folder, w, {"kind": "fedlama", **policy}, engine, n_rounds)
    values["training"] |= training
    tables = run({**values, "evaluation": {"every_n_rounds": 1}}).tables
    heard = tables["layers"]["n_contributors"].reshape(-1, w.n_layers)
    averaged = [set(np.flatnonzero(row).tolist()) for row in heard]
    return tables["evaluations"]["loss"][1:].tolist(), tables["rounds"]["end_s"].tolist(), averaged


def assert_same(found: Sequence[Sequence[Any]], expected: Sequence[Sequence[Any]]) -> None:
    assert found[2] == expected[2], "other layers were averaged"
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-12)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-10)


@both_engines
@pytest.mark.parametrize("by_samples", [True, False])
@pytest.mark.parametrize(("factor", "relaxed"), [(2, {0}), (3, {0, 2}), (4, {1}), (2, {0, 1, 2})])
def test_stated_layers_stay_with_the_devices_for_a_whole_cycle(
    tmp_path: Path, world: World, engine: str, factor: int, relaxed: set[int], by_samples: bool
) -> None:
    """Eleven rounds: the last cycle is not finished, and its relaxed layers are still those of the cycle before."""
    policy = {
        "local_steps": 2,
        "interval_factor": factor,
        "relaxed": sorted(relaxed),
        "weighting": "n_samples" if by_samples else "uniform",
    }
    expected = played(world, 11, steps=2, factor=factor, relaxed=relaxed, by_samples=by_samples)
    assert_same(simulated(tmp_path, world, policy, 11, engine), expected)


@both_engines
@pytest.mark.parametrize(
    "settings", [{"momentum": 0.8, "learning_rate": 0.05}, {"decay": 0.9, "weight_decay": 0.05}], ids=str
)
def test_momentum_decay_and_rates_act_within_each_task(
    tmp_path: Path, world: World, engine: str, settings: dict[str, float]
) -> None:
    changed: dict[str, Any] = dict(settings)
    world = replace(world, **changed)
    expected = played(world, 7, steps=3, factor=3, relaxed={0, 1})
    policy = {"local_steps": 3, "interval_factor": 3, "relaxed": [0, 1]}
    assert_same(simulated(tmp_path, world, policy, 7, engine), expected)


RULES: list[tuple[dict[str, Any], dict[str, bool]]] = [
    ({}, {}),
    ({"crossing": "included"}, {"included": True}),
    ({"rule": "literal"}, {"literal": True}),
    ({"rule": "literal", "crossing": "included"}, {"literal": True, "included": True}),
]


@both_engines
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize(("rule", "own"), RULES, ids=str)
def test_layers_are_chosen_by_what_the_devices_disagree_on(
    tmp_path: Path, world: World, engine: str, factor: int, rule: dict[str, Any], own: dict[str, bool]
) -> None:
    expected = played(world, 13, steps=2, factor=factor, relaxed=set(), choose=algorithm_2(**own))
    found = simulated(tmp_path, world, {"local_steps": 2, "interval_factor": factor, **rule}, 13, engine)
    assert_same(found, expected)
    assert any(due != {0, 1, 2} for due in found[2]) or own == {"literal": True, "included": True}


@pytest.mark.parametrize("first", [2, 3])
def test_before_the_stated_round_no_layer_is_relaxed(tmp_path: Path, world: World, first: int) -> None:
    """Cycles of two end with rounds 1, 3, 5: from round 2 or 3 on is after two of them, rounds 0 ... 3 average everything."""
    expected = played(world, 9, steps=2, factor=2, relaxed=set(), choose=algorithm_2(), adjust_from_round=first)
    found = simulated(tmp_path, world, {"local_steps": 2, "adjust_from_round": first}, 9)
    assert_same(found, expected)
    assert [len(due) < 3 for due in found[2][:6]] == [False, False, False, False, True, False]


# ---- what it reduces to ---------------------------------------------------------------------------------------------


def of_fedavg(
    folder: Path, w: World, local_steps: int, n_rounds: int, **training: Any
) -> tuple[list[float], list[float]]:
    values = scenario(folder, w, {"kind": "fedavg", "local_steps": local_steps}, "auto", n_rounds)
    values["training"] |= training
    tables = run({**values, "evaluation": {"every_n_rounds": 1}}).tables
    return tables["evaluations"]["loss"][1:].tolist(), tables["rounds"]["end_s"].tolist()


@pytest.mark.parametrize("training", [{}, {"batch_size": 8}], ids=str)
@pytest.mark.parametrize(
    ("policy", "local_steps"),
    [
        ({"interval_factor": 1}, 3),
        ({"interval_factor": 3, "relaxed": []}, 3),
        ({"interval_factor": 3, "relaxed": [0, 1, 2]}, 9),
    ],
    ids=str,
)
def test_nothing_or_everything_relaxed_is_fedavg(
    tmp_path: Path, world: World, policy: dict[str, Any], local_steps: int, training: dict[str, Any]
) -> None:
    losses, ends_s, _ = simulated(tmp_path, world, {"local_steps": 3, **policy}, 6, **training)
    same_losses, same_ends_s = of_fedavg(tmp_path, world, local_steps, 6, **training)
    np.testing.assert_allclose(losses, same_losses, rtol=1e-10)
    np.testing.assert_allclose(ends_s, same_ends_s, rtol=1e-12)


# ---- what travels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "relaxed"), [(2, [0]), (3, [0, 2]), (4, [1, 2]), (5, [2])])
def test_bytes_on_the_wire_are_the_published_share_of_fedavgs(
    tmp_path: Path, world: World, factor: int, relaxed: list[int]
) -> None:
    """Whole cycles: 1 - gamma (1 - 1 / phi) of the bytes either way, to the byte; undone, the share of parameters."""
    n_rounds = 3 * factor
    sent = {}
    for kind, own in (("fedavg", {}), ("fedlama", {"interval_factor": factor, "relaxed": relaxed})):
        values = scenario(tmp_path, world, {"kind": kind, "local_steps": 1, **own}, "auto", n_rounds)
        rounds = run({**values, "train": False, "evaluation": {}}).tables["rounds"]
        sent[kind] = [int(rounds[name].sum()) for name in ("uploaded_bytes", "downloaded_bytes")]
    share = sum(N_PARAMETERS[layer] for layer in relaxed) / sum(N_PARAMETERS)
    for mine, all_ in zip(sent["fedlama"], sent["fedavg"], strict=True):
        assert all_ == 4 * sum(N_PARAMETERS) * len(SIZES) * n_rounds
        assert mine * sum(N_PARAMETERS) * factor == all_ * (
            sum(N_PARAMETERS) * factor - sum(N_PARAMETERS[layer] for layer in relaxed) * (factor - 1)
        )
        assert mine / all_ == pytest.approx(traffic_share(share, factor), rel=1e-14)
        assert relaxed_share(mine / all_, factor) == pytest.approx(share, rel=1e-12)
