"""Putting a learner together from a model, the dealt-out data and the settings; and a model's shape on its own."""

from __future__ import annotations

from dataclasses import asdict
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
from fedsim.training.layers import Chain, build_seeded, input_dims, load_initial_weights, measure, mixes_rows
from fedsim.training.learner import TorchLearner
from fedsim.training.loss import loss_of
from fedsim.training.machine import chunks_of, prepare
from fedsim.training.passes import can_stack, linear_of
from fedsim.training.resident import evaluation_rows, training_rows
from fedsim.training.server_step import ServerStep
from fedsim.training.settings import ServerOptimizer, Training, Tuning
from fedsim.training.state import WorkingModel

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
    with torch.no_grad():
        out = module(torch.zeros((2, *data.input_shape)))  # batch statistics of one sample do not exist
    chain.loss.check(tuple(out.shape[1:]), data.n_classes)
    return chain


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
) -> TorchLearner:
    """A learner at its initial weights: the chain's own, or those of a file in the precision of training.

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
    model = WorkingModel.of(chain, shape, tuning)
    weights = [parameter.detach().clone() for parameter in model.parameters]
    traits = _traits(model, dealt.data.input_shape, on_cuda=device.type == "cuda")
    chunks = chunks_of(tuning, device, int(shape.n_activations.sum()), is_flat=traits.n_linear == model.n_layers)
    return TorchLearner(
        at=Workbench(
            model=model,
            data=training_rows(dealt.data, device, dtype, channels_last=tuning.channels_last),
            batches=Batches(plan, dealt.samples, Luck(data_seed, "batches")),
            training=training,
            chunks=chunks,
        ),
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


def _device(training: Training) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if training.device == "cuda" and not has_cuda:
        raise BadInput("device is cuda but torch finds none; choose cpu or auto", at=("training", "device"))
    return torch.device("cuda" if training.device != "cpu" and has_cuda else "cpu")
