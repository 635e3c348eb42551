"""The data set as tensors that stay where torch computes; batches are gathered from them by index."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.facts import IntArray, LabelledData


@dataclass(frozen=True, eq=False)
class Resident:
    """inputs `[sample, ...]`, labels `[sample]`."""

    inputs: Tensor
    labels: Tensor

    def gather(self, rows: IntArray) -> tuple[Tensor, Tensor]:
        index = torch.from_numpy(rows).to(self.inputs.device)
        return self.inputs[index], self.labels[index]

    def __len__(self) -> int:
        return len(self.labels)


def training_rows(data: LabelledData, device: torch.device, dtype: torch.dtype) -> Resident:
    return Resident(
        torch.from_numpy(data.train_inputs).to(device, dtype), torch.from_numpy(data.train_labels).to(device)
    )


def evaluation_rows(data: LabelledData, device: torch.device, dtype: torch.dtype) -> Resident:
    return Resident(torch.from_numpy(data.test_inputs).to(device, dtype), torch.from_numpy(data.test_labels).to(device))
