"""Putting a learner together from a model, the dealt-out data and the settings; and a model's shape on its own."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from fedsim.facts import BadInput, BatchPlan, LabelledData, ModelShape
from fedsim.randomness import Luck
from fedsim.training.batches import Batches
from fedsim.training.dealing import Dealt
from fedsim.training.layers import Chain, build_seeded, load_initial_weights, measure
from fedsim.training.learner import TorchLearner
from fedsim.training.resident import evaluation_rows, training_rows
from fedsim.training.server_step import ServerStep
from fedsim.training.settings import ServerOptimizer, Training
from fedsim.training.state import WorkingModel


class Builder(Protocol):
    """A model of the shelf."""

    def build(self, input_shape: tuple[int, ...], n_outputs: int) -> nn.Module: ...


def one_thread() -> None:
    """One torch thread per process: parallel runs share the cores, and the number of threads changes bits."""
    torch.set_num_threads(1)


def chain_of(model: Builder, data: LabelledData, *, init_seed: int) -> Chain:
    """The model for this data set, its weights drawn from the init seed.

    Raises BadInput if the model is no chain of blocks or does not give one output per class.
    """
    module = build_seeded(lambda: model.build(data.input_shape, data.n_classes), Luck(init_seed, "init"))
    chain = Chain.of(module, data.input_shape)
    with torch.no_grad():
        out = module(torch.zeros((1, *data.input_shape)))
    if tuple(out.shape[1:]) != (data.n_classes,):
        raise BadInput(
            f"the model gives outputs of shape {tuple(out.shape[1:])} but the labels are 0..{data.n_classes - 1}; "
            f"make it give {data.n_classes} outputs",
            at=("model",),
        )
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
    chain.module.to(device, dtype)
    if initial_weights is not None:
        load_initial_weights(chain, initial_weights)
    model = WorkingModel.of(chain, shape)
    weights = [parameter.detach().clone() for parameter in model.parameters]
    return TorchLearner(
        model=model,
        data=training_rows(dealt.data, device, dtype),
        evaluation=evaluation_rows(dealt.data, device, dtype),
        batches=Batches(plan, dealt.samples, Luck(data_seed, "batches")),
        training=training,
        server_step=ServerStep(server_optimizer, weights),
        weights=weights,
    )


def _device(training: Training) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if training.device == "cuda" and not has_cuda:
        raise BadInput("device is cuda but torch finds none; choose cpu or auto", at=("training", "device"))
    return torch.device("cuda" if training.device != "cpu" and has_cuda else "cpu")
