"""A Stable Diffusion 1 of small sizes with random weights: it runs as the published one does, and draws nothing.

The other examples use it where the built-in model does not do. With a real file, `unnoise.load("v1-5-pruned-emaonly.safetensors")` takes
the place of `tiny()`.
"""

import torch
from unnoise.model import Model

import unnoise
from unnoise.families import table
from unnoise.networks import tokenizers
from unnoise.networks.autoencoder import AutoencoderConfig
from unnoise.networks.text import CLIPTextConfig
from unnoise.networks.unet import UNetConfig
from unnoise.pipeline.model import Model

UNET = UNetConfig(widths=(32, 64), depths=(1, 0), blocks=1, context_width=32)


def tiny() -> Model:
    """Write the model as CompVis' single file, and load that."""
    torch.manual_seed(0)
    text = CLIPTextConfig(width=32, layers=2, heads=2, mlp=64)
    sizes = {"network": UNET, "text_encoder": text, "autoencoder": AutoencoderConfig(widths=(32, 32, 32, 32), blocks=1)}
    spec = table.resized(table.family("sd1"), sizes)
    networks = spec.build()
    for parameter in networks.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    Model(spec, tokenizers.published_clip(), networks).save("tiny.safetensors", layout="ldm")
    return unnoise.load("tiny.safetensors")


if __name__ == "__main__":
    print(tiny())
