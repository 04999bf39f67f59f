"""Stable Diffusion 1.5 and SDXL at their full sizes beside diffusers and transformers: what every component says, and how far ours is off.

    python benchmarks/full_size.py [--families sd15 sdxl] [--trajectories sd15] [--threads 2] [--place FOLDER] [--write]

Random weights, saved by diffusers in float16 to spare the disk (2.1 and 7 GB), loaded by both in float32, one component after another in a
process of its own. SDXL's U-Net takes 10.3 GB. --trajectories also compares whole runs of these families from text to latents, five steps
with guidance; SDXL's take 14 GB.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import sd15_files
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
VAE = {**sd15_files.VAE, "norm_num_groups": 32}
SDXL_UNET = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12, "hidden_act": "quick_gelu"}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32, "hidden_act": "gelu"}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
HOW = {"num_inference_steps": 5, "guidance_scale": 7.5, "height": 256, "width": 256}
PROMPTS = ("a photograph of an astronaut riding a horse", "blurry, ugly")


# Writing


def written(family: str, folder: Path) -> None:
    """The folder, where it is not there yet."""
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    if (folder / "model_index.json").is_file():
        return
    nothing = dict.fromkeys(("feature_extractor", "image_encoder"))
    if family == "sd15":
        parts = {"unet": unet(sd15_files.UNET), "text_encoder": clip(CLIP_L), "tokenizer": sd15_files.tokenizer(), "safety_checker": None}
        cls, schedule = StableDiffusionPipeline, DDIMScheduler(**SCHEDULER, clip_sample=False, set_alpha_to_one=False)
        more: dict[str, Any] = {"requires_safety_checker": False}
    else:
        second = sd15_files.tokenizer()
        second.pad_token = "!"
        parts = {"unet": unet(SDXL_UNET), "text_encoder": clip(CLIP_L), "text_encoder_2": clip(CLIP_G, projection=1280)}
        parts |= {"tokenizer": sd15_files.tokenizer(), "tokenizer_2": second}
        cls, schedule, more = StableDiffusionXLPipeline, EulerDiscreteScheduler(**SCHEDULER, timestep_spacing="leading"), {}
    vae = stage(0.18215 if family == "sd15" else 0.13025)
    cls(**parts, vae=vae, scheduler=schedule, **nothing, **more).save_pretrained(folder)


def unet(config: dict[str, Any]) -> Any:
    from diffusers import UNet2DConditionModel

    return random(UNet2DConditionModel.from_config, config)


def stage(scale: float) -> Any:
    from diffusers import AutoencoderKL

    return random(AutoencoderKL.from_config, {**VAE, "scaling_factor": scale})


def clip(config: dict[str, Any], projection: int = 0) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = {**config, "vocab_size": 49408, "projection_dim": projection or 768, "eos_token_id": 49407, "bos_token_id": 49406}
    return random(CLIPTextModelWithProjection if projection else CLIPTextModel, CLIPTextConfig(**config))


def random(build: Callable[[Any], Any], config: Any) -> Any:
    """In float16; variances that neither grow nor fade on the way through, so that every weight matters."""
    with torch.device("meta"):
        module = build(config)
    module = module.half().to_empty(device="cpu").eval()
    for name, value in module.named_parameters():
        if value.ndim > 1:
            value.data.normal_(std=0.02 if "embedding" in name.split(".")[-2] else value[0].numel() ** -0.5)
        else:
            value.data.normal_(mean=float(name.endswith("weight")), std=0.1)
    for name, value in module.named_buffers():
        if name.endswith("position_ids"):
            value.copy_(torch.arange(value.shape[-1])[None])
    return module


# One side of one component


def inputs(family: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    width = 768 if family == "sd15" else 2048
    ids = torch.randint(0, 49405, (1, 77), generator=generator)
    ids[0, 20:] = 49407
    return {
        "ids": ids,
        "x": torch.randn(1, 4, 32, 32, generator=generator),
        "tokens": torch.randn(1, 77, width, generator=generator),
        "text": torch.randn(1, 1280, generator=generator),
        "sizes": torch.tensor([[1024.0, 1024.0, 0.0, 64.0, 1024.0, 768.0]]),
        "picture": torch.rand(1, 3, 256, 256, generator=generator) * 2 - 1,
    }


def theirs(family: str, component: str, folder: Path) -> dict[str, Tensor]:
    import diffusers
    import transformers

    given, read = inputs(family), {"torch_dtype": torch.float32}
    if component == "trajectory":
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        return {"latents": pipe(PROMPTS[0], negative_prompt=PROMPTS[1], latents=given["x"], output_type="latent", **HOW).images}
    if component.startswith("text"):
        cls = transformers.CLIPTextModelWithProjection if component.endswith("2") else transformers.CLIPTextModel
        said = cls.from_pretrained(folder / component, dtype=torch.float32)(given["ids"], output_hidden_states=True)
        return {
            "penultimate": said.hidden_states[-2],
            "last": said.last_hidden_state,
            "pooled": said.get("text_embeds", said.get("pooler_output")),
        }
    if component == "vae":
        vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae", **read)
        posterior = vae.encode(given["picture"]).latent_dist
        return {"encoded": posterior.mean, "spread": posterior.std, "decoded": vae.decode(given["x"]).sample}
    network = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", **read)
    more = {} if family == "sd15" else {"added_cond_kwargs": {"text_embeds": given["text"], "time_ids": given["sizes"]}}
    return {"output": network(given["x"], torch.tensor([981]), given["tokens"], **more).sample}


def ours(family: str, component: str, folder: Path) -> dict[str, Tensor]:
    import unnoise
    from unnoise.checkpoints import recognise
    from unnoise.conditioning import Cond
    from unnoise.networks.layers import timestep_embedding

    given = inputs(family)
    if component == "trajectory":
        model = unnoise.load(folder, dtype="float32", device="cpu")
        more = {"sampler": "ddim" if family == "sd15" else "euler", "spacing": "leading"}
        more["spacing_options"] = {"offset": 1, **({"ending": "first"} if family == "sd15" else {})}
        made = model.generate(PROMPTS[0], negative_prompt=PROMPTS[1], latents=given["x"], output_type="latent", seed=0, **HOW, **more)
        return {"latents": made.latents}
    place = {"unet": "network", "vae": "autoencoder"}.get(component, component)
    network: Any = recognise.model(folder, None, None).parts[place].load(torch.float32)
    if component.startswith("text"):
        said = network(given["ids"])
        return {"penultimate": said.hidden[-2], "last": said.last, "pooled": said.pooled if said.projected is None else said.projected}
    if component == "vae":
        posterior = network.encode(given["picture"])
        return {
            "encoded": posterior.mean,
            "spread": posterior.sample(torch.ones_like(posterior.mean)) - posterior.mean,
            "decoded": network.decode(given["x"]),
        }
    cond = Cond(tokens=given["tokens"])
    if family == "sdxl":
        waves = timestep_embedding(given["sizes"].flatten(), 256).flatten()[None]
        cond = Cond(tokens=given["tokens"], pooled=torch.cat([given["text"], waves], dim=1))
    return {"output": network(given["x"], torch.tensor([981.0]), cond)}


def child(library: str, family: str, component: str, folder: Path, out: Path) -> None:
    """Outputs to a file, and the highest resident memory as the last line of standard output."""
    with torch.no_grad():
        found = {"theirs": theirs, "ours": ours}[library](family, component, folder)
    save_file({name: value.float().contiguous() for name, value in found.items()}, out)
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    print(peak)


# The table


class Row(NamedTuple):
    family: str
    component: str
    output: str
    largest: float  # of theirs
    difference: float  # the largest, as a share of that
    peak: tuple[float, ...]  # GB: theirs, ours


def compared(family: str, component: str, folder: Path, threads: int) -> list[Row]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    found, peaks = [], []
    for library in ("theirs", "ours"):
        out = folder.parent / f"{family}_{component}_{library}.safetensors"
        command = [sys.executable, __file__, "--child", library, family, component, str(folder), str(out)]
        ran = subprocess.run(command, capture_output=True, text=True, env=environment)
        if ran.returncode:
            raise SystemExit(f"{library} {family} {component} failed:\n{ran.stderr}")
        peaks.append(float(ran.stdout.splitlines()[-1]))
        found.append(load_file(out))
        out.unlink()
    peers, mine = found
    return [
        Row(family, component, name, float(peer.abs().max()), float((mine[name] - peer).abs().max() / peer.abs().max()), tuple(peaks))
        for name, peer in peers.items()
    ]


def table(rows: list[Row], threads: int) -> str:
    lines = [
        f"Random weights, float32; {sd15_files.machine()}, {threads} threads; {sd15_files.versions()}",
        "",
        "Differences are the largest, as a share of the largest value. Memory is the most that the process held, loading included.",
        "",
        "| model | component | output | largest value | difference | GB, diffusers | GB, unnoise |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        numbers = [f"{row.largest:.3g}", f"{row.difference:.1e}", *(f"{value:.1f}" for value in row.peak)]
        lines.append(f"| {row.family} | {row.component} | {row.output} | {' | '.join(numbers)} |")
    return "\n".join(lines)


COMPONENTS = {"sd15": ["text_encoder", "vae", "unet"], "sdxl": ["text_encoder", "text_encoder_2", "vae", "unet"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(COMPONENTS), default=list(COMPONENTS))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--place", type=Path, default=Path(tempfile.gettempdir()) / "unnoise-full-size", help="where folders are made and kept"
    )
    parser.add_argument("--trajectories", nargs="*", choices=list(COMPONENTS), default=[])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        library, family, component, folder, out = asked.child
        return child(library, family, component, Path(folder), Path(out))
    rows = []
    for family in asked.families:
        folder = asked.place / family
        written(family, folder)
        gc.collect()
        for component in COMPONENTS[family] + ["trajectory"] * (family in asked.trajectories):
            rows += compared(family, component, folder, asked.threads)
            print(table(rows[-1:], asked.threads).splitlines()[-1], flush=True)
    text = table(rows, asked.threads)
    print(text)
    if asked.write:
        (ROOT / "benchmarks" / "results" / "full_size.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
