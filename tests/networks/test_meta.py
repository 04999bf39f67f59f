"""Networks without memory have the names and shapes of real ones, and cost no compiler."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from unnoise.networks.meta import meta
from unnoise.networks.text import CLIPTextConfig, CLIPTextEncoder
from unnoise.networks.unet import UNet, UNetConfig


def test_names_and_shapes_are_those_of_a_real_network():
    for network, config in ((CLIPTextEncoder, CLIPTextConfig(width=12, layers=2, mlp=16)), (UNet, UNetConfig(widths=(32, 32, 32, 32)))):
        with meta():
            empty = network(config)
        real = network(config).state_dict()
        assert {name: (v.shape, v.dtype) for name, v in empty.state_dict().items()} == {n: (v.shape, v.dtype) for n, v in real.items()}
        assert all(p.is_meta for p in empty.parameters())


def test_what_is_made_afterwards_is_initialised():
    with meta():
        nn.Linear(2, 2)
    torch.manual_seed(1)
    assert nn.init.constant_(torch.zeros(2), 3.0).tolist() == [3, 3] and nn.Linear(2, 2).weight.abs().sum() > 0


def test_it_imports_no_compiler():
    """`normal_` on the meta device would, for more than a second."""
    code = (
        "import sys; from unnoise.networks.meta import meta; from unnoise.networks.text import *\n"
        "with meta(): CLIPTextEncoder(CLIPTextConfig())\n"
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
