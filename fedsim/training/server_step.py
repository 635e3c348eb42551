"""What the server does with the weighted sum of changes.

Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv 2003.00295, Algorithm 2.
"""

from __future__ import annotations

import torch

from fedsim.training.settings import ServerOptimizer
from fedsim.training.state import Tensors


class ServerStep:
    """Applies a sum of changes to the global model; keeps the optimiser's state. Untouched layers keep theirs."""

    def __init__(self, settings: ServerOptimizer | None, weights: Tensors) -> None:
        self._settings = settings
        self._momentum = [torch.zeros_like(w) for w in weights] if settings else []
        self._second: Tensors = []
        if settings is not None and settings.kind == "adam":
            self._second = [torch.full_like(w, settings.adaptivity**2) for w in weights]

    @property
    def has_state(self) -> bool:
        """Whether the model moves by anything but the sum of changes itself."""
        return self._settings is not None

    def apply(self, weights: Tensors, change: Tensors, touched: list[int]) -> None:
        """weights[i] moves by change[i] for each parameter i in `touched`."""
        for i in touched:
            if self._settings is None:
                weights[i].add_(change[i])
            elif self._settings.kind == "sgd":
                self._momentum[i].mul_(self._settings.momentum).add_(change[i])
                weights[i].add_(self._momentum[i], alpha=self._settings.learning_rate)
            else:
                s = self._settings
                self._momentum[i].mul_(s.momentum).add_(change[i], alpha=1 - s.momentum)
                self._second[i].mul_(s.second_momentum).addcmul_(change[i], change[i], value=1 - s.second_momentum)
                step = self._momentum[i] / (self._second[i].sqrt() + s.adaptivity)
                weights[i].add_(step, alpha=s.learning_rate)
