"""What jobs cost their devices until now: FLOPs (lost work included), bytes, and the times for the records."""

from __future__ import annotations

import numpy as np

from fedsim.facts import Array, IntArray
from fedsim.timing.book import ClosedJobs, Outcome
from fedsim.timing.live_jobs import LiveJobs, Moment
from fedsim.timing.milestones import Progress, Work
from fedsim.timing.weather import Weather


def spent_flops(weather: Weather, devices: IntArray, depth: IntArray, progress: Progress) -> Array:
    """FLOPs of the whole steps over `depth` layers, and of the step under way its share by time, `[job]`."""
    plan, cost, step_flops = weather.plan, weather.reach_cost, weather.shape.step_flops
    whole = plan.rows_before(devices, progress.n_steps)
    finished = np.asarray(whole * step_flops[depth])
    if not (progress.step_share.any() or progress.partial_depth.any()):
        return finished
    last = plan.rows_before(devices, progress.n_steps + 1) - whole
    forward = float(weather.shape.forward_flops.sum())
    under_way = np.interp(
        progress.step_share * cost[depth],
        np.concatenate([[0.0], cost]),
        np.concatenate([[0.0, forward], step_flops[1:]]),
    )
    reached = np.where(progress.partial_depth > 0, step_flops[progress.partial_depth], 0.0)
    return finished + last * np.where(progress.step_share > 0, np.maximum(under_way, reached), reached)


def close(
    jobs: LiveJobs, work: Work, devices: IntArray, rows: IntArray, outcome: Outcome, moment: Moment
) -> ClosedJobs:
    """What became of these jobs of one send, until now."""
    weather, shape = work.weather, work.weather.shape
    elapsed, start = jobs.elapsed_s(devices, moment), jobs.start_s[devices]
    computed = np.where(jobs.has_happened(devices, jobs.computed_s[devices], moment), jobs.computed_s[devices], np.nan)
    arrived = np.where(jobs.has_happened(devices, jobs.arrived_s[devices], moment), jobs.arrived_s[devices], np.nan)
    progress = Progress(jobs.n_steps[devices], jobs.partial_depth[devices], jobs.step_share[devices])
    under_way = np.flatnonzero(np.isnan(computed))
    if len(under_way):
        now = work.progress(rows[under_way], elapsed[under_way])
        for column, value in zip((progress.n_steps, progress.partial_depth, progress.step_share), now, strict=True):
            column[under_way] = value
    depth = progress.depth(work.depth[rows])
    return ClosedJobs(
        device=devices,
        ordinal=jobs.ordinal[devices],
        version=jobs.version[devices],
        sent_s=start,
        downloaded_s=np.where(work.ready_s[rows] <= elapsed, start + work.ready_s[rows], np.nan),
        computed_s=start + computed,
        arrived_s=start + arrived,
        n_steps=progress.n_steps,
        depth=depth,
        device_flops=spent_flops(weather, devices, work.depth[rows], progress),
        uploaded_bytes=_share_passed(elapsed, computed, jobs.arrived_s[devices]) * shape.suffix_bytes[depth],
        downloaded_bytes=_share_passed(elapsed, np.zeros_like(elapsed), work.ready_s[rows])
        * float(shape.suffix_bytes[-1]),
        outcome=outcome,
    )


def _share_passed(elapsed_s: Array, from_s: Array, until_s: Array) -> Array:
    """How much of a transfer between two offsets is done, 0 ... 1; 0 where it has not begun (NaN) or never ends."""
    is_done = until_s <= elapsed_s
    if is_done.all():
        return np.ones(len(elapsed_s))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(is_done, 1.0, (elapsed_s - from_s) / (until_s - from_s))
    return np.asarray(np.clip(np.nan_to_num(share, posinf=0.0), 0.0, 1.0))
