"""The data set as tensors that stay where torch computes; batches are gathered from them by index."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.facts import IntArray, LabelledData


@dataclass(frozen=True, eq=False)
class Resident:
    """Inputs and labels `[sample, ...]`.

    stored: the inputs as they lie in memory: images `[sample, height, width, channel]` if `channels_last`.
    """

    stored: Tensor
    labels: Tensor
    channels_last: bool

    @classmethod
    def of(cls, inputs: Tensor, labels: Tensor, *, channels_last: bool) -> Resident:
        """inputs `[sample, ...]`; images are `[sample, channel, height, width]`."""
        channels_last = channels_last and inputs.dim() == 4
        stored = inputs.permute(0, 2, 3, 1).contiguous() if channels_last else inputs
        return cls(stored, labels, channels_last)

    def gather(self, rows: IntArray) -> tuple[Tensor, Tensor]:
        """Inputs and labels of these rows."""
        index = torch.from_numpy(rows).to(self.labels.device)
        return self._seen(self.stored.index_select(0, index)), self.labels.index_select(0, index)

    def between(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels of rows begin ... end-1, nothing copied."""
        return self._seen(self.stored[begin:end]), self.labels[begin:end]

    def _seen(self, stored: Tensor) -> Tensor:
        # A view: with one channel, only these strides tell torch that its results should lie channels last.
        return stored.permute(0, 3, 1, 2) if self.channels_last else stored

    def __len__(self) -> int:
        return len(self.labels)


def training_rows(data: LabelledData, device: torch.device, dtype: torch.dtype, *, channels_last: bool) -> Resident:
    return _on(device, dtype, data.train_inputs, data.train_labels, channels_last=channels_last)


def evaluation_rows(data: LabelledData, device: torch.device, dtype: torch.dtype, *, channels_last: bool) -> Resident:
    return _on(device, dtype, data.test_inputs, data.test_labels, channels_last=channels_last)


def _on(device: torch.device, dtype: torch.dtype, inputs: object, labels: IntArray, *, channels_last: bool) -> Resident:
    return Resident.of(
        torch.from_numpy(inputs).to(device, dtype),
        torch.from_numpy(labels).to(device),
        channels_last=channels_last,
    )
