"""What jobs cost their devices until now: FLOPs (lost work included), bytes, and the times for the records."""

from __future__ import annotations

import numpy as np

from fedsim.facts import Array, IntArray
from fedsim.timing import passed
from fedsim.timing.book import ClosedJobs, Outcome
from fedsim.timing.demand import at_depth, picked
from fedsim.timing.live_jobs import LiveJobs, Moment
from fedsim.timing.milestones import Progress, Work


def spent_flops(work: Work, devices: IntArray, rows: IntArray, progress: Progress) -> Array:
    """FLOPs of the whole steps over the task's layers, and of the step under way its share by time, `[job]`."""
    plan, depth = work.weather.plan, work.depth[rows]
    step_flops = picked(work.demand.step_flops, rows)
    whole = plan.rows_before(devices, progress.n_steps)
    finished = np.asarray(whole * at_depth(step_flops, depth))
    if not (progress.step_share.any() or progress.partial_depth.any()):
        return finished
    last = plan.rows_before(devices, progress.n_steps + 1) - whole
    under_way = _flops_by_time(work, rows, progress.step_share)
    reached = np.where(progress.partial_depth > 0, at_depth(step_flops, progress.partial_depth), 0.0)
    return np.asarray(finished + last * np.where(progress.step_share > 0, np.maximum(under_way, reached), reached))


def _flops_by_time(work: Work, rows: IntArray, step_share: Array) -> Array:
    """FLOPs on one row of a step, so far into it, `[job]`: through the forward passes first, then layer by layer.

    Bringing frozen layers in takes its time at the step's beginning.
    """
    weather, demand = work.weather, work.demand
    if demand.rate is not None:
        return np.asarray(step_share * at_depth(picked(demand.step_flops, rows), work.depth[rows]))
    io = picked(demand.reach, rows)[:, 0] - weather.reach_cost[0]
    passed = np.maximum(step_share * work.cost[rows] - io, 0.0)
    forward = float(weather.shape.forward_flops.sum())
    milestones = np.concatenate([[0.0, forward], weather.shape.step_flops[1:]])
    return np.asarray(np.interp(passed, np.concatenate([[0.0], weather.reach_cost]), milestones))


def close(
    jobs: LiveJobs,
    work: Work,
    devices: IntArray,
    rows: IntArray,
    outcome: Outcome,
    moment: Moment,
    *,
    with_milestones: bool = False,
) -> ClosedJobs:
    """What became of these jobs of one send, until now."""
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
    milestones = None
    if with_milestones:
        until_s = np.where(np.isnan(computed), elapsed, computed)
        milestones = passed.milestones(work, rows, progress, start_s=start, until_s=until_s)
    return ClosedJobs(
        device=devices,
        ordinal=jobs.ordinal[devices],
        version=jobs.version[devices],
        sent_s=start,
        downloaded_s=np.where(work.ready_s[rows] <= elapsed, start + work.ready_s[rows], np.nan),
        computed_s=start + computed,
        arrived_s=start + arrived,
        asked_steps=work.asked_steps(rows),
        n_steps=progress.n_steps,
        depth=depth,
        device_flops=spent_flops(work, devices, rows, progress),
        uploaded_bytes=_share_passed(elapsed, computed, jobs.arrived_s[devices]) * work.demand.up_bytes_at(rows, depth),
        downloaded_bytes=_share_passed(elapsed, np.zeros_like(elapsed), work.ready_s[rows])
        * work.demand.down_bytes[rows],
        outcome=outcome,
        ended_s=moment.now_s,
        milestones=milestones,
    )


def _share_passed(elapsed_s: Array, from_s: Array, until_s: Array) -> Array:
    """How much of a transfer between two offsets is done, 0 ... 1; 0 where it has not begun (NaN) or never ends."""
    is_done = until_s <= elapsed_s
    if is_done.all():
        return np.ones(len(elapsed_s))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(is_done, 1.0, (elapsed_s - from_s) / (until_s - from_s))
    return np.asarray(np.clip(np.nan_to_num(share, posinf=0.0), 0.0, 1.0))
