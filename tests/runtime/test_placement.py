"""Where networks run is asked of the placement, and what they are of their configs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unnoise.errors import ArgumentError, UnknownName
from unnoise.networks.dit import DiT, DiTConfig
from unnoise.runtime import placement
from unnoise.runtime.placement import Networks, Placement

CPU = Placement(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("dtype, expected", [("auto", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16)])
def test_names_make_a_placement(dtype: str, expected: torch.dtype):
    assert Placement.named("cpu", dtype) == Placement(torch.device("cpu"), expected)


def test_auto_takes_a_gpu_in_half_precision_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Placement.named() == Placement(torch.device("cuda"), torch.float16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert Placement.named() == Placement(torch.device("mps"), torch.float16)


@pytest.mark.parametrize(
    "device, dtype, error, expected",
    [
        ("gqu", "auto", UnknownName, "gqu"),
        ("cpu", "float61", UnknownName, "float16"),
        ("meta", "auto", ArgumentError, "this machine does not have"),
    ],
)
def test_wrong_names_are_refused(device: str, dtype: str, error: type[Exception], expected: str):
    with pytest.raises(error, match=expected):
        Placement.named(device, dtype)


def test_a_device_that_is_not_here_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArgumentError, match="'cuda:0', which this machine does not have"):
        placement.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert placement.device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ArgumentError, match="has 2 CUDA devices, counted from 0"):
        placement.device("cuda:2")


class Forwarding(nn.Module):
    """It has the network's forward and nothing else of it."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.fixture
def networks() -> Networks:
    modules = {"network": nn.Linear(2, 2), "autoencoder": nn.Linear(2, 3)}
    return Networks(modules, {"network": DiTConfig(depth=1), "autoencoder": "its config"}, CPU)


def test_networks_are_a_mapping_by_place(networks: Networks):
    assert list(networks) == ["network", "autoencoder"] and len(networks) == 2
    assert "autoencoder" in networks and "preview" not in networks and networks.get("preview") is None
    assert dict(networks.items())["network"] is networks["network"]
    assert networks.config("autoencoder") == "its config" and networks.placement is CPU
    assert repr(networks) == "Networks(network: DiTConfig, autoencoder: str; torch.float32 on cpu)"
    with pytest.raises(KeyError, match="preview"):
        _ = networks["preview"]


def test_a_wrapped_network_is_known_by_its_config(networks: Networks):
    wrapped = networks.replaced({"network": Forwarding(networks["network"])})
    assert not isinstance(wrapped["network"], DiT) and wrapped.config("network") == DiTConfig(depth=1)
    x = torch.randn(4, 2)
    with wrapped.on("network") as network, networks.on("network") as plain:
        assert torch.equal(network(x), plain(x))


def test_replacing_shares_the_rest_and_leaves_the_first_as_it_was(networks: Networks):
    other, before = nn.Linear(2, 2), networks["network"]
    replaced = networks.replaced({"network": other, "preview": other}, {"preview": "a tiny one"})
    assert replaced["network"] is replaced["preview"] is other and replaced["autoencoder"] is networks["autoencoder"]
    assert replaced.config("network") is networks.config("network") and replaced.config("preview") == "a tiny one"
    assert networks["network"] is before and "preview" not in networks


def test_a_network_needs_a_config_and_a_config_a_network(networks: Networks):
    with pytest.raises(ArgumentError, match="got preview without"):
        networks.replaced({"preview": nn.Linear(1, 1)})
    with pytest.raises(ArgumentError, match="got text_encoder without"):
        Networks({}, {"text_encoder": "config"}, CPU)
