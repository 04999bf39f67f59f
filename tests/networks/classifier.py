"""ADM's classifiers of the golden tensors, from the authors' keys."""

from __future__ import annotations

from networks import golden
from unnoise.networks.classifier import Classifier, ClassifierConfig

SMALL = {"widths": (32, 32), "depths": (0, 1), "blocks": 1}
BESIDE_UNET = ClassifierConfig(side=16, classes=10, **SMALL, head_width=16)  # of adm/unet
ADAPTIVE = ClassifierConfig(side=8, classes=9, **SMALL, heads=2, head_width=0, pool="adaptive")  # adm/classifier_adaptive


def adm(weights: golden.Tensors, config: ClassifierConfig = BESIDE_UNET, *, prefix: str = "classifier.", legacy: bool = True) -> Classifier:
    """legacy: the order of q, k and v in the blocks; the pooling always has the new one."""
    mine = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    mine = golden.new_order(mine, config.unet) if legacy else mine
    model = Classifier(config).eval()
    last = "out.2.c_proj" if config.pool == "attention" else "out.3"
    names = golden.unet_ldm(config.unet) | {"pool": "out.2", "pool.qkv": "out.2.qkv_proj", "pool.projection": last}
    golden.translate(model, mine, names, {r"^\.positions$": ".positional_embedding"} | golden.INSIDE_LDM)
    return model.requires_grad_(False)
