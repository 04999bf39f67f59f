"""The parameters of a model's networks under one name each."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def named(networks: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """As in a file of our own: "network.conv_in.weight"."""
    return {f"{place}.{name}": p for place, network in networks.items() for name, p in network.named_parameters()}
