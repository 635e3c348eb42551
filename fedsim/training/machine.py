"""The machine that torch runs on: threads, allocator, precision of products, rows that pass at once, memory that ends.

What changes bits follows fixed rules (never a race against the clock, never free memory) and is recorded in the
manifest, so that every worker process of a comparison computes the same bytes. CUDA chunks and chunks halved after
running out of memory break this, and mark the run.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fedsim.training.settings import Tuning

_FLAT_ROWS, _IMAGE_ROWS, _MOST_CUDA_ROWS = 2048, 64, 2**17
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MOST_MMAP_THRESHOLD, _KEPT_BYTES = 2**25, 2**30  # glibc refuses a higher threshold
_EXACT = 2e-6  # relative error of a float32 product of 256 terms; bfloat16 misses it a thousandfold
_ZEN_5 = 26  # the first AMD family whose vector units are as wide as AVX-512, which MKL does not use on AMD
_FREE_SHARE = 0.25  # of free CUDA memory that a chunk's activations may take
_BYTES_PER_ACTIVATION = 64  # a block's output stands for what its operations keep besides, and for gradients


def prepare(tuning: Tuning) -> dict[str, Any]:
    """Set this process up for training; returns what was chosen, for the manifest."""
    torch.set_num_threads(1)  # parallel runs share the cores, and the number of threads changes bits
    precision = _matmul_precision() if tuning.matmul == "auto" else tuning.matmul
    torch.set_float32_matmul_precision(precision)
    return {"n_threads": 1, "matmul": precision, "keeps_memory": tuning.keep_memory and _keep_memory()}


@cache
def _matmul_precision() -> str:
    """By the kind of processor and the error of a product: a rule that gives the same answer in every process."""
    if _amd_family() < _ZEN_5 or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return "highest"
    before = torch.get_float32_matmul_precision()
    generator = torch.Generator().manual_seed(20_240_319)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    try:
        torch.set_float32_matmul_precision("medium")
        error = (a @ b - a.double() @ b.double()).abs().max() / (a.double() @ b.double()).abs().max()
    finally:
        torch.set_float32_matmul_precision(before)
    return "medium" if float(error) < _EXACT else "highest"


def _amd_family() -> int:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    facts = dict(line.split(":", 1) for line in lines[:12] if ":" in line)
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    return int(facts["cpu family"]) if facts.get("vendor_id") == "AuthenticAMD" else 0


@cache
def _keep_memory() -> bool:
    """Raise glibc's thresholds for handing memory back; False where there is no glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD)) and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))


# ---- rows that pass at once -----------------------------------------------------------------------------------------

Work = Callable[[int, int], Callable[[], None]]


@dataclass
class Chunks:
    """Work on rows, so many at a time; half as many, for good, when memory runs out.

    flat_share: how many times as many rows go at once through fully connected layers alone.
    notes: what happened that makes the run's bytes depend on this machine.
    """

    n_rows: int
    flat_share: int = 1
    notes: list[str] = field(default_factory=list)

    def each(self, n: int, work: Work, *, rows_per_item: int = 1, is_flat: bool = False) -> None:
        """Call work(begin, end) over 0 ... n items, then what it returns: all that lasts happens there."""
        begin = 0
        while begin < n:
            n_rows = self.n_rows * (self.flat_share if is_flat else 1)
            end = min(n, begin + max(1, n_rows // rows_per_item))
            try:
                commit = work(begin, end)
            except (RuntimeError, MemoryError) as problem:
                if not is_out_of_memory(problem):
                    raise
                if n_rows == 1 or end - begin == 1:
                    raise MemoryError("out of memory in the smallest piece of work") from problem
                self._halve()
            else:
                commit()
                begin = end

    def _halve(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.n_rows > 1:
            self.n_rows //= 2
        else:
            self.flat_share //= 2
        self.notes.append(f"out of memory: chunks were halved to {self.n_rows} rows")


def chunks_of(tuning: Tuning, device: torch.device, n_activations: int, *, is_flat: bool) -> Chunks:
    """Chunks for a model of `n_activations` a row. is_flat: it has fully connected layers only."""
    rows = chunk_rows(tuning, device, n_activations, is_flat=is_flat)
    by_rule = device.type == "cpu" and tuning.chunk_rows == "auto"
    return Chunks(rows, flat_share=_FLAT_ROWS // rows if by_rule else 1)


def chunk_rows(tuning: Tuning, device: torch.device, n_activations: int, *, is_flat: bool) -> int:
    """Rows of a chunk: fixed on the CPU, by what fits the cache; on CUDA as many as free memory allows.

    n_activations: of one row. is_flat: the model has fully connected layers only.
    """
    if tuning.chunk_rows != "auto":
        return tuning.chunk_rows
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        rows = int(_FREE_SHARE * free_bytes / (_BYTES_PER_ACTIVATION * max(1, n_activations)))
        return int(2 ** (max(1, min(rows, _MOST_CUDA_ROWS)).bit_length() - 1))
    return _FLAT_ROWS if is_flat else _IMAGE_ROWS


def is_out_of_memory(problem: BaseException) -> bool:
    """torch says so in an exception of its own on CUDA, in words on the CPU."""
    if isinstance(problem, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(problem, RuntimeError) and (
        "can't allocate memory" in str(problem) or "not enough memory" in str(problem)
    )
