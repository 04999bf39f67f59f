"""Which family an adapter's file was trained for, by its keys, shapes and metadata, and which family a model is of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from unnoise.checkpoints.keys import Networks, config_of
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError
from unnoise.networks.mmdit import MMDiTConfig
from unnoise.networks.unet import UNetConfig

SD1, SD2, XL, REFINER = "Stable Diffusion 1", "Stable Diffusion 2", "SDXL", "the SDXL refiner"
SD3, FLUX = "Stable Diffusion 3", "Flux"

# A module's name in the file, dots as underscores -> the family that alone has such. The first that is found holds.
SIGNS = {
    r"single_transformer_blocks|double_blocks|single_blocks": (FLUX,),
    r"joint_blocks_\d|transformer_blocks_\d+_(attn_add_|attn_to_|ff_context|norm1_context)": (SD3,),
    r"^(lora_te2|text_encoder_2|clip_g)_": (XL,),
    r"(blocks?)_.*transformer_blocks_[1-9]": (XL, REFINER),
    r"^lora_te_|down_blocks_0_attentions": (SD1, SD2),
}
WIDTHS = {768: SD1, 1024: SD2, 2048: XL, 1280: REFINER}  # of the text tokens that attn2 reads
VERSIONS = {  # how kohya's `ss_base_model_version` and the `modelspec.architecture` begin
    "sd_v1": SD1,
    "sd_v2": SD2,
    "sdxl": XL,
    "sd3": SD3,
    "flux": FLUX,
    "stable-diffusion-v1": SD1,
    "stable-diffusion-v2": SD2,
    "stable-diffusion-xl-v1-refiner": REFINER,
    "stable-diffusion-xl": XL,
    "stable-diffusion-3": SD3,
}


def of_model(networks: Networks) -> str:
    """The family of a model, for messages: by the config of the network that denoises."""
    network = networks.get("network")
    if network is None:
        return "text encoders alone"
    config = config_of(network)
    if isinstance(config, MMDiTConfig):
        return SD3
    if not isinstance(config, UNetConfig):
        return f"a {type(network).__name__}"
    if config.pooled_width:
        return REFINER if config.context_width == 1280 else XL
    if not config.context_width:
        return "a U-Net without text"
    return SD2 if config.linear_projection else SD1


def of_file(weights: Weights, modules: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    """The families that a file may be for; empty where nothing tells. Its keys and shapes go before what stands in its header."""
    names = [module.replace("base_model.model.", "").replace(".", "_") for module in modules]
    signs = next((families for sign, families in SIGNS.items() if any(re.search(sign, name) for name in names)), ())
    if len(signs) == 1:
        return signs
    width = _text_width(weights, modules)
    if width in WIDTHS:
        return (WIDTHS[width],)
    version = _version(weights)
    return (version,) if version and (not signs or version in signs) else signs


def clash(weights: Weights, modules: Mapping[str, Mapping[str, str]], networks: Networks) -> str:
    """One line that says which other family the file is for; empty where it may be for this one."""
    mine, theirs = of_model(networks), of_file(weights, modules)
    if not theirs or "network" not in networks or mine in theirs:
        return ""
    return f"{weights.path} is an adapter for {' or '.join(theirs)}, and this model is {mine}: use one that was trained for it"


def check(weights: Weights, networks: Networks) -> None:
    """Refuse what its header says is another family's, even where shapes fit, as SD 1's self-attention does SD 2. Raises FileError."""
    version, mine = _version(weights), of_model(networks)
    if version and "network" in networks and version != mine:
        raise FileError(
            f"{weights.path} is an adapter for {version} by its header, and this model is {mine}: use one that was trained for it"
        )


def _text_width(weights: Weights, modules: Mapping[str, Mapping[str, str]]) -> int:
    for module, roles in modules.items():
        if re.search(r"attn2[._](processor\.)?to_[kv]$", module) and "down" in roles:
            return weights.shapes[roles["down"]][1]
    numbered = {shape[1] for key, shape in weights.shapes.items() if re.match(r"unet:\d+:down$", key)}
    return max(numbered & {768, 1024, 2048}, default=0)  # no U-Net of these families has such a width of its own


def _version(weights: Weights) -> str:
    written: Iterable[str] = (weights.metadata.get(key, "") for key in ("ss_base_model_version", "modelspec.architecture"))
    return next((family for text in written for start, family in VERSIONS.items() if text.startswith(start)), "")
