"""Putting a learner together from a model, the dealt-out data and the settings; and a model's shape on its own."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Protocol

import numpy as np
import torch
from torch import nn

from fedsim.facts import BadInput, BatchPlan, LabelledData, ModelShape
from fedsim.randomness import Luck
from fedsim.training.batches import Batches
from fedsim.training.choice import Traits
from fedsim.training.cohort import Workbench
from fedsim.training.dealing import Dealt
from fedsim.training.layers import (
    Chain,
    build_seeded,
    input_dims,
    load_initial_weights,
    measure,
    mixes_rows,
    needs_two_rows,
    statistics_kept,
)
from fedsim.training.learner import TorchLearner
from fedsim.training.loss import loss_of
from fedsim.training.machine import chunks_of, prepare
from fedsim.training.passes import can_stack, linear_of
from fedsim.training.resident import evaluation_rows, training_rows
from fedsim.training.server_step import ServerStep
from fedsim.training.settings import ServerOptimizer, Training, Tuning
from fedsim.training.state import WorkingModel
from fedsim.training.subnetworks import Subnetworks, scaled

_PLAIN = Tuning(channels_last=False, written_out=False, pool_before_relu=False, matmul="highest")


class Builder(Protocol):
    """A model of the shelf. One that is not trained by cross-entropy names its loss in an attribute `loss`."""

    def build(self, input_shape: tuple[int, ...], n_outputs: int) -> nn.Module: ...


def chain_of(model: Builder, data: LabelledData, *, init_seed: int) -> Chain:
    """The model for this data set, its weights drawn from the init seed.

    Raises BadInput if the model is no chain of blocks or its outputs do not suit its loss.
    """
    module = build_seeded(lambda: model.build(data.input_shape, data.n_classes), Luck(init_seed, "init"))
    chain = Chain.of(module, data.input_shape, loss_of(model))
    with torch.no_grad(), statistics_kept(module):
        out = module(torch.zeros((2, *data.input_shape)))  # batch statistics of one sample do not exist
    chain.loss.check(tuple(out.shape[1:]), data.n_classes)
    return chain


def narrowed(model: Builder | None, rate: float, *, convolutions: bool) -> Builder:
    """The model with fewer units in its hidden layers. Raises BadInput if its class does not say how."""
    narrower = getattr(model, "narrowed", None)
    if narrower is None:
        raise BadInput(
            f"{type(model).__name__} cannot be narrowed; choose a model whose class has a method `narrowed`",
            at=("model",),
        )
    part: Builder = narrower(rate, convolutions=convolutions)
    return part


def shape_of(model: Builder, data: LabelledData) -> ModelShape:
    """What the model costs on this data set."""
    return measure(chain_of(model, data, init_seed=0), data.input_shape)


def learner_of(
    chain: Chain,
    shape: ModelShape,
    dealt: Dealt,
    plan: BatchPlan,
    training: Training,
    server_optimizer: ServerOptimizer | None,
    *,
    data_seed: int,
    initial_weights: str | None = None,
    model: Builder | None = None,
) -> TorchLearner:
    """A learner at its initial weights: the chain's own, or those of a file in the precision of training.

    model: what the chain was built by; without it no part of it can be trained.

    Raises BadInput for a file that does not fit, and if `device: cuda` is asked for and there is none.
    """
    device, dtype = _device(training), getattr(torch, training.dtype)
    tuning = training.tuning if training.engine == "auto" else _PLAIN
    machine = prepare(tuning)
    chain.module.to(device, dtype)
    if initial_weights is not None:
        load_initial_weights(chain, initial_weights)
    if tuning.channels_last:
        chain.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    if needs_two_rows(chain, dealt.data.input_shape):
        _refuse_single_rows(plan)
    working = WorkingModel.of(chain, shape, tuning, training.batch_norm)
    weights = [parameter.detach().clone() for parameter in working.parameters]
    traits = _traits(working, dealt.data.input_shape, on_cuda=device.type == "cuda")
    chunks = chunks_of(tuning, device, int(shape.n_activations.sum()), is_flat=traits.n_linear == working.n_layers)
    at = Workbench(
        model=working,
        data=training_rows(dealt.data, device, dtype, channels_last=tuning.channels_last),
        batches=Batches(plan, dealt.samples, Luck(data_seed, "batches")),
        training=training,
        chunks=chunks,
    )

    def part(rate: float, convolutions: bool, is_scaled: bool) -> tuple[Workbench, Traits]:
        narrow = chain_of(narrowed(model, rate, convolutions=convolutions), dealt.data, init_seed=0)
        narrow_shape = measure(narrow, dealt.data.input_shape)
        if is_scaled:
            blocks = [scaled(own, of) for own, of in zip(narrow.blocks, chain.blocks, strict=True)]
            narrow = replace(narrow, blocks=tuple(blocks))
        narrow.module.to(device, dtype)
        if tuning.channels_last:
            narrow.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        its_model = WorkingModel.of(narrow, narrow_shape, tuning, training.batch_norm)
        its_traits = _traits(its_model, dealt.data.input_shape, on_cuda=device.type == "cuda")
        return replace(at, model=its_model), its_traits

    return TorchLearner(
        at=at,
        subnetworks=Subnetworks(at, part, Luck(data_seed, "subnetwork")),
        traits=traits,
        evaluation=evaluation_rows(dealt.data, device, dtype, channels_last=tuning.channels_last),
        server_step=ServerStep(server_optimizer, weights),
        weights=weights,
        machine=machine | {"device": device.type, "chunk_rows": chunks.n_rows, "tuning": asdict(tuning)},
    )


def _traits(model: WorkingModel, input_shape: tuple[int, ...], *, on_cuda: bool) -> Traits:
    linear = [linear_of(block) for block in model.blocks]
    n_linear = next((i for i, found in enumerate(reversed(linear)) if found is None), len(linear))
    worth = [0.0 if f is None else _worth_rows(f[0].in_features, f[0].out_features) for f in linear]
    stackable = [
        can_stack(block) and n_dims in (2, 4)
        for block, n_dims in zip(model.blocks, input_dims(model.chain, input_shape), strict=True)
    ]
    n_stackable = next((i for i, can in enumerate(reversed(stackable)) if not can), len(linear))
    return Traits(
        n_linear=n_linear,
        worth_rows=np.array(worth),
        n_stackable=n_stackable,
        n_activations=model.shape.n_activations,
        n_parameters=model.shape.n_parameters,
        on_cuda=on_cuda,
        mixes_rows=mixes_rows(model.chain, input_shape),
    )


def _worth_rows(n_in: int, n_out: int) -> float:
    return n_in * n_out / (n_in + n_out)


def _refuse_single_rows(plan: BatchPlan) -> None:
    full = plan.full_rows(np.arange(len(plan.n_samples)))
    last = full if plan.is_even else plan.n_samples - full * ((plan.n_samples - 1) // full)
    alone = np.flatnonzero(last == 1)
    if len(alone):
        raise BadInput(
            f"device {alone[0]} has a batch of one row ({plan.n_samples[alone[0]]} samples, batch_size "
            f"{plan.batch_size or 'all'}), over which this model cannot normalise; choose another batch_size, or batches: "
            f"with_replacement, or GroupNorm",
            at=("training", "batch_size"),
        )


def _device(training: Training) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if training.device == "cuda" and not has_cuda:
        raise BadInput("device is cuda but torch finds none; choose cpu or auto", at=("training", "device"))
    return torch.device("cuda" if training.device != "cpu" and has_cuda else "cpu")
