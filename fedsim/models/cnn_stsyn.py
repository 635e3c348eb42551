"""The convolutional network of the STSyn experiments on CIFAR-10: two convolutions of 64 channels, 1600-384-192-10."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fedsim.models._blocks import chain_of, conv5x5_pool, image_shape, side_after_two


@dataclass(frozen=True)
class CnnStsyn:
    """conv5x5, max pool, conv5x5, max pool, three fully connected layers; images of at least 16 x 16 pixels."""

    source: ClassVar[str] = (
        "Zhu et al., STSyn: Speeding Up Local SGD with Straggler-Tolerant Synchronization, arXiv 2210.03521, and its "
        "published code"
    )

    def build(self, input_shape: tuple[int, ...], n_outputs: int) -> nn.Sequential:
        """Blocks conv1, conv2, fc1, fc2, fc3. Raises BadInput if the inputs are no images of that size."""
        n_in, height, width = image_shape("cnn_stsyn", input_shape, least=16)
        n_features = 64 * side_after_two(height) * side_after_two(width)
        return chain_of(
            conv1=conv5x5_pool(n_in, 64),
            conv2=conv5x5_pool(64, 64),
            fc1=chain_of(flatten=nn.Flatten(), linear=nn.Linear(n_features, 384), relu=nn.ReLU()),
            fc2=chain_of(linear=nn.Linear(384, 192), relu=nn.ReLU()),
            fc3=chain_of(linear=nn.Linear(192, n_outputs)),
        )
