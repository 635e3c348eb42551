"""A small convolutional network for 28 x 28 images: two convolutions, two fully connected layers, no padding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import nn

from fedsim.models._blocks import Count, chain_of, conv5x5_pool, image_shape, n_kept, side_after_two


@dataclass(frozen=True)
class Cnn:
    """conv5x5, max pool, conv5x5, max pool, fully connected, output; images of at least 16 x 16 pixels.

    channels: of the two convolutions. hidden: width of the fully connected layer.
    """

    source: ClassVar[str] = (
        "LeCun, Bottou, Bengio, Haffner, Gradient-based learning applied to document recognition, Proc. IEEE 86(11), "
        "1998 (its pattern of layers; the widths are this package's)"
    )
    channels: tuple[Count, Count] = (16, 32)
    hidden: Count = 128

    def build(self, input_shape: tuple[int, ...], n_outputs: int) -> nn.Sequential:
        """Blocks conv1, conv2, fc1, fc2. Raises BadInput if the inputs are no images of that size."""
        n_in, height, width = image_shape("cnn", input_shape, least=16)
        first, second = self.channels
        n_features = second * side_after_two(height) * side_after_two(width)
        return chain_of(
            conv1=conv5x5_pool(n_in, first),
            conv2=conv5x5_pool(first, second),
            fc1=chain_of(flatten=nn.Flatten(), linear=nn.Linear(n_features, self.hidden), relu=nn.ReLU()),
            fc2=chain_of(linear=nn.Linear(self.hidden, n_outputs)),
        )

    def narrowed(self, rate: float, *, convolutions: bool = True) -> Self:
        """The model of the leading units, rate x width of each hidden layer rounded up; inputs and outputs stay.

        convolutions: False keeps all their channels.
        """
        first, second = (n_kept(rate if convolutions else 1.0, n) for n in self.channels)
        return replace(self, channels=(first, second), hidden=n_kept(rate, self.hidden))
