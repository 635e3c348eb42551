"""What jobs passed on their way, as rows for the records: every whole step, and the layers of the last step that counts.

Exact offsets of `Work`, the ones that decided what was finished; nothing is looked up by the clock or interpolated.
"""

from __future__ import annotations

import numpy as np

from fedsim.facts import Array, IntArray
from fedsim.timing.book import Milestones
from fedsim.timing.milestones import Progress, Work

WHOLE_STEP = -1
"""The `layer` of a row that stands for a whole step."""


def milestones(work: Work, rows: IntArray, progress: Progress, *, start_s: Array, until_s: Array) -> Milestones:
    """Rows job after job, ascending in time within a job.

    progress: what counts of each job. start_s: on the clock; until_s: offset at which its work ended or, if it has not,
    now. All `[job]`.
    """
    n_steps, n_timed = progress.n_steps, _n_timed_layers(work, rows, progress)
    first_row = np.cumsum(n_steps + n_timed) - (n_steps + n_timed)
    job, step = _counted(n_steps)
    # Under a depth law a step has no length of its own: what was drawn is there when the work ends.
    end_s = until_s[job] if work.is_drawn else work.step_ends_s(rows, n_steps)
    in_step = np.where(progress.partial_depth > 0, n_steps, n_steps - 1)  # whose layers are timed
    layer_job, place, layer_end_s = _layers(work, rows, n_steps, n_timed, in_step, end_s)

    at_step = first_row[job] + step + np.where(step == in_step[job], n_timed[job], 0)  # its layers come before it
    at_layer = first_row[layer_job] + in_step[layer_job] + place
    whose, which = np.empty(len(job) + len(layer_job), dtype=np.int64), np.empty(len(job) + len(layer_job), np.int32)
    layer, ended_s = np.full(len(whose), WHOLE_STEP, dtype=np.int32), np.empty(len(whose))
    whose[at_step], which[at_step], ended_s[at_step] = job, step, end_s
    whose[at_layer], which[at_layer], ended_s[at_layer] = layer_job, in_step[layer_job], layer_end_s
    layer[at_layer] = work.weather.shape.n_layers - 1 - place
    return Milestones(
        device=work.devices[rows][whose].astype(np.int32),
        ordinal=work.ordinals[rows][whose].astype(np.int32),
        step=which,
        layer=layer,
        ended_s=start_s[whose] + ended_s,
    )


def _n_timed_layers(work: Work, rows: IntArray, progress: Progress) -> IntArray:
    if work.is_drawn:
        return np.zeros(len(rows), dtype=np.int64)
    whole = np.where(progress.n_steps > 0, work.depth[rows], 0)
    return np.where(progress.partial_depth > 0, progress.partial_depth, whole)


def _layers(
    work: Work, rows: IntArray, n_steps: IntArray, n_timed: IntArray, in_step: IntArray, end_s: Array
) -> tuple[IntArray, IntArray, Array]:
    """Job, place in the step (0: the output layer) and offset of each timed layer, `[layer row]`.

    end_s: of the whole steps, one job after another.
    """
    job, place = _counted(n_timed)
    ends, first = np.empty(len(job)), np.cumsum(n_timed) - n_timed
    last = np.cumsum(n_steps) - n_steps + in_step  # where that step's own end stands, if it has one
    begin_s = work.ready_s[rows].copy()
    later = in_step > 0
    begin_s[later] = end_s[last[later] - 1]
    for step in np.unique(in_step[n_timed > 0]):
        mine = np.flatnonzero((in_step == step) & (n_timed > 0))
        reached = work.layer_ends_s(rows[mine], int(step), begin_s[mine])
        whole = np.flatnonzero(in_step[mine] < n_steps[mine])
        # The last layer is the step's end, which alone decides; a sum of shares may miss its last bit.
        own_end = end_s[last[mine[whole]]]
        reached[whole] = np.minimum(reached[whole], own_end[:, None])
        reached[whole, n_timed[mine[whole]] - 1] = own_end
        counted_job, counted_place = _counted(n_timed[mine])
        ends[first[mine[counted_job]] + counted_place] = reached[counted_job, counted_place]
    return job, place, ends


def _counted(n: IntArray) -> tuple[IntArray, IntArray]:
    """Of lists of these lengths, one after another: which list, and the place in it, `[n.sum()]` each."""
    which = np.repeat(np.arange(len(n)), n)
    return which, np.arange(len(which)) - (np.cumsum(n) - n)[which]
