"""Numbers of the CPU reach a device without waiting for it, and keep what they were when they were copied."""

from __future__ import annotations

import pytest
import torch

from pretend.device import WHERE, PretendDevice
from unnoise.transfer import moved


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_copy_does_not_wait(dtype: torch.dtype | None):
    values = torch.arange(3, dtype=torch.float64)
    with PretendDevice() as device:
        there = moved(values, WHERE, dtype)
        assert there.device == WHERE and there.dtype == (dtype or torch.float64)
        assert device.uploads == [] and device.reads == []
        values.zero_()
        with device.silent():
            assert there.tolist() == [0, 1, 2]


def test_what_is_there_already_stays_and_what_comes_back_is_a_read():
    with PretendDevice() as device:
        x = torch.ones(3, device=WHERE)
        assert moved(x, WHERE).device == WHERE and device.reads == []
        assert moved(x, torch.device("cpu")).device.type == "cpu" and len(device.reads) == 1
    x = torch.ones(3)
    assert moved(x, torch.device("cpu")) is x
