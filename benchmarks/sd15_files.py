"""Files of Stable Diffusion 1.5's sizes with random weights, for the benchmarks of loading: a diffusers folder and a CompVis single file.

diffusers and transformers write the folder (4.3 GB in float32), so that it is theirs in every detail; the single file has the same tensors
under CompVis' names. Both stay in the given folder and are made once.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

UNET = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}  # the rest is UNet2DConditionModel's own default
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "sample_size": 512,
}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "skip_prk_steps": True}


def made(place: Path) -> tuple[Path, Path]:
    """The folder and the single file, written where they are not there yet."""
    folder, single = place / "sd15", place / "sd15.safetensors"
    if not (folder / "model_index.json").is_file():
        write_folder(folder)
    if not single.is_file():
        write_single(folder, single)
    return folder, single


def write_folder(folder: Path) -> None:
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = random(UNet2DConditionModel.from_config, UNET)
    vae = random(AutoencoderKL.from_config, VAE)
    text = random(
        CLIPTextModel,
        CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12),
    )
    parts = {"unet": unet, "vae": vae, "text_encoder": text, "tokenizer": tokenizer(), "scheduler": PNDMScheduler(**SCHEDULER)}
    nothing = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    StableDiffusionPipeline(**parts, **nothing, requires_safety_checker=False).save_pretrained(folder)


def tokenizer() -> Any:
    """transformers' own class over the vocabulary that the package has."""
    import json
    import tempfile

    from transformers import CLIPTokenizer

    from unnoise.networks import tokenizers

    pieces = json.loads(tokenizers.published_clip().pieces.to_str())["model"]
    with tempfile.TemporaryDirectory() as folder:
        vocab, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocab.write_text(json.dumps(pieces["vocab"]), encoding="utf-8")
        lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in pieces["merges"]]
        merges.write_text("\n".join(["#version: 0.2", *lines]), encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def random(build: Any, config: Any) -> Any:
    """The module in float32 with small random weights; its own initialisation would take minutes."""
    import torch

    with torch.device("meta"):
        module = build(config)
    module = module.to_empty(device="cpu")
    for value in module.parameters():
        value.data.uniform_(-0.02, 0.02)
    for name, value in module.named_buffers():
        if name.endswith("position_ids"):
            value.copy_(torch.arange(value.shape[-1])[None])
    return module


def write_single(folder: Path, path: Path) -> None:
    """The folder's tensors under CompVis' names, by the layouts that read them."""
    from unnoise.checkpoints import keys, recognise
    from unnoise.checkpoints.layouts import first_stage, ldm, numbered, texts
    from unnoise.checkpoints.store import write

    parts = recognise.model(folder, None, None).parts
    layouts = {
        "network": (ldm.UNET, numbered.unet),
        "autoencoder": (ldm.STAGE, first_stage.autoencoder),
        "text_encoder": (ldm.CLIP, texts.clip),
    }
    tensors = {}
    for place, (prefix, layout) in layouts.items():
        written = keys.write(layout(parts[place].config), parts[place].load().state_dict())
        tensors |= {prefix + name: value for name, value in written.items()}
    write.tensors(path, tensors)


def warmed(*paths: Path) -> int:
    """Read every file once, so that all runs find it in the page cache; their bytes."""
    total = 0
    for path in paths:
        for file in [path] if path.is_file() else path.rglob("*.safetensors"):
            with file.open("rb") as opened:
                while block := opened.read(2**24):
                    total += len(block)
    return total


def machine() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    )
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("unnoise", "torch", "safetensors", "diffusers", "transformers"))
