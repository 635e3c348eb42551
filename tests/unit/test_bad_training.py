"""What training cannot do as asked is refused, or done another way and said so."""

import numpy as np
import pytest
import torch
from torch import nn

from fedsim.facts import BadInput
from fedsim.training import machine
from fedsim.training.layers import Chain, mixes_rows
from fedsim.training.machine import Chunks
from tests import learning
from tests.learning import bench


class _Normed:
    """A model whose normalisation ties the samples of a batch together."""

    def __init__(self, norm):
        self.norm = norm

    def build(self, input_shape, n_outputs):
        hidden = nn.Sequential(nn.Linear(*input_shape, 6), self.norm(), nn.ReLU())
        return nn.Sequential(hidden, nn.Sequential(nn.Linear(6, n_outputs)))


def normed(norm, engine="auto", **settings):
    learning.MODELS["normed"] = (_Normed(norm), (12,))
    try:
        return bench("normed", engine, **settings)
    finally:
        del learning.MODELS["normed"]


def test_batch_statistics_are_found_and_such_a_model_goes_through_the_reference_loop_and_says_so():
    def batch_norm():
        return nn.BatchNorm1d(6, track_running_stats=False)

    found = []
    for engine in ("auto", "reference"):
        at = normed(batch_norm, engine, batches="with_replacement")
        at.aggregate(at.work([0, 1, 2], n_steps=1))
        assert at.learner.kernels == {"reference": 3}
        found.append(at)
    assert [note.split(":")[0] for note in found[0].learner.notes] == ["fallback"]
    assert found[1].learner.notes == []
    for mine, its in zip(found[0].values, found[1].values, strict=True):
        assert torch.equal(mine, its)


def test_a_model_whose_rows_are_on_their_own_is_batched():
    at = normed(lambda: nn.LayerNorm(6))
    at.aggregate(at.work([0, 1, 2], n_steps=1))
    assert at.learner.kernels == {"one_batch": 3}
    assert at.learner.notes == []


@pytest.mark.parametrize("norm", [lambda: nn.BatchNorm1d(6, momentum=None), lambda: nn.Dropout(0.5)])
def test_averages_over_all_batches_ever_seen_and_dropout_are_refused(norm):
    with pytest.raises(BadInput, match=r"without a momentum|luck of its own"):
        normed(norm)


def test_mixing_is_found_by_looking_not_by_name():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            y = self.linear(x)
            return y - y.mean(0)

    assert mixes_rows(Chain.of(nn.Sequential(Centred()), (4,)), (4,))
    assert not mixes_rows(Chain.of(nn.Sequential(nn.Linear(4, 3)), (4,)), (4,))


# ---- memory ---------------------------------------------------------------------------------------------------------


def out_of_memory_above(n_rows, monkeypatch, at):
    """From now on, this many rows are too many for one pass."""
    gather = at.learner.at.data.gather

    def small(rows):
        if len(rows) > n_rows:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")
        return gather(rows)

    object.__setattr__(at.learner.at.data, "gather", small)


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_out_of_memory_halves_the_chunk_says_so_and_loses_nothing(model, n_steps, monkeypatch):
    plenty, little = bench(model), bench(model)
    out_of_memory_above(13, monkeypatch, little)
    for at in (plenty, little):
        at.aggregate(at.work([0, 1, 2, 3], n_steps=n_steps))
    assert little.learner.at.model.computed_flops == plenty.learner.at.model.computed_flops
    assert plenty.learner.notes == []
    assert little.learner.notes
    assert all(note.startswith("out of memory: chunks were halved to ") for note in little.learner.notes)
    for mine, its in zip(little.values, plenty.values, strict=True):
        assert torch.allclose(mine, its, rtol=0, atol=1e-12)


def test_memory_that_is_not_enough_for_a_single_item_is_an_error():
    def work(begin, end):
        raise MemoryError

    chunks = Chunks(8)
    with pytest.raises(MemoryError):
        chunks.each(5, work)
    assert chunks.n_rows == 1


def test_other_errors_are_not_taken_for_memory():
    def work(begin, end):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        Chunks(8).each(5, work)


@pytest.mark.parametrize("n", [1, 7, 8, 100])
def test_chunks_cover_every_item_once_even_when_they_are_halved_on_the_way(n):
    done = []

    def work(begin, end):
        if end - begin > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return lambda: done.extend(range(begin, end))

    Chunks(16).each(n, work)
    assert done == list(range(n))


def test_more_rows_go_at_once_through_fully_connected_layers_alone():
    sizes = []

    def work(begin, end):
        if end - begin > 20:
            raise MemoryError
        sizes.append(end - begin)
        return lambda: None

    chunks = Chunks(2, flat_share=32)
    chunks.each(50, work, is_flat=True)
    assert sizes == [16, 16, 16, 2]
    assert (chunks.n_rows, chunks.flat_share) == (1, 16)
    chunks.each(2, work)
    assert sizes[-2:] == [1, 1]
    assert bench("cnn").learner.at.chunks.flat_share == 32
    assert bench("cnn", tuning={"chunk_rows": 8}).learner.at.chunks.flat_share == 1


def test_work_that_memory_did_not_last_for_is_not_counted():
    at = bench("mlp").learner.at

    def work(begin, end):
        at.model.count_suffix(end - begin, 3, 3)
        if end - begin > 2:
            raise MemoryError
        return lambda: None

    at.each(10, work)
    assert at.model.computed_flops == 10 * at.model.shape.step_flops[3]


# ---- numbers --------------------------------------------------------------------------------------------------------


def test_a_diverging_model_is_reported_by_the_aggregate_that_made_it_so():
    at = bench("mlp", learning_rate=1e200)
    reports = []
    for version in range(6):
        reports.append(at.aggregate(at.work([0, 1], n_steps=1, version=version), version=version))
        if not reports[-1].is_finite:
            break
    assert [r.is_finite for r in reports] == [True] * (len(reports) - 1) + [False]


def test_the_precision_of_products_follows_the_processor_and_never_a_race(monkeypatch):
    monkeypatch.setattr(machine, "_amd_family", lambda: 25)
    assert machine._matmul_precision.__wrapped__() == "highest"
    monkeypatch.setattr(machine, "_amd_family", lambda: 26)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert machine._matmul_precision.__wrapped__() == "highest"


def test_a_product_as_inexact_as_bfloat16_is_refused(monkeypatch):
    monkeypatch.setattr(machine, "_amd_family", lambda: 26)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    before = torch.get_float32_matmul_precision()
    exact = machine._matmul_precision.__wrapped__()
    monkeypatch.setattr(machine, "_EXACT", 1e-9)  # as if the product had rounded more
    assert machine._matmul_precision.__wrapped__() == "highest"
    assert exact in ("medium", "highest")
    assert torch.get_float32_matmul_precision() == before


def test_the_machine_is_recorded_and_rows_of_a_chunk_are_fixed():
    flat, images = bench("mlp").learner, bench("cnn").learner
    assert flat.machine["chunk_rows"] == 2048
    assert images.machine["chunk_rows"] == 64
    assert flat.machine["n_threads"] == torch.get_num_threads() == 1
    assert np.isin(flat.machine["matmul"], ["highest", "medium"])
    assert flat.machine["tuning"]["channels_last"] is True
