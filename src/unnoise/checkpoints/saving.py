"""Models written in the forms that others read: a diffusers folder, a single file of CompVis or Stability AI, facebook's DiT.

Everything is written beside its place and renamed: there is the whole model or nothing. What a file has that no network reads (the text
tower's temperature, tables) is written again from the file that the model came from, so a file saved in its own form is itself, tensor by
tensor; without such a file only what readers ask for is made.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unnoise.checkpoints import components, files, keys
from unnoise.checkpoints.layouts import bert, dit, first_stage, ldm, numbered, sd3, texts
from unnoise.checkpoints.weights import Weights
from unnoise.errors import FileError, UnknownName
from unnoise.families.spec import ModelSpec
from unnoise.networks.autoencoder import Autoencoder
from unnoise.networks.bert import BertEncoder
from unnoise.networks.dit import DiTConfig
from unnoise.networks.labels import ClassTokens
from unnoise.networks.text import CLIPTextEncoder
from unnoise.networks.tokenizers import START, Tokenizer
from unnoise.networks.unet import UNetConfig
from unnoise.networks.vq import VQAutoencoder
from unnoise.version import __version__

Networks = Mapping[str, nn.Module]
SHARD = 10_000_000_000  # bytes of a file of a folder: as diffusers and transformers cut
DIFFUSERS = "0.30.0"  # the version that a folder names as its writer: every later one reads it


def save(
    path: str | Path,
    spec: ModelSpec,
    networks: Networks,
    layout: str,
    *,
    tokenizers: Mapping[str, Any] | None = None,
    source: Path | None = None,
) -> None:
    """Write a model. networks, tokenizers: by place. source: the file that it came from. Raises FileError, UnknownName.

    layout: "diffusers", a folder; "ldm", a single file (Stable Diffusion 1 to 3.5, SDXL, latent diffusion); "dit", facebook's file.
    """
    if layout not in LAYOUTS:
        raise UnknownName("layout", layout, (*LAYOUTS, "unnoise"))
    networks = dict(networks.items())  # torch's ModuleDict is no mapping
    if layout == "diffusers":
        folder(Path(path), spec, networks, tokenizers or {})
    else:
        single_file(Path(path), LAYOUTS[layout](spec, networks), spec, source)


def usual(path: Path, spec: ModelSpec) -> str:
    """The layout of a model whose path alone was given."""
    if spec.conditioning == "draft" or not (spec.first_stage or spec.network.kind == "dit"):
        return "unnoise"
    return "diffusers" if path.suffix != ".safetensors" else "dit" if spec.network.kind == "dit" else "ldm"


def single_file(path: Path, stored: dict[str, Tensor], spec: ModelSpec, source: Path | None = None) -> None:
    """One .safetensors file, with what the source has beside these tensors."""
    if path.suffix != ".safetensors":
        raise FileError(f"got the output {path}: a single file's name ends in .safetensors")
    rest, metadata = _unread(stored, source)
    files.write(path, {**rest, **stored} if rest is not None else {**constants(stored, spec), **stored}, metadata or _said(spec))


def _unread(stored: Mapping[str, Tensor], source: Path | None) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
    """The source's tensors that are no network's, and its metadata; (None, {}) where the source is no file of this form."""
    if source is None or not source.is_file():
        return None, {}
    weights = Weights.open(source)
    if any(weights.shapes.get(key) != tuple(value.shape) for key, value in stored.items()):
        return None, {}
    return {key: weights.read(key) for key in weights if key not in stored and not key.startswith("model_ema.")}, weights.metadata


def _said(spec: ModelSpec) -> dict[str, str]:
    """What no tensor says, in the words of Stability AI's model metadata."""
    words = {"v": "v", "eps": "epsilon"}
    return {"format": "pt", "modelspec.prediction_type": words[spec.prediction]} if spec.prediction in words else {"format": "pt"}


# Single files


def latent(spec: ModelSpec, networks: Networks) -> dict[str, Tensor]:
    """The tensors of a file of CompVis or Stability AI. Raises FileError for another family."""
    unet = spec.network
    if unet.kind == "mmdit":
        return _joint(spec, networks)
    if not isinstance(unet, UNetConfig) or spec.first_stage is None or spec.conditioning in ("draft", "labels"):
        raise FileError(f"layout 'ldm' has latent diffusion, Stable Diffusion and SDXL, got {spec.name}: use another layout")
    order = "head qkv d" if spec.name.startswith("ldm") else "qkv head d"
    found = _under(ldm.UNET, keys.write(numbered.unet(unet, order), networks["network"].state_dict()))
    found |= _stage(networks.get("autoencoder"))
    for place in ("text_encoder", "text_encoder_2"):
        if place in networks:
            found |= _condition(spec, place, networks[place])
    return found


def _stage(network: nn.Module | None) -> dict[str, Tensor]:
    if network is None:
        return {}
    if not isinstance(network, Autoencoder | VQAutoencoder):
        raise FileError(components.TINY)
    layout = first_stage.vq(network.config) if isinstance(network, VQAutoencoder) else first_stage.autoencoder(network.config)
    return _under(ldm.STAGE, keys.write(layout, network.state_dict()))


def _condition(spec: ModelSpec, place: str, network: nn.Module) -> dict[str, Tensor]:
    weights = network.state_dict()
    if isinstance(network, ClassTokens):
        return _under("cond_stage_model.", weights)
    if isinstance(network, BertEncoder):
        return _under(ldm.BERT, keys.write(bert.bert(network.config), weights))
    assert isinstance(network, CLIPTextEncoder)  # the conditionings that are left
    config = network.config
    older = isinstance(spec.network, UNetConfig) and not spec.network.linear_projection
    if (spec.conditioning == "sdxl" and place == "text_encoder") or (spec.conditioning == "clip" and older):
        return _under(ldm.XL_CLIP if spec.conditioning == "sdxl" else ldm.CLIP, keys.write(texts.clip(config), weights))
    prefix = {"refiner": ldm.REFINER_OPEN_CLIP, "sdxl": ldm.XL_OPEN_CLIP}.get(spec.conditioning, ldm.OPEN_CLIP)
    stored = keys.write(texts.open_clip(config), weights)
    return _under(prefix, stored if spec.conditioning != "clip" else _lengthened(stored, config.layers))


def _lengthened(stored: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """With the last layer that Stable Diffusion 2's file has and nothing reads, which its folder lacks: zeros, so it changes nothing."""
    last = f"transformer.resblocks.{layers - 1}."
    more = {
        key.replace(last, f"transformer.resblocks.{layers}."): torch.zeros_like(value)
        for key, value in stored.items()
        if key.startswith(last)
    }
    return stored | more


def _joint(spec: ModelSpec, networks: Networks) -> dict[str, Tensor]:
    """Stable Diffusion 3's. Its first text encoder has no projection there: an identity is left out."""
    found = _under(sd3.MMDIT, networks["network"].state_dict()) | _stage(networks.get("autoencoder"))
    for place, name in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g"), ("text_encoder_3", "t5xxl")):
        if place not in networks:
            continue
        weights = dict(networks[place].state_dict())
        if place == "text_encoder" and (projection := weights.pop("text_projection.weight", None)) is not None:
            if not torch.equal(projection, torch.eye(len(projection), dtype=projection.dtype, device=projection.device)):
                raise FileError(
                    "its first text encoder has a projection, which Stable Diffusion 3's single file has not: use layout 'diffusers'"
                )
        found |= _under(f"{sd3.TEXTS}{name}.transformer.", weights)
    return found


def facebook(spec: ModelSpec, networks: Networks) -> dict[str, Tensor]:
    """The tensors of facebook's file, with its table of positions. Raises FileError for another family."""
    if not isinstance(spec.network, DiTConfig) or spec.conditioning != "labels":
        raise FileError(f"layout 'dit' has class-conditional DiT, got {spec.name}: use another layout")
    return keys.write(dit.dit(spec.network), networks["network"].state_dict()) | dit.constants(spec.network, spec.size // spec.factor)


LAYOUTS: dict[str, Callable[[ModelSpec, Networks], dict[str, Any]]] = {
    "diffusers": components.components,
    "ldm": latent,
    "dit": facebook,
}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in tensors.items()}


def constants(stored: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """What the authors' files hold beside weights: the numbers of positions, and the schedule's tables where the family has them."""
    found = {}
    for prefix in (ldm.CLIP, ldm.XL_CLIP):
        table = stored.get(f"{prefix}text_model.embeddings.position_embedding.weight")
        if table is not None:
            found[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(len(table))[None]
    if spec.network.kind == "unet" and spec.schedule.kind == "vp" and spec.conditioning not in ("sdxl", "refiner"):
        found |= tables(spec)
    if spec.schedule.kind == "vp" and spec.schedule.zero_terminal_snr:
        found["ztsnr"] = torch.zeros(0)
    if spec.prediction == "v":
        found["v_pred"] = torch.zeros(0)
    return found


def tables(spec: ModelSpec) -> dict[str, Tensor]:
    """The buffers of CompVis' DDPM class, computed in float64 (ldm/models/diffusion/ddpm.py, `register_schedule`)."""
    bar: Tensor = spec.schedule.build().alpha_bar  # pyright: ignore[reportAttributeAccessIssue]
    before = torch.cat([bar.new_ones(1), bar[:-1]])
    alpha = bar / before
    variance = (1 - alpha) * (1 - before) / (1 - bar)
    found = {
        "betas": 1 - alpha,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - bar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - bar).log(),
        "sqrt_recip_alphas_cumprod": (1 / bar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / bar - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": (1 - alpha) * before.sqrt() / (1 - bar),
        "posterior_mean_coef2": (1 - before) * alpha.sqrt() / (1 - bar),
    }
    return {name: table.float() for name, table in found.items()}


# Folders


def folder(path: Path, spec: ModelSpec, networks: Networks, tokenizers: Mapping[str, Any], shard: int = SHARD) -> None:
    """A folder that diffusers reads, whole or not at all. shard: bytes of a file. Raises FileError."""
    if path.exists():
        raise FileError(f"{path} exists already: name another folder or remove it")
    made = components.components(spec, networks)
    partial = path.with_name(path.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _fill(partial, made, spec, tokenizers, shard)
        os.replace(partial, path)
        files.sync(path.parent)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(path: Path, made: Mapping[str, components.Component], spec: ModelSpec, tokenizers: Mapping[str, Any], shard: int) -> None:
    index: dict[str, Any] = {name: [one.library, one.kind] for name, one in made.items()}
    for name, one in made.items():
        (path / name).mkdir()
        stem = "model" if one.library == "transformers" else "diffusion_pytorch_model"
        head = (
            {"architectures": [one.kind]} if one.library == "transformers" else {"_class_name": one.kind, "_diffusers_version": DIFFUSERS}
        )
        _json(path / name / "config.json", {**head, **one.config})
        _weights(path / name, stem, one.tensors, shard)
    for place, tokenizer in tokenizers.items():
        name = place.replace("text_encoder", "tokenizer")
        name = "tokenizer_2" if spec.conditioning == "refiner" else name
        index[name] = ["transformers", _tokenizer(path / name, tokenizer)]
    written = components.scheduler(spec)
    (path / "scheduler").mkdir()
    _json(path / "scheduler" / "scheduler_config.json", {**written, "_diffusers_version": DIFFUSERS})
    index["scheduler"] = ["diffusers", written["_class_name"]]
    _json(path / "model_index.json", _index(spec, index))


def _index(spec: ModelSpec, parts: dict[str, Any]) -> dict[str, Any]:
    """Components that a pipeline knows and this model lacks are said to be left out."""
    kind = components.pipeline(spec)
    missing: list[str] = []
    options: dict[str, Any] = {}
    if spec.conditioning in ("clip", "clip_penultimate"):
        missing, options = ["safety_checker", "feature_extractor"], {"requires_safety_checker": False}
    if spec.conditioning == "refiner":
        missing, options = ["text_encoder", "tokenizer"], {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    if spec.conditioning == "sd3":
        missing = [f"{name}{end}" for name in ("text_encoder", "tokenizer") for end in ("", "_2", "_3")]
    absent = {name: [None, None] for name in missing if name not in parts}
    return {"_class_name": kind, "_diffusers_version": DIFFUSERS, "_unnoise_version": __version__, **parts, **absent, **options}


def _tokenizer(path: Path, tokenizer: Any) -> str:
    """Its files and its class. CLIP's in the two tables that every version of transformers reads, T5's as one."""
    path.mkdir()
    if not isinstance(tokenizer, Tokenizer):
        raise FileError(f"got a {type(tokenizer).__name__}, which diffusers' folders have not: use layout 'ldm'")
    table = json.loads(tokenizer.pieces.to_str())
    pad = tokenizer.pieces.id_to_token(tokenizer.pad)
    if tokenizer.start is None:
        (path / "tokenizer.json").write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")
        named = {"eos_token": tokenizer.pieces.id_to_token(tokenizer.end), "pad_token": pad, "unk_token": "<unk>"}
        _json(path / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0, **named})
        _json(path / "special_tokens_map.json", named)
        return "T5TokenizerFast"
    end = tokenizer.pieces.id_to_token(tokenizer.end)
    _json(path / "vocab.json", table["model"]["vocab"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in table["model"]["merges"]]
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    named = {"bos_token": START, "eos_token": end, "unk_token": end, "pad_token": pad}
    kind = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.length, "do_lower_case": True, "errors": "replace"}
    _json(path / "tokenizer_config.json", {**kind, **named})
    _json(path / "special_tokens_map.json", named)
    return "CLIPTokenizer"


def _json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _weights(path: Path, stem: str, tensors: dict[str, Tensor], shard: int) -> None:
    """One file, or several and their index where they are larger than `shard` bytes together."""
    parts = list(_cut(tensors, shard))
    if len(parts) == 1:
        files.write(path / f"{stem}.safetensors", parts[0], {"format": "pt"})
        return
    owners = {}
    for i, part in enumerate(parts):
        name = f"{stem}-{i + 1:05}-of-{len(parts):05}.safetensors"
        files.write(path / name, part, {"format": "pt"})
        owners |= dict.fromkeys(part, name)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    _json(path / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": owners})


def _cut(tensors: dict[str, Tensor], shard: int) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        bytes_ = tensor.numel() * tensor.element_size()
        if part and size + bytes_ > shard:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += bytes_
    yield part
