"""What a file is, told from its header: every kind of file, the real ones, and every published size."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import unnoise
from checkpoints.test_save import SINGLE, built, family, layout, words
from unnoise.checkpoints import keys, recognise, save
from unnoise.checkpoints.inspect import describe
from unnoise.checkpoints.layouts import controlnet, first_stage
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError
from unnoise.families.table import FAMILIES
from unnoise.networks.autoencoder import Autoencoder, AutoencoderConfig
from unnoise.networks.controlnet import ControlNet, ControlNetConfig
from unnoise.networks.unet import UNetConfig


@pytest.mark.parametrize("name", [name for name in SINGLE if name != "sdxl-refiner"])
def test_models(name: str, tmp_path: Path) -> None:
    spec = family(name)
    path = tmp_path / "model.safetensors"
    networks = built(spec, torch.float16)
    save.model(path, spec, networks, layout(spec))
    record = describe(path)
    assert (record["kind"], record["family"], record["prediction"]) == ("model", name, spec.prediction)
    assert record["schedule"]["kind"] == spec.schedule.kind and str(path) in record["run"]
    for place, part in record["parts"].items():
        expected = sum(value.numel() for value in networks[place].state_dict().values() if value.is_floating_point())
        assert (part["parameters"], part["dtypes"]) == (expected, ["float16"]), place
    assert record["file_bytes"] == path.stat().st_size
    assert ("missing" in record) == (spec.network.kind == "dit")


# Every family of files of this layout, at its published size, written and told again


LATENT = [name for name, row in FAMILIES.items() if row.network.kind == "mmdit" or (row.network.kind == "unet" and row.first_stage)]


@pytest.mark.parametrize("name", LATENT)
def test_published_sizes_are_told_from_their_shapes(name: str) -> None:
    """What shapes and keys alone cannot tell is the prediction of Stable Diffusion 2, and a distilled SDXL from SDXL."""
    row = FAMILIES[name]
    stored = save.SINGLE["ldm"](row, dict(row.build("meta").items()))
    found = recognise.single_file(Weights.open(stored), {})
    same = {"sd2-base": "sd2", "sdxl-turbo": "sdxl"}.get(name, name)
    assert found.spec.name == same
    fields = ("networks", "null_label", "extra_channels")
    mine, theirs = ({field: getattr(spec, field) for field in fields} for spec in (found.spec, row))
    assert mine == theirs
    for part in found.parts.values():
        part.check()


@pytest.mark.parametrize("name", [name for name, row in FAMILIES.items() if row.network.kind == "dit" and row.conditioning == "labels"])
def test_published_transformers(name: str) -> None:
    row = FAMILIES[name]
    found = recognise.single_file(Weights.open(save.SINGLE["dit"](row, dict(row.build("meta").items()))), {})
    assert (found.spec.name, found.spec.network, found.spec.size) == (name, row.network, row.size)
    found.parts["network"].check()


def saved(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, path, metadata)
    return path


def test_parts_and_controls(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    stage = AutoencoderConfig(widths=(32, 32), blocks=1)
    record = describe(saved(keys.write(first_stage.autoencoder(stage), Autoencoder(stage).state_dict()), path))
    assert record["kind"] == "autoencoder" and "latent_channels 4" in record["evidence"][0] and "--part autoencoder=" in record["run"]
    config = ControlNetConfig(UNetConfig(widths=(32,), depths=(1,), blocks=1, heads=4, context_width=24), hint_widths=(8, 8))
    record = describe(saved(keys.write(controlnet.numbered_control(config), ControlNet(config).state_dict()), path))
    assert (record["kind"], record["family"]) == ("ControlNet", "sd1") and "--control" in record["run"]
    record = describe(saved({"lora_controlnet": torch.zeros(1)}, path))
    assert record["kind"] == "other control" and "Control-LoRA" in record["evidence"][0]


KOHYA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(
    ("tensors", "dialect", "change", "rank"),
    [
        ({f"{KOHYA}.lora_down.weight": (4, 768), f"{KOHYA}.lora_up.weight": (320, 4), f"{KOHYA}.alpha": ()}, "kohya", "LoRA", 4),
        ({"unet.x.attn2.to_k.lora_A.weight": (8, 768), "unet.x.attn2.to_k.lora_B.weight": (320, 8)}, "PEFT", "LoRA", 8),
        ({f"{KOHYA}.hada_{end}": (2, 2) for end in ("w1_a", "w1_b", "w2_a", "w2_b")}, "LyCORIS", "LoHa", 2),
    ],
)
def test_adapters(tensors: dict[str, tuple[int, ...]], dialect: str, change: str, rank: int, tmp_path: Path) -> None:
    record = describe(saved({key: torch.zeros(shape) for key, shape in tensors.items()}, tmp_path / "x.safetensors"))
    assert (record["kind"], record["dialect"], record["change"], record["rank"]) == ("LoRA", dialect, change, rank)
    assert change == "LoHa" or record["family"] == "Stable Diffusion 1"


def test_every_golden_adapter(shared: Path) -> None:
    files = sorted((shared / "golden/lora").glob("sd*_[a-z]*_*.safetensors"))
    if not files:
        pytest.skip("no golden adapters")
    changes = {"loha": "LoHa", "lokr": "LoKr", "dora": "DoRA", "locon": "LoCon", "full": "whole differences"}
    for file in files:
        if "text_encoder" in file.name or file.name.endswith("_unet.safetensors"):
            continue
        record = describe(file)
        expected = next((change for word, change in changes.items() if word in file.name), None)
        assert record["kind"] == "LoRA", file.name
        assert expected in (None, record["change"]), file.name


def test_words(tmp_path: Path) -> None:
    record = describe(saved({"<cat>": torch.zeros(2, 768)}, tmp_path / "x.safetensors"))
    assert (record["kind"], record["family"], record["evidence"]) == (
        "textual inversion",
        "Stable Diffusion 1",
        ["the word '<cat>', 2 vectors"],
    )


def test_real_files(shared: Path) -> None:
    weights = shared / "weights"
    if not weights.is_dir():
        pytest.skip("no real weights")
    disney = describe(weights / "lora_sd15/cloneofsimo_lora_disney.safetensors")
    assert (disney["family"], disney["dialect"], disney["rank"]) == ("Stable Diffusion 1", "cloneofsimo", 1)
    cat = describe(weights / "lora_sd15/diffusers_lora_catundchat.safetensors")
    assert (cat["family"], cat["dialect"], cat["rank"]) == ("Stable Diffusion 1", "diffusers attention processors", 4)
    for file in [*weights.rglob("*.pth"), *weights.rglob("*.pt"), *weights.rglob("*.bin")]:
        record = describe(file)
        assert record["kind"] == "pickle" and record["run"].startswith(f"unnoise convert {file}"), file
        assert 0 < record["bytes"] < record["file_bytes"]
    folder = describe(weights / "sd15_layout")
    assert "Git LFS pointer" in folder["evidence"][0] and folder["parts"]["vae"]["state"] == "config alone"


def test_a_private_architecture_is_described_and_not_loaded(shared: Path, tmp_path: Path) -> None:
    source = shared / "weights/ddpm/brianpulfer_ddpm_mnist.pt"
    if not source.is_file():
        pytest.skip("no real weights")
    from unnoise.checkpoints.pickles import convert

    out = tmp_path / "mnist.safetensors"
    convert.convert(source, out)
    record = describe(out)
    assert record["kind"] == "unknown" and "no layout that runs here" in record["evidence"][0] and "run" not in record
    with pytest.raises(FileError, match=r"is no model of a family that runs here: \d+ tensors such as"):
        unnoise.load(out)


def test_folders(tmp_path: Path) -> None:
    spec = family("sd1")
    networks = built(spec)
    save.model(tmp_path / "model", spec, networks, "diffusers", tokenizers=words(spec))
    record = describe(tmp_path / "model")
    assert (record["kind"], record["family"]) == ("model", "sd1")
    assert record["parameters"] == sum(p.numel() for p in networks.parameters())
    assert describe(tmp_path / "model/vae")["kind"] == "autoencoder"
    (tmp_path / "model/unet/diffusion_pytorch_model.safetensors").unlink()
    record = describe(tmp_path / "model")
    assert "does not load: " in record["evidence"][0] and record["parts"]["vae"]["state"].endswith(" parameters")
    with pytest.raises(FileError, match=r"is no model's folder: it has model, expected a model_index\.json"):
        describe(tmp_path)


def test_a_header_is_all_that_is_read(tmp_path: Path) -> None:
    """A sparse file of SDXL's size: seven gigabytes of which nothing but the header was ever written."""
    row = FAMILIES["sdxl"]
    stored, table, place = save.SINGLE["ldm"](row, dict(row.build("meta").items())), {}, 0
    for name, value in stored.items():
        end = place + 2 * value.numel()
        table[name] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [place, end]}
        place = end
    header = json.dumps(table).encode()
    path = tmp_path / "sdxl.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + place)
    began = time.perf_counter()
    record = describe(path)
    seconds = time.perf_counter() - began
    assert record["family"] == "sdxl" and record["file_bytes"] > 6.5e9
    assert record["parts"]["network"]["parameters"] == 2_567_463_684  # Podell et al. 2023: 2.6 billion
    assert seconds < 2


def test_the_public_name() -> None:
    record: dict[str, Any] = unnoise.inspect("emoji")
    assert (record["kind"], record["conditioning"], record["parts"]["network"]["network"]) == ("model", "draft", "UNet")
