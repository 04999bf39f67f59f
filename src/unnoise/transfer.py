"""Copies of the CPU's numbers to another device that do not wait for what the device still computes."""

from __future__ import annotations

import torch
from torch import Tensor


def moved(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return `values` on the device, in the dtype or in their own.

    A plain copy from the CPU waits until the device has done all that it was asked before, as a read-back does. CUDA takes the numbers out
    of ordinary memory at once, so they may be changed afterwards. Apple's GPUs read that memory later: there the copy waits.
    """
    waits = device.type == "mps" or values.device.type != "cpu"
    return values.to(device, dtype or values.dtype, non_blocking=not waits)
