"""The convolutional network of the STSyn experiments on CIFAR-10: two convolutions of 64 channels, 1600-384-192-10."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import nn

from fedsim.models._blocks import Count, chain_of, conv5x5_pool, image_shape, n_kept, side_after_two


@dataclass(frozen=True)
class CnnStsyn:
    """conv5x5, max pool, conv5x5, max pool, three fully connected layers; images of at least 16 x 16 pixels.

    channels: of the two convolutions. hidden: widths of the two fully connected layers before the output.
    """

    source: ClassVar[str] = (
        "Zhu et al., STSyn: Speeding Up Local SGD with Straggler-Tolerant Synchronization, arXiv 2210.03521, and its "
        "published code"
    )
    channels: tuple[Count, Count] = (64, 64)
    hidden: tuple[Count, Count] = (384, 192)

    def build(self, input_shape: tuple[int, ...], n_outputs: int) -> nn.Sequential:
        """Blocks conv1, conv2, fc1, fc2, fc3. Raises BadInput if the inputs are no images of that size."""
        n_in, height, width = image_shape("cnn_stsyn", input_shape, least=16)
        (first, second), (third, fourth) = self.channels, self.hidden
        n_features = second * side_after_two(height) * side_after_two(width)
        return chain_of(
            conv1=conv5x5_pool(n_in, first),
            conv2=conv5x5_pool(first, second),
            fc1=chain_of(flatten=nn.Flatten(), linear=nn.Linear(n_features, third), relu=nn.ReLU()),
            fc2=chain_of(linear=nn.Linear(third, fourth), relu=nn.ReLU()),
            fc3=chain_of(linear=nn.Linear(fourth, n_outputs)),
        )

    def narrowed(self, rate: float, *, convolutions: bool = True) -> Self:
        """The model of the leading units, rate x width of each hidden layer rounded up; inputs and outputs stay.

        convolutions: False keeps all their channels.
        """
        first, second = (n_kept(rate if convolutions else 1.0, n) for n in self.channels)
        third, fourth = (n_kept(rate, n) for n in self.hidden)
        return replace(self, channels=(first, second), hidden=(third, fourth))
