"""How fast is the clock, beside the SimPy program that everyone writes first?

    python analysis/clock_speed.py [--json]

Plain: one generator process per device with three timeouts (download, compute, upload); the K-th arrival ends a round.
Both play the same K-waiting round, timing only, interleaved in one process; microseconds per device-round are medians
of the pairs, and the ratio is the median of the pairs' ratios. The deadline and the 1,000,000-device rounds have no
plain counterpart here (it would take half a minute); they are the medians of their own repeats.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator

import numpy as np
import simpy

from fedsim.delays import Exponential
from fedsim.facts import BatchPlan, ModelShape
from fedsim.policies.drop_stragglers import DropStragglers
from fedsim.policies.k_sync import KSync
from fedsim.policies.salf import Salf
from fedsim.policies.stsyn import STSyn
from fedsim.protocols import Policy
from fedsim.timing.book import ClosedJobs, ClosedRound
from fedsim.timing.fleet import Compute, Fleet, Link
from fedsim.timing.server import SimServer
from fedsim.timing.untrained import Untrained
from fedsim.timing.weather import Weather

LAYERS = 4
SHAPE = ModelShape(
    layer_names=tuple("abcd"),
    n_parameters=np.full(LAYERS, 1000),
    parameter_bytes=np.full(LAYERS, 4000),
    forward_flops=np.full(LAYERS, 2000.0),
    weight_gradient_flops=np.full(LAYERS, 2000.0),
    input_gradient_flops=np.full(LAYERS, 2000.0),
    n_activations=np.full(LAYERS, 10),
    n_kept_activations=np.full(LAYERS, 10),
)


class CountRounds:
    """A book that keeps nothing and ends after so many rounds."""

    def __init__(self, n_rounds: int) -> None:
        self.left = n_rounds

    def before_change(self, now_s: float) -> None: ...

    def jobs_closed(self, jobs: ClosedJobs) -> None: ...

    def round_closed(self, closed: ClosedRound) -> str | None:  # noqa: ARG002  # the role has it
        self.left -= 1
        return None if self.left else "enough"


def ours_s(policy: Policy, n_devices: int, n_rounds: int, compute: Compute, link: Link | None) -> float:
    """Seconds of real time per round."""
    fleet = Fleet(n_devices, compute, uplink=link, downlink=link)
    plan = BatchPlan(np.full(n_devices, 16), 16, with_replacement=True)
    server = SimServer(Weather(fleet, SHAPE, plan, 1, 1), Untrained(SHAPE), CountRounds(n_rounds))
    start = time.perf_counter()
    server.play(policy)
    return (time.perf_counter() - start) / n_rounds


def plain_s(n_devices: int, k: int, n_rounds: int, transfer_s: float) -> float:
    """Seconds of real time per round of the plain program."""
    rng = np.random.default_rng(1)
    start = time.perf_counter()
    for _ in range(n_rounds):
        env = simpy.Environment()
        n_arrived, over = 0, env.event()

        def device(compute_s: float, env: simpy.Environment = env, over: simpy.Event = over) -> Iterator[simpy.Event]:
            nonlocal n_arrived
            yield env.timeout(transfer_s)
            yield env.timeout(compute_s)
            yield env.timeout(transfer_s)
            n_arrived += 1
            if n_arrived == k:
                over.succeed()

        for compute_s in rng.exponential(1.0, n_devices).tolist():
            env.process(device(compute_s))
        env.run(until=over)
    return (time.perf_counter() - start) / n_rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    by_task, by_step = (Compute(step_s=1.0, **{f: Exponential()}) for f in ("task_factor", "step_factor"))
    link = Link(1e6, 0.01)
    rows = []
    for n in (100, 1_000, 10_000):
        n_rounds = max(2, 20_000 // n)
        pairs = [
            (ours_s(KSync(k=n // 2), n, n_rounds, by_task, link), plain_s(n, n // 2, n_rounds, 0.138)) for _ in range(7)
        ]
        ours, ratio = np.median([o for o, _ in pairs]), np.median([p / o for o, p in pairs])
        rows.append({"case": f"k_sync/{n}", "us_per_device_round": 1e6 * ours / n, "ratio_to_plain": ratio})
    for name, policy, compute in (
        ("drop_stragglers/1000", DropStragglers(deadline_s=1.0, local_steps=1), by_task),
        ("salf/1000", Salf(deadline_s=1.0), by_task),
        ("stsyn/1000", STSyn(k=500, local_steps=5), by_task),
        ("stsyn-steps-drawn/1000", STSyn(k=500, local_steps=5), by_step),
    ):
        ours = np.median([ours_s(policy, 1_000, 20, compute, link) for _ in range(7)])
        rows.append({"case": name, "us_per_device_round": 1e6 * ours / 1_000, "ratio_to_plain": None})
    for name, policy in (
        ("k_sync/1000000", KSync(k=500_000)),
        ("drop_stragglers/1000000", DropStragglers(deadline_s=0.8, local_steps=1)),
        ("salf/1000000", Salf(deadline_s=0.8)),
    ):
        ours = np.median([ours_s(policy, 1_000_000, 5, by_task, None) for _ in range(5)])
        rows.append({"case": name, "us_per_device_round": ours, "ratio_to_plain": None})
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'case':<26} {'us per device-round':>20} {'times the plain program':>24}")
    for row in rows:
        ratio = "" if row["ratio_to_plain"] is None else f"{row['ratio_to_plain']:.1f}"
        print(f"{row['case']:<26} {row['us_per_device_round']:>20.3f} {ratio:>24}")


if __name__ == "__main__":
    main()
