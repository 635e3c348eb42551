"""What training makes small: the mean of a loss over the rows of a batch. A model's class names its own.

Cross-entropy takes the labels for classes. Half the squared norm looks at no label: the outputs are residuals, of numbers
that came in with the inputs. So there is nothing to be right about, and a gradient is what linear algebra says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional

from fedsim.facts import BadInput


class Loss(Protocol):
    """Of outputs `[row, output]` and labels `[row]`.

    has_classes: whether an output can be right, so that there is an accuracy.
    """

    @property
    def has_classes(self) -> bool: ...

    def check(self, out_shape: tuple[int, ...], n_classes: int) -> None:
        """Raises BadInput if a model with outputs of this shape a row cannot have this loss."""

    def mean(self, out: Tensor, labels: Tensor) -> Tensor:
        """Over the rows; autograd can differentiate it."""

    def sum(self, out: Tensor, labels: Tensor) -> Tensor:
        """Over the rows."""

    def gradient(self, out: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
        """Of sum_row scale[row] x loss[row] with respect to the outputs, `[row, output]`.

        scale: `[row, 1]`, or anything that broadcasts to it.
        """

    def n_right(self, out: Tensor, labels: Tensor) -> Tensor | None:
        """Rows of each label whose label is the largest output, `[label]`; None where there are no classes."""


@dataclass(frozen=True)
class CrossEntropy:
    """-log of the softmax of the outputs at the row's label."""

    has_classes: bool = True

    def check(self, out_shape: tuple[int, ...], n_classes: int) -> None:
        if out_shape != (n_classes,):
            raise BadInput(
                f"the model gives outputs of shape {out_shape} but the labels are 0..{n_classes - 1}; "
                f"make it give {n_classes} outputs",
                at=("model",),
            )

    def mean(self, out: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(out, labels)

    def sum(self, out: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(out, labels, reduction="sum")

    def gradient(self, out: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
        right = labels[:, None]
        gradient = out.softmax(1)
        return gradient.scatter_add_(1, right, gradient.new_full((1, 1), -1.0).expand(right.shape)).mul_(scale)

    def n_right(self, out: Tensor, labels: Tensor) -> Tensor | None:
        return labels[out.argmax(dim=1) == labels].bincount(minlength=out.shape[1])


@dataclass(frozen=True)
class HalfSquaredNorm:
    """1/2 ||outputs||^2: least squares where the outputs are residuals."""

    has_classes: bool = False

    def check(self, out_shape: tuple[int, ...], n_classes: int) -> None:  # noqa: ARG002  one signature for all losses
        if len(out_shape) != 1:
            raise BadInput(
                f"the model gives outputs of shape {out_shape}; for the loss half_squared_norm make it a list of "
                f"residuals for each row",
                at=("model",),
            )

    def mean(self, out: Tensor, labels: Tensor) -> Tensor:
        return self.sum(out, labels) / len(out)

    def sum(self, out: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002  one signature for all losses
        return 0.5 * out.square().sum()

    def gradient(self, out: Tensor, labels: Tensor, scale: Tensor) -> Tensor:  # noqa: ARG002  one signature
        return out * scale

    def n_right(self, out: Tensor, labels: Tensor) -> Tensor | None:  # noqa: ARG002  one signature for all losses
        return None


CROSS_ENTROPY = CrossEntropy()
LOSSES: dict[str, Loss] = {"cross_entropy": CROSS_ENTROPY, "half_squared_norm": HalfSquaredNorm()}
"""By the name that a model's class gives as its attribute `loss`."""


def loss_of(model: object) -> Loss:
    """The loss that an item of the models shelf names; cross-entropy where it names none. BadInput if it is not known."""
    name = getattr(model, "loss", "cross_entropy")
    if name not in LOSSES:
        raise BadInput(f"the model names the loss {name!r}; choose {' or '.join(LOSSES)}", at=("model",))
    return LOSSES[name]
