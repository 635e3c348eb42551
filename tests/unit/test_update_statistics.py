"""Norms of updates and distances from the aggregate, against updates written out one by one."""

import numpy as np
import pytest

from fedsim import weights
from fedsim.facts import AggregateRequest
from fedsim.training import apart, reference, update_statistics
from tests.learning import bench


def asked(at, work, table, *wanted, version=0, kept=(), base="from_start"):
    request = AggregateRequest(work, table, base, version, np.array(kept, dtype=np.int64), frozenset(wanted))
    return at.learner.aggregate(request)


def by_hand(at, work, table):
    """Squared norms and distances `[contribution, layer]` of changes kept whole."""
    start, layers = at.values, at.learner.at.model.layer_of
    updates = [reference.change(start, work, k, at.learner.at) for k in range(len(work))]
    norm, distance = np.zeros(table.shape), np.zeros(table.shape)
    for i, layer in enumerate(layers):
        total = sum(table[k, layer] * update[i] for k, update in enumerate(updates))
        for k, update in enumerate(updates):
            norm[k, layer] += float(update[i].square().sum())
            if work.holds_layer[k, layer]:
                distance[k, layer] += float((update[i] - total).square().sum())
    return norm, distance


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet20"])
@pytest.mark.parametrize("n_at_once", [1, 2, 100])
@pytest.mark.parametrize("n_held", [0, 100])
def test_they_are_those_of_the_updates_whatever_fits_in_memory(model, n_at_once, n_held, monkeypatch):
    at, plain = bench(model), bench(model)
    model_bytes = sum(w.numel() * w.element_size() for w in at.values)
    monkeypatch.setattr(apart, "_BYTES", n_at_once * model_bytes)
    monkeypatch.setattr(update_statistics, "_HELD_BYTES", n_held * model_bytes)
    n = at.n_layers
    work = at.work([0, 1, 2, 3], n_steps=[1, 3, 0, 2], partial_depth=[0, 0, n - 1, 0], task_depth=[n, n, n, 2])
    table = weights.layer_mean(work)
    norm, distance = by_hand(at, work, table)
    report = asked(at, work, table, "update_norm", "update_distance")
    plain.aggregate(work, table)
    assert np.array_equal(report.statistics.device, work.device)
    assert np.allclose(report.statistics.squared_norm, norm, rtol=1e-10, atol=1e-20)
    assert np.allclose(report.statistics.squared_distance, distance, rtol=1e-10, atol=1e-20)
    for mine, its in zip(at.values, plain.values, strict=True):
        assert float((mine - its).abs().max()) <= 1e-12


@pytest.mark.parametrize(("held_bytes", "n_times"), [(2**28, 1), (0, 2)])
def test_norms_cost_no_flops_and_distances_cost_the_work_once_more_where_updates_fit_no_memory(
    held_bytes, n_times, monkeypatch
):
    monkeypatch.setattr(update_statistics, "_HELD_BYTES", held_bytes)
    at = bench("cnn")
    work = at.work([0, 1, 2], n_steps=1)
    table, used = weights.layer_mean(work), work.used_flops(at.learner.shape, at.plan).sum()
    assert asked(at, work, table, "update_norm").computed_flops == used
    again = at.work([0, 1, 2], n_steps=1, version=1)
    assert asked(at, again, table, "update_norm", "update_distance", version=1).computed_flops == n_times * used


def test_whoever_does_not_ask_is_told_nothing():
    at = bench("mlp")
    work = at.work([0, 1], n_steps=1)
    assert at.aggregate(work).statistics is None
    report = asked(at, at.work([0, 1], n_steps=1, version=1), weights.layer_mean(work), "update_norm", version=1)
    assert report.statistics.squared_distance is None


def test_contributions_of_different_versions_are_told_apart():
    at = bench("mlp")
    at.aggregate(at.work([0, 1], n_steps=1), kept=[0])
    work = at.work([0, 1, 2], n_steps=[2, 1, 2], version=[0, 1, 1])
    report = asked(at, work, weights.layer_mean(work), "update_norm", version=1, kept=[0])
    assert (report.statistics.squared_norm > 0).all()
    assert np.array_equal(report.statistics.device, [0, 1, 2])
