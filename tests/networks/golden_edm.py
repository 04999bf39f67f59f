"""The networks of EDM and of score_sde with their golden weights: the authors' names turned into ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from networks import golden
from unnoise import schedules
from unnoise.conditioning import Cond
from unnoise.diffusion import predictions
from unnoise.networks.ncsnpp import NCSNpp, NCSNppConfig
from unnoise.networks.unet import UNet, UNetConfig
from unnoise.runtime.denoise import NetworkDenoiser


def config_edm(model: dict) -> NCSNppConfig:
    """SongUNet's arguments."""
    stem, side = model["model_channels"], model["img_resolution"]
    return NCSNppConfig(
        stem=stem,
        widths=tuple(stem * m for m in model["channel_mult"]),
        blocks=model["num_blocks"],
        attend=tuple(side >> i in model["attn_resolutions"] for i in range(len(model["channel_mult"]))),
        fourier=model["embedding_type"] == "fourier",
        blur=model["resample_filter"] == [1, 3, 3, 1],
        pyramid=model["encoder_type"] == "residual",
        num_classes=model["label_dim"],
        augment_width=model.get("augment_dim", 0),
    )


def config_score_sde(config: dict) -> NCSNppConfig:
    model, side = config["model"], config["data"]["image_size"]
    common = {
        "stem": model["nf"],
        "widths": tuple(model["nf"] * m for m in model["ch_mult"]),
        "blocks": model["num_res_blocks"],
        "attend": tuple(side >> i in model["attn_resolutions"] for i in range(len(model["ch_mult"]))),
    }
    if model["name"] == "ddpm":
        return NCSNppConfig(**common, resample="conv", rescale=False, group_width=1)
    pyramid, fourier = model["progressive_input"] == "residual", model["embedding_type"] == "fourier"
    return NCSNppConfig(**common, fourier=fourier, blur=model["fir"], pyramid=pyramid, rescale=model["skip_rescale"])


def edm(shared: Path, name: str) -> tuple[nn.Module, golden.Tensors, dict]:
    """(the raw network F, inputs and outputs, the record) of golden/edm/`name`."""
    return _edm_adm(shared) if name == "dhariwal" else _song(shared, name)


def _song(shared: Path, name: str) -> tuple[NCSNpp, golden.Tensors, dict]:
    io, weights, record = golden.read(shared / "golden/edm" / name)
    config = config_edm(record["config"]["model"])
    network = NCSNpp(config).eval()
    golden.translate(network, _edm_weights(weights, config.blur, lambda c: 1), names_edm(config, record["config"]["model"]), INSIDE_EDM)
    return network, io, record


def _edm_adm(shared: Path) -> tuple[UNet, golden.Tensors, dict]:
    """EDM's DhariwalUNet. It has our U-Net's figure; the last class is no label, whose row is zeros.

    Its group norms have min(32, c/4) groups. Every published width has 32; these narrow ones do not.
    """
    io, weights, record = golden.read(shared / "golden/edm/dhariwal")
    model = record["config"]["model"]
    widths, n = tuple(model["model_channels"] * m for m in model["channel_mult"]), model["label_dim"]
    size = {"in_channels": 3, "out_channels": 3, "widths": widths, "depths": (0, 1), "blocks": 1, "head_width": 64, "context_width": 0}
    unet = UNet(UNetConfig(**size, num_classes=n + 1, scale_shift=True, resample="residual", groups=4)).eval()
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = min(32, module.num_channels // 4)
    weights = _edm_weights(weights, False, lambda c: c // 64)
    label = weights["model.map_label.weight"].T  # (n, c): a one-hot row times a matrix looks a row up
    weights["model.map_label.weight"] = torch.cat([label, torch.zeros_like(label[:1])])
    levels = _levels_edm(2, 1, model["img_resolution"])
    ends = {"class_embedding": "model.map_label", "conv_norm_out": "model.out_norm", "conv_out": "model.out_conv"}
    golden.translate(unet, weights, levels | _MLP_EDM | ends, INSIDE_EDM)
    return unet, io, record


def score_sde(shared: Path, name: str) -> tuple[NCSNpp, golden.Tensors, dict]:
    """(the raw network, inputs and outputs, the record) of golden/score_sde/`name`: ddpm, ddpmpp or ncsnpp.

    The authors' "net" is this network for VP with t = 999 t; for VE it is network(2x - 1, log sigma) / sigma.
    """
    io, weights, record = golden.read(shared / "golden/score_sde" / name)
    config = config_score_sde(record["config"])
    network = NCSNpp(config).eval()
    weights.pop("module.sigmas")
    weights = {re.sub(r"(NIN_\d)\.W$", r"\1.weight", re.sub(r"(NIN_\d)\.b$", r"\1.bias", key)): value for key, value in weights.items()}
    weights = {key: value.T if ".NIN_" in key and value.ndim == 2 else value for key, value in weights.items()}
    inside = INSIDE_SCORE_SDE | (_DDPM if name == "ddpm" else {})
    golden.translate(network, weights, names_score_sde(config), inside)
    return network, io, record


# EDM's three ways to make a denoiser (x, sigma, cond) -> x_0 of one network, in our words (Karras et al. 2022, table 1)

Denoiser = Callable[[Tensor, Tensor, Cond], Tensor]


def _edm_precond(network: nn.Module) -> Denoiser:
    return NetworkDenoiser(network, schedules.edm(), predictions.edm())  # pyright: ignore[reportReturnType]


def _vp_precond(network: nn.Module) -> Denoiser:
    """The VP process, entered where its sigma / alpha is this sigma."""
    vp = schedules.ContinuousVP()
    denoiser = NetworkDenoiser(network, vp, predictions.eps)

    def denoise(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        t = vp.time(-2 * sigma.double().log())
        return denoiser(x * vp.alpha(t).to(x).view(-1, 1, 1, 1), t, cond)  # pyright: ignore[reportReturnType]

    return denoise


def _ve_precond(network: nn.Module) -> Denoiser:
    """sigma half as large, because score_sde's pictures lie in 0..1."""

    def denoise(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        return x + sigma.to(x).view(-1, 1, 1, 1) * network(x.float(), (sigma / 2).log().float(), cond)

    return denoise


PRECONDITIONED = {"EDMPrecond": _edm_precond, "VPPrecond": _vp_precond, "VEPrecond": _ve_precond}


def labels(io: golden.Tensors, name: str = "class_labels") -> Cond:
    return Cond(labels=io[name].argmax(1)) if name in io else Cond()


# EDM's names

_MLP_EDM = {"time_embedding.linear_1": "model.map_layer0", "time_embedding.linear_2": "model.map_layer1"}
INSIDE_EDM = {
    r"^\.block\.": ".",
    r"^\.to_([qkv])\.(\w+)$": r".qkv.\2#\1",
    r"^\.to_out\.": ".proj.",
    r"^\.norm1\.": ".norm0.",
    r"^\.norm2\.(\w+)$": r".norm1.\1",
    r"^\.group_norm\.": ".norm2.",
    r"^\.conv1\.": ".conv0.",
    r"^\.conv2\.": ".conv1.",
    r"^\.time_emb_proj\.": ".affine.",
    r"^\.conv_shortcut\.": ".skip.",
    r"^\.frequencies$": ".freqs",
}


def names_edm(config: NCSNppConfig, model: dict) -> dict[str, str]:
    side, n = model["img_resolution"], len(config.widths)
    names = _levels_edm(n, config.blocks, side) | _MLP_EDM
    names |= {"class_embedding": "model.map_label", "augment_embedding": "model.map_augment", "fourier": "model.map_noise"}
    names |= {"conv_norm_out": f"model.dec.{side}x{side}_aux_norm", "conv_out": f"model.dec.{side}x{side}_aux_conv"}
    return names | {f"down_blocks.{i}.pyramid.conv": f"model.enc.{(s := side >> i + 1)}x{s}_aux_residual" for i in range(n - 1)}


def _levels_edm(levels: int, blocks: int, side: int) -> dict[str, str]:
    """A block and its attention are one module there; the change of size belongs to the level that it leads to."""
    enc, dec = (lambda i: f"model.enc.{side >> i}x{side >> i}_"), (lambda i: f"model.dec.{side >> i}x{side >> i}_")
    names = {"conv_in": f"{enc(0)}conv", "mid_block.resnets.0": f"{dec(levels - 1)}in0", "mid_block.resnets.1": f"{dec(levels - 1)}in1"}
    names |= {"mid_block.attention": f"{dec(levels - 1)}in0", "mid_block.attentions.0": f"{dec(levels - 1)}in0"}
    for i in range(levels):
        mine = levels - 1 - i
        for j in range(blocks):
            names |= {f"down_blocks.{i}.{part}.{j}": f"{enc(i)}block{j}" for part in ("resnets", "attentions")}
        for j in range(blocks + 1):
            names |= {f"up_blocks.{mine}.{part}.{j}": f"{dec(i)}block{j}" for part in ("resnets", "attentions")}
        names |= {f"up_blocks.{mine}.attention": f"{dec(i)}block{blocks}"}
        names |= {f"down_blocks.{i}.downsample": f"{enc(i + 1)}down", f"up_blocks.{mine}.upsample": f"{dec(i - 1)}up" if i else ""}
    return names


def _edm_weights(weights: golden.Tensors, blur: bool, heads: Callable[[int], int]) -> golden.Tensors:
    """Without the filters, which are constants, and with the rows of qkv, (head, d, qkv) there, as (qkv, head, d)."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8 if blur else torch.tensor([0.5, 0.5])
    filters = [key for key in weights if key.endswith("resample_filter")]
    assert all(torch.equal(weights[key][0, 0], taps.outer(taps)) for key in filters)
    return {key: _qkv(value, heads) if ".qkv." in key else value for key, value in weights.items() if key not in filters}


def _qkv(rows: Tensor, heads: Callable[[int], int]) -> Tensor:
    return rows.unflatten(0, (heads(len(rows) // 3), -1, 3)).movedim(2, 0).flatten(0, 2)


# score_sde's names

INSIDE_SCORE_SDE = {
    r"^\.block\.": ".",
    r"^\.group_norm\.": ".GroupNorm_0.",
    r"^\.to_q\.": ".NIN_0.",
    r"^\.to_k\.": ".NIN_1.",
    r"^\.to_v\.": ".NIN_2.",
    r"^\.to_out\.": ".NIN_3.",
    r"^\.norm1\.": ".GroupNorm_0.",
    r"^\.norm2\.": ".GroupNorm_1.",
    r"^\.conv1\.": ".Conv_0.",
    r"^\.conv2\.": ".Conv_1.",
    r"^\.conv_shortcut\.": ".Conv_2.",
    r"^\.time_emb_proj\.": ".Dense_0.",
    r"^\.conv\.": ".Conv2d_0.",
    r"^\.frequencies$": ".W",
}
_DDPM = {r"^\.Conv_2\.": ".NIN_0.", r"^\.Conv2d_0\.": ".Conv_0."}  # shortcuts are NIN layers, and convolutions change the size


def names_score_sde(config: NCSNppConfig) -> dict[str, str]:
    """One list of modules, in the order in which they are made."""
    mine = ["fourier"] if config.fourier else []
    mine += ["time_embedding.linear_1", "time_embedding.linear_2", "conv_in"]
    levels = len(config.widths)
    for i in range(levels):
        for j in range(config.blocks):
            mine += [f"down_blocks.{i}.resnets.{j}"] + [f"down_blocks.{i}.attentions.{j}"] * config.attend[i]
        if i + 1 < levels:
            mine += [f"down_blocks.{i}.downsample"] + [f"down_blocks.{i}.pyramid"] * config.pyramid
    mine += ["mid_block.resnets.0", "mid_block.attention", "mid_block.resnets.1"]
    for i in range(levels):
        mine += [f"up_blocks.{i}.resnets.{j}" for j in range(config.blocks + 1)]
        mine += [f"up_blocks.{i}.attention"] * config.attend[levels - 1 - i] + [f"up_blocks.{i}.upsample"] * (i + 1 < levels)
    mine += ["conv_norm_out", "conv_out"]
    return {name: f"module.all_modules.{k}" for k, name in enumerate(mine)}
