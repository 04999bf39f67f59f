"""Steer Stable Diffusion with a ControlNet: make its hint from a photograph, and let it act in half of the steps.

Model and ControlNet are tiny and random here, so that nothing has to be downloaded. With published files, `unnoise.load(FILE)` takes the
place of `tiny()`, and `unnoise.load_control(FILE)` that of `ControlModel(net, "sd1")`.
"""

import numpy as np
import torch
from PIL import Image
from tiny_sd1 import UNET, tiny
from unnoise.controls import ControlModel

import unnoise
from unnoise.images import hints
from unnoise.networks.controlnet import ControlNet, ControlNetConfig
from unnoise.pipeline.controls import ControlModel

model = tiny()
net = ControlNet(ControlNetConfig(UNET, hint_widths=(16, 16, 32, 32))).eval()
for parameter in net.parameters():
    torch.nn.init.normal_(parameter, std=0.1)
control = ControlModel(net, "sd1")

photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
lines = hints.hint("lineart", photo)  # "canny", "depth", "pose" ...: the table is in docs/checkpoints.md


def draw(*controls: unnoise.Control) -> torch.Tensor:
    """(1, 3, 64, 64) in 0..1"""
    settings = {"num_inference_steps": 4, "height": 64, "width": 64, "seed": 7, "output_type": "pt"}
    return model.generate("a house", control=controls or None, **settings).images


plain = draw()
for scale in (0.0, 0.5, 1.0):
    steered = draw(unnoise.Control(control, lines, scale=scale, start=0.0, end=0.5))
    print(f"scale {scale}: mean difference from the plain picture {(steered - plain).abs().mean():.4f}")
two = draw(unnoise.Control(control, lines, end=0.5), unnoise.Control(control, photo, scale=0.3, start=0.5))
print("two at once:", tuple(two.shape))
