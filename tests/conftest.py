"""What every test may ask for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the hub's client is imported: no test goes to the network

# A background job inherits that Ctrl-C is ignored and would pass it on to the commands under test.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    import torch

    torch.set_num_threads(1)  # the networks here are tiny: more threads only wait for each other, and pytest-xdist uses the other cores


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """Each test starts from the same global stream and leaves none to the next, so that their order does not matter."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data, weights and golden tensors beside the repository; it is no part of it, so a test that needs it may skip."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no folder shared/ beside the repository: this test compares with files that are kept there")
    return folder
