"""All six policies on a fleet of fixed times against `by_hand.py`: losses after 5 and 20 rounds and every round's end.

Full-batch gradients in float64, weights, split and partition from files: nothing is left to luck. The perceptron's
widths 64-14-32-10 make a step cost 3 F - f_1 = 4096 multiply-adds, so depths 1, 2, 3 take exactly 31/64, 43/64 and 64/64
of it, and with times that are sums of powers of two a deadline can be hit exactly: depths 0 to 3 occur, each of 1 to 3
also as a tie. The slowest upload's 0.6 s bring the rounds' starts off that grid, where only offsets still show the ties.

Where depths are drawn, the realised ones are read from the tasks table and only the rest is computed by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.datasets.digits import Digits
from fedsim.run import RunResult, simulate
from tests.agreement import by_hand
from tests.agreement.by_hand import Round, Rows, Story, World

WIDTHS = (64, 14, 32, 10)
DATA_SEED = 7
SIZES = (10, 20, 30, 40, 15, 25, 35, 20, 45)  # samples of each device

READY_S = 0.125 + 55_040 / 2**20  # 1,720 parameters of 32 bits over 2^20 bit/s
UPLOAD_LATENCY_S = (0.0625, 0.25, 0.1, 0.125, 0.0625, 0.6, 0.1, 0.0625, 0.25)
BUDGET_S = 1333 / 1024  # = 31/64 x 43/16 = 43/64 x 31/16: what is left of the SALF deadline after the download
# Done early; ties at depth 3, 2 and 1; just too late for depth 3; depths 2 and 1; still in the forward pass; as before.
STEP_S = (1.0, BUDGET_S, 31 / 16, 43 / 16, BUDGET_S + 2**-20, 1.6, 2.5, 4.0, 3.0)
ARRIVAL_DEADLINE_S = READY_S + 3 * 1.5 + 0.25 + 55_040 / 2**18  # device 1 of the next fleet uploads in time to the bit
# Three steps of 1.0 s are 2 of 1.5 s, 1 of 3.0 s and not quite 1 of the last.
STEADY_STEP_S = (1.0, 1.5, 3.0, 0.75, 4.5, 1.6, 2.5, 3.0 + 2**-20, 0.5)
BUDGET_FOR_TWO_STEPS_S = 2 * 43 / 16 * 31 / 64


@pytest.fixture(scope="module")
def world() -> World:
    """The hand-written world: 240 training and 90 test rows of digits, weights drawn by NumPy."""
    digits = Digits().load(None, DATA_SEED)
    inputs = np.concatenate([digits.train_inputs, digits.test_inputs]).astype(np.float64)
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    train, test, shards = _indices(len(labels))
    rng = np.random.default_rng(11)
    start = [
        (rng.normal(size=(n_out, n_in)) / np.sqrt(n_in), 0.1 * rng.normal(size=n_out))
        for n_in, n_out in pairwise(WIDTHS)
    ]
    return World(
        widths=WIDTHS,
        start=start,
        shards=[_rows(inputs, labels, train[mine]) for mine in shards],
        test=_rows(inputs, labels, test),
        step_s=STEP_S,
        ready_s=READY_S,
        upload_latency_s=UPLOAD_LATENCY_S,
        upload_bits_per_s=float(2**18),
        learning_rate=0.3,
    )


def _rows(inputs: by_hand.FloatArray, labels: by_hand.IntArray, index: by_hand.IntArray) -> Rows:
    return inputs[index], labels[index]


def _indices(n_rows: int) -> tuple[by_hand.IntArray, by_hand.IntArray, list[by_hand.IntArray]]:
    """Training rows, test rows, and each device's rows among the training rows."""
    order = np.random.default_rng(3).permutation(n_rows)
    shuffled = np.random.default_rng(4).permutation(sum(SIZES))
    return order[: sum(SIZES)], order[sum(SIZES) : sum(SIZES) + 90], np.split(shuffled, np.cumsum(SIZES)[:-1])


def scenario(folder: Path, world: World, policy: Mapping[str, Any], engine: str, n_rounds: int) -> dict[str, Any]:
    """The same world as fedsim reads it, its files written to `folder`."""
    train, test, shards = _indices(1797)
    np.savez(folder / "split.npz", train=train, test=test)
    np.savez(folder / "partition.npz", *shards)
    tensors: dict[str, Any] = {}
    for i, (weight, bias) in enumerate(world.start, start=1):
        tensors |= {f"fc{i}.linear.weight": weight, f"fc{i}.linear.bias": bias}
    np.savez(folder / "weights.npz", **tensors)
    return {
        "name": "by-hand",
        "fleet": {
            "n_devices": len(SIZES),
            "compute": {"step_s": list(world.step_s)},
            "uplink": {"rate_bits_per_s": world.upload_bits_per_s, "latency_s": list(world.upload_latency_s)},
            "downlink": {"rate_bits_per_s": float(2**20), "latency_s": 0.125},
        },
        "model": {"kind": "mlp", "widths": list(WIDTHS[1:-1]), "initial_weights": str(folder / "weights.npz")},
        "data": {
            "kind": "digits",
            "split_file": str(folder / "split.npz"),
            "partition": {"kind": "file", "path": str(folder / "partition.npz")},
        },
        "training": {
            "batch_size": "all",
            "learning_rate": world.learning_rate,
            "learning_rate_decay": world.decay,
            "momentum": world.momentum,
            "weight_decay": world.weight_decay,
            "dtype": "float64",
            "engine": engine,
        },
        "policies": [dict(policy)],
        "seeds": [DATA_SEED],
        "stop": {"n_rounds": n_rounds},
        "evaluation": {"every_s": 1000.0},  # the losses compared are the final ones
    }


def run(values: dict[str, Any]) -> RunResult:
    loaded = fedsim.from_dict(values)
    return simulate(loaded, loaded.contenders[0], loaded.scenario.seed_sets[0])


def assert_same(
    folder: Path,
    world: World,
    policy: Mapping[str, Any],
    story: Story,
    engine: str,
    server: by_hand.ServerRule = by_hand.plain,
) -> None:
    """Losses after 5 and 20 rounds to 1e-10, round ends to 1e-12, relative."""
    for n_rounds in (5, 20):
        result = run(scenario(folder, world, policy, engine, n_rounds))
        layers, ends_s = by_hand.play(world, story, n_rounds, server)
        np.testing.assert_allclose(result.tables["rounds"]["end_s"], ends_s, rtol=1e-12, atol=0)
        np.testing.assert_allclose(result.manifest["final"]["loss"], by_hand.loss(layers, world.test), rtol=1e-10)


both_engines = pytest.mark.parametrize("engine", ["auto", "reference"])


# ---- this file's own arithmetic -------------------------------------------------------------------------------------


def test_gradients_by_hand_are_difference_quotients(world: World) -> None:
    """Central differences, whose error is of order h^2 + rounding / h: about 1e-9 at h = 1e-5."""
    found = by_hand.gradients(world.start, world.shards[0])
    for layer, tensor, index in [(0, 0, (3, 20)), (0, 1, (5,)), (1, 0, (30, 2)), (2, 0, (9, 31)), (2, 1, (0,))]:
        values = []
        for h in (1e-5, -1e-5):
            moved = [(weight.copy(), bias.copy()) for weight, bias in world.start]
            moved[layer][tensor][index] += h
            values.append(by_hand.loss(moved, world.shards[0]))
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(found[layer][tensor][index], abs=1e-8)


def test_every_depth_occurs_and_every_depth_as_an_exact_tie(world: World) -> None:
    deadline_s = READY_S + BUDGET_S
    reached = [[world.reached_s(d, depth) for depth in (1, 2, 3)] for d in range(world.n_devices)]
    assert [sum(at_s <= deadline_s for at_s in own) for own in reached] == [3, 3, 2, 1, 2, 2, 1, 0, 0]
    assert [[at_s == deadline_s for at_s in own] for own in reached[1:4]] == [
        [False, False, True],
        [False, True, False],
        [True, False, False],
    ]


# ---- the six policies -----------------------------------------------------------------------------------------------


@both_engines
@pytest.mark.parametrize("weighting", ["n_samples", "uniform"])
def test_fedavg_is_the_weighted_mean_over_all(tmp_path: Path, world: World, engine: str, weighting: str) -> None:
    policy = {"kind": "fedavg", "local_steps": 3, "weighting": weighting}

    def story(w: World, _: int) -> Round:
        return by_hand.fedavg(w, 3, by_samples=weighting == "n_samples")

    assert_same(tmp_path, world, policy, story, engine)


@both_engines
def test_fedavg_with_over_selection_takes_the_first_uploads(tmp_path: Path, world: World, engine: str) -> None:
    policy = {"kind": "fedavg", "local_steps": 2, "n_sampled": 6, "over_selected": 3}
    assert_same(tmp_path, world, policy, lambda w, _: by_hand.fedavg(w, 2, n_awaited=6), engine)


@both_engines
@pytest.mark.parametrize("dilute", [False, True])
def test_drop_stragglers_counts_who_arrives_at_the_deadline(
    tmp_path: Path, world: World, engine: str, dilute: bool
) -> None:
    world = replace(world, step_s=STEADY_STEP_S)
    assert world.steps_end_s(1, 3) + world.upload_s(1, 3) == ARRIVAL_DEADLINE_S
    policy = {"kind": "drop_stragglers", "local_steps": 3, "deadline_s": ARRIVAL_DEADLINE_S, "dilute": dilute}

    def story(w: World, _: int) -> Round:
        return by_hand.drop_stragglers(w, 3, ARRIVAL_DEADLINE_S, dilute=dilute)

    assert_same(tmp_path, world, policy, story, engine)


@both_engines
@pytest.mark.parametrize("k", [1, 4, 9])
def test_k_sync_takes_the_gradients_of_the_k_first(tmp_path: Path, world: World, engine: str, k: int) -> None:
    assert_same(tmp_path, world, {"kind": "k_sync", "k": k}, lambda w, _: by_hand.k_sync(w, k), engine)


@both_engines
def test_stsyn_stops_all_at_the_kth_fastest_and_averages_whole_steps(tmp_path: Path, world: World, engine: str) -> None:
    world = replace(world, step_s=STEADY_STEP_S)
    stopped = by_hand.stsyn(world, 3, 3)
    assert {d: len(own) for d, own in stopped.depths.items()} == {0: 3, 1: 2, 2: 1, 3: 4, 5: 1, 6: 1, 8: 6}
    policy = {"kind": "stsyn", "k": 3, "local_steps": 3}
    assert_same(tmp_path, world, policy, lambda w, _: by_hand.stsyn(w, 3, 3), engine)


SALF_RULES = [
    {"p_l": "none"},
    {"p_l": "oracle"},  # reach probabilities of a fleet without luck are 0 or 1: no correction
    {"rule": "diluted"},
    {"rule": "inverse_probability", "p_l": "oracle"},  # all contributors had probability 1: the diluted sum
]


@both_engines
@pytest.mark.parametrize("deadline_on", ["compute", "arrival"])
@pytest.mark.parametrize("rule", SALF_RULES, ids=lambda rule: "-".join(rule.values()))
def test_salf_averages_each_layer_over_those_who_reached_it(
    tmp_path: Path, world: World, engine: str, deadline_on: str, rule: dict[str, str]
) -> None:
    deadline_s = READY_S + BUDGET_S
    policy = {"kind": "salf", "deadline_s": deadline_s, "deadline_on": deadline_on, **rule}

    def story(w: World, _: int) -> Round:
        return by_hand.salf(w, deadline_s, deadline_on=deadline_on, diluted="rule" in rule)

    assert_same(tmp_path, world, policy, story, engine)


@both_engines
@pytest.mark.parametrize("deadline_on", ["compute", "arrival"])
def test_salf_with_a_late_deadline_is_over_when_all_have_arrived(
    tmp_path: Path, world: World, engine: str, deadline_on: str
) -> None:
    policy = {"kind": "salf", "deadline_s": 100.0, "deadline_on": deadline_on}

    def story(w: World, _: int) -> Round:
        return by_hand.fedavg(w, 1, by_samples=False)

    assert_same(tmp_path, world, policy, story, engine)


@both_engines
@pytest.mark.parametrize("dilute", [False, True])
@pytest.mark.parametrize("weighting", ["n_samples", "uniform"])
def test_fedpmt_with_stated_depths_averages_each_layer_over_its_trainers(
    tmp_path: Path, world: World, engine: str, weighting: str, dilute: bool
) -> None:
    depths = [3, 2, 1, 0, 3, 2, 1, 1, 2]
    policy = {"kind": "fedpmt", "depths": depths, "local_steps": 3, "weighting": weighting, "dilute": dilute}

    def story(w: World, _: int) -> Round:
        return by_hand.fedpmt(w, 3, depths, by_samples=weighting == "n_samples", dilute=dilute)

    assert_same(tmp_path, world, policy, story, engine)


@both_engines
def test_fedpmt_widths_are_the_largest_that_the_budget_pays(tmp_path: Path, world: World, engine: str) -> None:
    """Two steps within twice 1333/1024 s of compute: depths as under SALF's deadline, ties included."""
    policy = {"kind": "fedpmt", "budget_s": BUDGET_FOR_TWO_STEPS_S, "local_steps": 2}
    # 2^-20 s a step too slow for depth 3 is 0.8 parts in a million: above the rounding that a budget forgives.
    depths = [3, 3, 2, 1, 2, 2, 1, 0, 0]

    def story(w: World, _: int) -> Round:
        return by_hand.fedpmt(w, 2, depths, by_samples=True, dilute=False)

    assert_same(tmp_path, world, policy, story, engine)


# ---- training settings ----------------------------------------------------------------------------------------------

SETTINGS = [
    {"momentum": 0.9, "learning_rate": 0.05},
    {"weight_decay": 0.05},
    {"decay": 0.9},
    {"momentum": 0.5, "weight_decay": 0.02, "decay": 0.95},
]


@both_engines
@pytest.mark.parametrize("changed", SETTINGS, ids="-".join)
@pytest.mark.parametrize("kind", ["fedavg", "stsyn", "salf", "fedpmt", "k_sync"])
def test_momentum_weight_decay_and_decaying_rates_act_within_each_task(
    tmp_path: Path, world: World, engine: str, kind: str, changed: dict[str, float]
) -> None:
    depths = [3, 2, 1, 0, 3, 2, 1, 1, 2]
    deadline_s = READY_S + BUDGET_S
    cases: dict[str, tuple[dict[str, Any], Story]] = {
        "fedavg": ({"local_steps": 3}, lambda w, _: by_hand.fedavg(w, 3)),
        "stsyn": ({"k": 3, "local_steps": 3}, lambda w, _: by_hand.stsyn(w, 3, 3)),
        "salf": (
            {"deadline_s": deadline_s},
            lambda w, _: by_hand.salf(w, deadline_s, deadline_on="compute", diluted=False),
        ),
        "fedpmt": (
            {"depths": depths, "local_steps": 3},
            lambda w, _: by_hand.fedpmt(w, 3, depths, by_samples=True, dilute=False),
        ),
        "k_sync": ({"k": 4}, lambda w, _: by_hand.k_sync(w, 4)),
    }
    parameters, story = cases[kind]
    settings: dict[str, Any] = dict(changed)
    assert_same(tmp_path, replace(world, **settings), {"kind": kind, **parameters}, story, engine)


def sgd_with_momentum(learning_rate: float, momentum: float) -> by_hand.ServerRule:
    """velocity = momentum velocity + change; value += learning_rate velocity; one velocity per tensor."""
    velocity: dict[int, by_hand.FloatArray] = {}

    def rule(name: int, value: by_hand.FloatArray, change: by_hand.FloatArray) -> by_hand.FloatArray:
        velocity[name] = momentum * velocity.get(name, np.zeros_like(value)) + change
        return value + learning_rate * velocity[name]

    return rule


def fed_adam(learning_rate: float, beta_1: float, beta_2: float, tau: float) -> by_hand.ServerRule:
    """arXiv 2003.00295, Algorithm 2: m = b1 m + (1 - b1) d, v = b2 v + (1 - b2) d^2, x += rate m / (sqrt(v) + tau).

    v starts at tau^2, the least that the algorithm allows.
    """
    m: dict[int, by_hand.FloatArray] = {}
    v: dict[int, by_hand.FloatArray] = {}

    def rule(name: int, value: by_hand.FloatArray, change: by_hand.FloatArray) -> by_hand.FloatArray:
        m[name] = beta_1 * m.get(name, np.zeros_like(value)) + (1 - beta_1) * change
        v[name] = beta_2 * v.get(name, np.full_like(value, tau**2)) + (1 - beta_2) * change**2
        return value + learning_rate * m[name] / (np.sqrt(v[name]) + tau)

    return rule


@both_engines
@pytest.mark.parametrize("kind", ["fedavg", "salf"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_server_optimizer_works_on_the_weighted_sum(
    tmp_path: Path, world: World, engine: str, kind: str, optimizer: str
) -> None:
    deadline_s = READY_S + BUDGET_S - 2**-10  # no tie: nobody but device 0 has the input layer

    def salf(w: World, number: int) -> Round:
        return by_hand.salf(w, deadline_s, deadline_on="compute", diluted=False)

    parameters: dict[str, Any] = {"local_steps": 2} if kind == "fedavg" else {"deadline_s": deadline_s}
    story: Story = (lambda w, _: by_hand.fedavg(w, 2)) if kind == "fedavg" else salf
    if optimizer == "sgd":
        settings: dict[str, Any] = {"kind": "sgd", "learning_rate": 0.7, "momentum": 0.8}
    else:
        settings = {
            "kind": "adam",
            "learning_rate": 0.02,
            "momentum": 0.9,
            "second_momentum": 0.97,
            "adaptivity": 0.001,
        }
    for n_rounds in (5, 20):
        server = sgd_with_momentum(0.7, 0.8) if optimizer == "sgd" else fed_adam(0.02, 0.9, 0.97, 0.001)
        policy = {"kind": kind, **parameters, "server_optimizer": settings}
        result = run(scenario(tmp_path, world, policy, engine, n_rounds))
        layers, _ = by_hand.play(world, story, n_rounds, server)
        np.testing.assert_allclose(result.manifest["final"]["loss"], by_hand.loss(layers, world.test), rtol=1e-10)


# ---- drawn depths: only what happened is read from the tasks table --------------------------------------------------


def realised(result: RunResult) -> list[dict[int, list[int]]]:
    """device -> depths of its one gradient, per round, of those that delivered anything."""
    tasks = result.tables["tasks"]
    rounds: list[dict[int, list[int]]] = [{} for _ in range(int(tasks["round"].max()) + 1)]
    for number, device, depth in zip(tasks["round"], tasks["device"], tasks["depth"], strict=True):
        if depth:
            rounds[number][int(device)] = [int(depth)]
    return rounds


@both_engines
@pytest.mark.parametrize("lowest", [0, 1])
@pytest.mark.parametrize("n_sampled", [9, 2])
def test_salf_divides_each_layers_mean_by_the_probability_that_somebody_reached_it(
    tmp_path: Path, world: World, engine: str, lowest: int, n_sampled: int
) -> None:
    """Uniform depths on lowest ... L: layer l of 1 ... L is reached with q = l / (L + 1 - lowest); p_l = (1 - q)^U."""
    policy = {"kind": "salf", "deadline_s": 1.0, "n_sampled": n_sampled}
    values = scenario(tmp_path, world, policy, engine, 20)
    values["fleet"]["compute"]["depth_law"] = {"kind": "uniform", "lowest": lowest}
    result = run(values)
    depths = realised(result)
    q = [layer / (3 + 1 - lowest) for layer in (1, 2, 3)]

    def story(w: World, number: int) -> Round:
        means = by_hand.shared_weights(w, depths[number])
        factors = [1.0 / (1.0 - (1.0 - each) ** n_sampled) for each in q]
        weights = {d: [a * b for a, b in zip(own, factors, strict=True)] for d, own in means.items()}
        return Round(0.0, depths[number], weights)

    layers, _ = by_hand.play(world, story, 20)
    np.testing.assert_allclose(result.manifest["final"]["loss"], by_hand.loss(layers, world.test), rtol=1e-10)


@both_engines
@pytest.mark.parametrize("rule", ["contributors", "inverse_probability"])
def test_salf_on_unequal_random_devices_uses_each_devices_own_reach(
    tmp_path: Path, world: World, engine: str, rule: str
) -> None:
    """Exponential slowness X of each task: q_u,d = P(X <= (T - download) / C_u,d) = 1 - exp(-(T - download) / C_u,d)."""
    deadline_s = READY_S + 1.5
    values = scenario(tmp_path, world, {"kind": "salf", "deadline_s": deadline_s, "rule": rule}, engine, 20)
    values["fleet"]["compute"]["task_factor"] = {"kind": "exponential", "mean": 1.0}
    result = run(values)
    depths = realised(result)
    shares = by_hand.step_shares(WIDTHS)[::-1]  # from the input: layer 0 is the deepest
    q = [[1.0 - np.exp(-1.5 / (step_s * share)) for share in shares] for step_s in world.step_s]

    def story(w: World, number: int) -> Round:
        if rule == "inverse_probability":
            diluted = by_hand.shared_weights(w, depths[number], total=float(w.n_devices))
            return Round(
                0.0, depths[number], {d: [a / b for a, b in zip(own, q[d], strict=True)] for d, own in diluted.items()}
            )
        somebody = [1.0 - np.prod([1.0 - q[d][layer] for d in range(w.n_devices)]) for layer in range(3)]
        means = by_hand.shared_weights(w, depths[number])
        return Round(
            0.0, depths[number], {d: [a / b for a, b in zip(own, somebody, strict=True)] for d, own in means.items()}
        )

    layers, _ = by_hand.play(world, story, 20)
    np.testing.assert_allclose(result.manifest["final"]["loss"], by_hand.loss(layers, world.test), rtol=1e-10)
