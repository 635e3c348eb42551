"""How devices train and how the server applies what they send. Parameters only: no torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from fedsim.delays import NotNegative, Positive


@dataclass(frozen=True)
class Tuning:
    """How torch is used on this machine. Nothing here changes a result beyond rounding; each can be switched off.

    channels_last: images lie in memory pixel by pixel, all channels of one together.
    written_out: backward passes of common operations are written out instead of recorded by autograd.
    pool_before_relu: a max pool goes before the ReLU that precedes it; the values are the same.
    keep_memory: freed memory is kept for the next batch instead of being handed back and page-faulted anew.
    matmul: "highest" or "medium" is torch's setting; "auto" takes "medium" on processors where it is faster, if a small
        product shows that it is as exact (it may mean bfloat16 elsewhere).
    chunk_rows: rows that pass through the model at once; "auto" takes 64 where there are convolutions, and
        2048 through fully connected layers alone.
    """

    channels_last: bool = True
    written_out: bool = True
    pool_before_relu: bool = True
    keep_memory: bool = True
    matmul: Literal["auto", "highest", "medium"] = "auto"
    chunk_rows: Annotated[int, Ge(1)] | Literal["auto"] = "auto"


BatchNormMode = Literal["eval_prefix", "train_prefix", "static"]


@dataclass(frozen=True)
class Training:
    """Local training. A policy's entry may override any of these.

    local_steps: local steps of policies that have that parameter and do not state it.
    batch_size: rows of a step, or "all" for full-batch gradients. The last, smaller batch of an epoch is kept and
        charged by its rows.
    learning_rate: of the local steps. weight_decay: added to a gradient as weight_decay x weights.
    batches: "epochs" draws a fresh permutation for each task, device and epoch; "with_replacement" draws each row anew.
    learning_rate_decay: the learning rate is multiplied by this for every version of the global model.
    proximal: rho of a term rho/2 ||x - x_pulled||^2 in every device's objective (FedProx, FedAsync).
    momentum: of the local steps, starting at zero in each task; also what a policy with a parameter of that name takes it
        to be, unless it states another. dtype: precision of training and of the global model.
    engine: "reference" trains one device at a time with the plain loop, "auto" chooses a faster kernel with the same
        result for each group of contributions.
    device: where torch computes; "auto" takes CUDA if there is one.
    batch_norm: of models with BatchNorm. "eval_prefix": layers before those that a task trains normalise by the pulled
        running statistics and leave them alone; a layer's running statistics are averaged as its weights are.
        "train_prefix": they normalise by the batch too, and every device uploads the running statistics of all layers, to
        be averaged as the output layer is. "static": running statistics do not travel; an evaluation first takes them
        from all training data, in one pass.
    tuning: how torch is used; leave it alone unless you measure.
    """

    local_steps: Annotated[int, Ge(1)] = 5
    batch_size: Annotated[int, Ge(1)] | Literal["all"] = 16
    learning_rate: Positive = 0.1
    learning_rate_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.0
    weight_decay: NotNegative = 0.0
    proximal: NotNegative = 0.0
    batches: Literal["epochs", "with_replacement"] = "epochs"
    dtype: Literal["float32", "float64"] = "float32"
    engine: Literal["auto", "reference"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    batch_norm: BatchNormMode = "eval_prefix"
    tuning: Tuning = Tuning()


@dataclass(frozen=True)
class ServerOptimizer:
    """What the server does with the weighted sum of changes (Reddi et al., arXiv 2003.00295, Algorithm 2).

    sgd: velocity = momentum * velocity + sum; model += learning_rate * velocity. adam: FedAdam without bias correction,
    `adaptivity` being tau (its second moment starts at tau^2), `momentum` and `second_momentum` its two decay rates. A layer whose weights are all zero is skipped, its state included.
    """

    kind: Literal["sgd", "adam"] = "sgd"
    learning_rate: Positive = 1.0
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.0
    second_momentum: Annotated[float, Ge(0), Lt(1)] = 0.99
    adaptivity: Positive = 1e-3
