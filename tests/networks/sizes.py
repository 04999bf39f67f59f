"""Published sizes: the config, the exact number of parameters, and the multiply-adds of one forward."""

from __future__ import annotations

from typing import NamedTuple

from unnoise.networks.mmdit import MMDiTConfig
from unnoise.networks.unet import UNetConfig


class Size(NamedTuple):
    config: UNetConfig
    parameters: int
    side: int  # of x
    giga_macs: float
    text: int = 0  # tokens


_ADM = {"in_channels": 3, "out_channels": 3, "context_width": 0, "learn_sigma": True, "scale_shift": True}
_ADM_GUIDED = {**_ADM, "resample": "residual", "head_width": 64}
_DDPM = {"in_channels": 3, "out_channels": 3, "context_width": 0, "heads": 1, "corner_pad": True, "eps": 1e-6}
_DDPM |= {"time_shift": 1.0, "time_cos_first": False}
_LDM4 = {"in_channels": 3, "out_channels": 3, "depths": (0, 1, 1, 1)}
_SDXL = {"head_width": 64, "linear_projection": True}
_256 = (256, 256, 512, 512, 1024, 1024)
_FOUR_HEADS = {**_ADM_GUIDED, "head_width": 0, "heads": 4}
_SD2 = UNetConfig(head_width=64, context_width=1024, linear_projection=True)

UNETS = {
    "sd1": Size(UNetConfig(), 859_520_964, 64, 401.64, 77),
    "sd2": Size(_SD2, 865_910_724, 64, 402.13, 77),
    "sd2-768": Size(_SD2, 865_910_724, 96, 1074.55, 77),
    "sdxl": Size(
        UNetConfig(widths=(320, 640, 1280), depths=(0, 2, 10), mid_depth=10, context_width=2048, pooled_width=2816, **_SDXL),
        2_567_463_684,
        128,
        3380.62,
        77,
    ),
    "sdxl-refiner": Size(
        UNetConfig(widths=(384, 768, 1536, 1536), depths=(0, 4, 4, 0), mid_depth=4, context_width=1280, pooled_width=2560, **_SDXL),
        2_259_526_660,
        128,
        3643.01,
        77,
    ),
    "adm-256": Size(UNetConfig(widths=_256, depths=(0, 0, 0, 1, 1, 1), num_classes=1000, **_ADM_GUIDED), 553_838_086, 256, 1119.83),
    "adm-256-uncond": Size(UNetConfig(widths=_256, depths=(0, 0, 0, 1, 1, 1), **_ADM_GUIDED), 552_814_086, 256, 1119.83),
    "adm-128": Size(
        UNetConfig(widths=(256, 256, 512, 768, 1024), depths=(0, 0, 1, 1, 1), num_classes=1000, **_FOUR_HEADS),
        421_529_606,
        128,
        306.93,
    ),
    "adm-64": Size(
        UNetConfig(widths=(192, 384, 576, 768), depths=(0, 1, 1, 1), blocks=3, num_classes=1000, **_ADM_GUIDED), 295_904_454, 64, 109.68
    ),
    "iddpm-cifar": Size(UNetConfig(widths=(128, 256, 256, 256), depths=(0, 1, 1, 0), blocks=3, heads=4, **_ADM), 52_546_438, 32, 8.39),
    "iddpm-64": Size(UNetConfig(widths=(128, 256, 384, 512), depths=(0, 0, 1, 1), blocks=3, heads=4, **_ADM), 121_063_942, 64, 39.74),
    "ddpm-cifar": Size(UNetConfig(widths=(128, 256, 256, 256), depths=(0, 1, 0, 0), **_DDPM), 35_746_307, 32, 6.22),
    "ddpm-celeba": Size(UNetConfig(widths=(128, 256, 256, 256, 512), depths=(0, 0, 1, 0, 0), **_DDPM), 78_700_803, 64, 24.05),
    "ddpm-lsun": Size(UNetConfig(widths=(128, 128, 256, 256, 512, 512), depths=(0, 0, 0, 0, 1, 0), **_DDPM), 113_673_219, 256, 248.51),
    "ldm-4-imagenet": Size(UNetConfig(widths=(192, 384, 576, 960), heads=1, context_width=512, **_LDM4), 400_920_579, 64, 104.22, 1),
    "ldm-4-faces": Size(UNetConfig(widths=(224, 448, 672, 896), head_width=32, context_width=0, **_LDM4), 274_056_163, 64, 101.20),
    "ldm-text-to-image": Size(UNetConfig(context_width=1280), 872_300_484, 32, 0.0, 77),
}

# hidden, depth, heads, patch, side of the latents: trainable, with the table of positions, giga multiply-adds
DITS = {
    "S/8": (384, 12, 6, 8, 32, 33_142_016, 33_148_160, 0.3580),
    "S/4": (384, 12, 6, 4, 32, 32_920_448, 32_945_024, 1.4126),
    "S/2": (384, 12, 6, 2, 32, 32_865_056, 32_963_360, 6.0557),
    "B/8": (768, 12, 12, 8, 32, 130_869_248, 130_881_536, 1.4175),
    "B/4": (768, 12, 12, 4, 32, 130_426_496, 130_475_648, 5.5652),
    "B/2": (768, 12, 12, 2, 32, 130_315_808, 130_512_416, 23.0051),
    "L/8": (1024, 24, 16, 8, 32, 458_578_432, 458_594_816, 5.0114),
    "L/4": (1024, 24, 16, 4, 32, 457_988_224, 458_053_760, 19.6957),
    "L/2": (1024, 24, 16, 2, 32, 457_840_672, 458_102_816, 80.6976),
    "XL/8": (1152, 28, 16, 8, 32, 675_664_640, 675_683_072, 7.3924),
    "XL/4": (1152, 28, 16, 4, 32, 675_000_704, 675_074_432, 29.0437),
    "XL/2": (1152, 28, 16, 2, 32, 674_834_720, 675_129_632, 118.6214),
    "XL/2 at 512": (1152, 28, 16, 2, 64, 674_834_720, 676_014_368, 524.5383),
}

# of latents 128x128 (1024 px) with 154 text tokens; the table of positions is a buffer and not counted
MMDITS = {
    "sd3-medium": (MMDiTConfig(), 2_028_328_000, 4218.68),
    "sd3.5-large": (MMDiTConfig(width=64 * 38, depth=38, heads=38, qk_norm=True), 8_056_627_520, 14798.38),
    "sd3.5-medium": (MMDiTConfig(qk_norm=True, dual_blocks=13, positions=384), 2_243_171_520, 5391.30),
}
