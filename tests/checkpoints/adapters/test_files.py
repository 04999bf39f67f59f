"""Adapter files: the authors' recordings, every dialect of keys, what is refused, and kohya's form written back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints.adapters import models
from checkpoints.adapters.models import CLIP_G, CLIP_L, SD15, SDXL, Networks
from unnoise.checkpoints.adapters import files, names
from unnoise.checkpoints.adapters import keys as lora_layout
from unnoise.checkpoints.adapters.files import Adapter
from unnoise.checkpoints.pickles import convert
from unnoise.checkpoints.store.weights import Weights
from unnoise.conditioning import Cond
from unnoise.errors import FileError
from unnoise.networks.lora import Decomposed, LowRank, Rows, adapted
from unnoise.networks.mmdit import MMDiT, MMDiTConfig
from unnoise.networks.text import CLIPTextConfig
from unnoise.networks.unet import UNetConfig

CASES = [
    *(f"sd15_{name}" for name in ("attnproc_prefixed", "attnproc_unet_only", "cloneofsimo", "cloneofsimo_extended", "lycoris_full")),
    "sd15_lycoris_dora_input",
    *(f"{model}_kohya{kind}" for model in ("sd15", "sdxl") for kind in ("", "_conv", "_noalpha")),
    *(f"{model}_lycoris_{kind}" for model in ("sd15", "sdxl") for kind in ("dora", "locon", "locon_tucker", "loha", "loha_tucker")),
    *(f"{model}_lycoris_{kind}" for model in ("sd15", "sdxl") for kind in ("lokr", "lokr_decompose_tucker")),
    *(f"{model}_peft_{kind}" for model in ("sd15", "sdxl") for kind in ("alpha_in_metadata", "dora", "no_metadata")),
]
OUTPUTS = {"unet": "network", "text_encoder": "text_encoder", "text_encoder1": "text_encoder", "text_encoder2": "text_encoder_2"}


class Bench:
    """The base networks of the fixtures of one family, and their recorded inputs."""

    def __init__(self, folder: Path, family: str):
        self.folder, self.family = folder, family
        self.networks: Networks = {"sd15": models.sd15, "sdxl": models.sdxl}[family](folder)
        self.inputs = load_file(folder / f"base_{family}" / "io.safetensors")

    @torch.no_grad()
    def run(self, networks: Networks) -> dict[str, Tensor]:
        given = self.inputs
        cond = Cond(tokens=given["in.context"], pooled=given.get("in.vector"))
        texts = {place: networks[place](given["in.ids"]).last for place in networks if place != "network"}
        return {"network": networks["network"](given["in.x"], given["in.t"], cond), **texts}

    def read(self, case: str) -> Adapter:
        return files.read(Weights.open(self.folder / f"{case}.safetensors"), self.networks)


@pytest.fixture(scope="module")
def bench(shared: Path) -> Callable[[str], Bench]:
    made: dict[str, Bench] = {}

    def of(case: str) -> Bench:
        family = case.split("_")[0]
        if family not in made:
            made[family] = Bench(shared / "golden" / "lora", family)
        return made[family]

    return of


def assert_golden(mine: Tensor, golden: Tensor, record: dict[str, Any]) -> None:
    """The fixtures' tolerance: 1e-5 of the largest value, or four times their own distance from float64."""
    allowed = max(1e-5 * max(1.0, golden.abs().max().item()), 4 * record["max_abs_float32_minus_float64"])
    assert (mine.reshape(golden.shape) - golden).abs().max().item() <= allowed


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_bases_are_the_authors_own(bench: Callable[[str], Bench], family: str) -> None:
    own = bench(family)
    records = json.loads((own.folder / f"base_{family}" / "config.json").read_text())["tensors"]
    for name, mine in own.run(own.networks).items():
        key = next(k for k in own.inputs if k.startswith("out.") and OUTPUTS[k[4:].removesuffix("_last_hidden")] == name)
        assert_golden(mine, own.inputs[key], records[key])


@pytest.mark.parametrize("case", CASES)
def test_golden(bench: Callable[[str], Bench], case: str) -> None:
    """Outputs at 0.7 and 1, and the recorded changes of weights."""
    own = bench(case)
    adapter, recorded = own.read(case), load_file(own.folder / case / "io.safetensors")
    records = json.loads((own.folder / case / "config.json").read_text())["tensors"]
    checked = 0
    for scale, mark in ((0.7, "07"), (1.0, "1")):
        on = files.apply(own.networks, [(adapter, scale)])
        found = own.run(on)
        for key, golden in recorded.items():
            if key.endswith(f"_scale{mark}"):
                place = OUTPUTS[key[4:].removesuffix(f"_scale{mark}").removesuffix("_last_hidden")]
                mine = found[place]
            elif key.startswith(f"out.delta{mark}."):
                mine = _change(own.networks, on, key.removeprefix(f"out.delta{mark}."))
            else:
                continue
            checked += 1
            assert_golden(mine, golden, records[key])
    assert checked == len(recorded)


def _change(base: Networks, on: Networks, module: str) -> Tensor:
    """What the fixtures record: the answer of the changed layer to each unit input less the unchanged one's, so a bias is in it."""
    place, path = models.find(base, module)
    old, new = base[place].get_submodule(path), on[place].get_submodule(path)
    change = new.get_parameter("weight") - old.get_parameter("weight")
    if isinstance(old.bias, Tensor) and isinstance(new.bias, Tensor):
        change = change + (new.bias - old.bias).reshape(-1, *[1] * (change.ndim - 1))
    return change


def test_two_adapters_and_none_in_one_process(bench: Callable[[str], Bench]) -> None:
    own = bench("sd15")
    one, two = own.read("sd15_kohya"), own.read("sd15_lycoris_loha")
    solo = [own.run(files.apply(own.networks, used)) for used in ([(one, 0.7)], [(two, 1.0)], [])]
    together = [files.apply(own.networks, used) for used in ([(one, 0.7)], [(two, 1.0)], [])]
    for networks, expected in zip(together, solo, strict=True):
        assert all(torch.equal(value, expected[name]) for name, value in own.run(networks).items())


def test_the_base_weights_are_the_same_bytes_after_50_cycles(bench: Callable[[str], Bench]) -> None:
    own = bench("sd15")
    used = [own.read(case) for case in ("sd15_kohya", "sd15_lycoris_dora", "sd15_lycoris_full", "sd15_peft_dora")]

    def digest() -> str:
        state = models.digest(own.networks)
        return hashlib.sha256(b"".join(name.encode() + value for name, value in state.items())).hexdigest()

    before = digest()
    for i in range(50):
        files.apply(own.networks, [(adapter, 1.0 + i) for adapter in used[i % 4 :] + used[: i % 3]])
    assert digest() == before


def test_scales_by_network(bench: Callable[[str], Bench]) -> None:
    own = bench("sd15")
    adapter = own.read("sd15_kohya")
    on = files.apply(own.networks, [(adapter, {"network": 0.5})])
    assert on["text_encoder"] is own.networks["text_encoder"]
    assert torch.equal(own.run(on)["network"], own.run(files.apply(own.networks, [(adapter, 0.5)]))["network"])


def test_what_an_adapter_says_of_itself(bench: Callable[[str], Bench]) -> None:
    own = bench("sd15")
    adapter, stored = own.read("sd15_kohya"), load_file(own.folder / "sd15_kohya.safetensors")
    assert (adapter.kinds, adapter.rank, adapter.matched, adapter.unmatched) == (("LoRA",), 4, 204, ())
    assert adapter.bytes == sum(2 * t.numel() for t in stored.values())
    changed = [own.networks[place].get_parameter(name) for place, deltas in adapter.deltas.items() for name in deltas]
    assert adapter.memory(own.networks) == sum(4 * p.numel() for p in changed)


def test_cloneofsimo_lists_are_the_numbered_file(bench: Callable[[str], Bench], tmp_path: Path) -> None:
    """The .pt form, converted, has no targets: the defaults are tried."""
    own = bench("sd15")
    names = [f"sd15_cloneofsimo_unet{end}" for end in ("", ".text_encoder")]
    for name in names:
        convert.convert(own.folder / f"{name}.pt", tmp_path / f"{name}.safetensors")
    tensors = {key: value for name in names for key, value in load_file(tmp_path / f"{name}.safetensors").items()}
    found = files.read(Weights.open(tensors), own.networks)
    results = [own.run(files.apply(own.networks, [(adapter, 0.7)])) for adapter in (found, own.read("sd15_cloneofsimo"))]
    assert found.matched == 152 and all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    with pytest.raises(FileError, match="pairs of up"):
        lora_layout.from_list(list(tensors.values())[1:], "unet")


# --- one adapter in every dialect

TEXT = CLIPTextConfig(vocab=120, width=24, mlp=48, layers=2, heads=3)
MODULES = {  # what kohya calls it: what diffusers does
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q": (
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        (16, 16),
    ),
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0": (
        "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
        (24, 24),
    ),
    "lora_te_text_model_encoder_layers_1_self_attn_out_proj": ("text_encoder.text_model.encoder.layers.1.self_attn.out_proj", (24, 24)),
}


def pairs() -> dict[str, tuple[Tensor, Tensor]]:
    """up, down by kohya's names."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return {name: (torch.randn(shape[0], 2), torch.randn(2, shape[1])) for name, (_, shape) in MODULES.items()}


def kohya(key: str) -> tuple[str, str]:
    return f"{key}.lora_up.weight", f"{key}.lora_down.weight"


def diffusers(key: str, up: str, down: str) -> tuple[str, str]:
    return MODULES[key][0] + up, MODULES[key][0] + down


def processor(key: str) -> tuple[str, str]:
    """Of diffusers 0.12 to 0.20; its text encoder's names are those of 0.15."""
    path = MODULES[key][0].replace("to_out.0", "to_out").replace("out_proj", "to_out")
    owner, _, layer = path.rpartition(".")
    middle = "" if path.startswith("text_encoder") else ".processor"
    return f"{owner}{middle}.{layer}_lora.up.weight", f"{owner}{middle}.{layer}_lora.down.weight"


DIALECTS: dict[str, Callable[[str], tuple[str, str]]] = {
    "kohya": kohya,
    "kohya te1": lambda key: kohya(key.replace("lora_te_", "lora_te1_")),
    "diffusers": lambda key: diffusers(key, ".lora.up.weight", ".lora.down.weight"),
    "linear layer": lambda key: diffusers(key, ".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    "processor": processor,
    "peft": lambda key: diffusers(key, ".lora_B.weight", ".lora_A.weight"),
    "peft with the adapter's name": lambda key: diffusers(key, ".lora_B.default.weight", ".lora_A.default.weight"),
    "peft of one network": lambda key: (
        "base_model.model." + MODULES[key][0].partition(".")[2] + ".lora_B.weight",
        "base_model.model." + MODULES[key][0].partition(".")[2] + ".lora_A.weight",
    ),
    "without text_model": lambda key: diffusers(key, ".lora_B.weight", ".lora_A.weight"),
    "unprefixed": lambda key: tuple(name.partition(".")[2] for name in processor(key)),  # type: ignore[return-value,arg-type]
    "lycoris": lambda key: kohya(key.replace("lora_unet_", "lycoris_")),
}


def written(dialect: str, keys: list[str] | None = None) -> dict[str, Tensor]:
    result = {}
    for key, (up, down) in pairs().items():
        if keys is None or key in keys:
            names = DIALECTS[dialect](key)
            names = [name.replace("text_model.", "") for name in names] if dialect == "without text_model" else names
            result |= dict(zip(names, (up, down), strict=True))
    return result


def factors(adapter: Adapter) -> dict[str, tuple[Tensor, Tensor]]:
    found = {f"{place}.{name}": deltas for place, own in adapter.deltas.items() for name, deltas in own.items()}
    assert all(len(deltas) == 1 and isinstance(deltas[0], LowRank) for deltas in found.values())
    return {name: (deltas[0].up, deltas[0].down) for name, deltas in found.items()}  # type: ignore[union-attr]


def same(a: dict[str, tuple[Tensor, Tensor]], b: dict[str, tuple[Tensor, Tensor]]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_reads_as_the_same(dialect: str) -> None:
    networks = models.empty(SD15, TEXT)
    expected = factors(files.read(Weights.open(written("kohya")), networks))
    assert expected.keys() == {
        "network.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight",
        "network.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.weight",
        "text_encoder.text_model.encoder.layers.1.self_attn.out_proj.weight",
    }
    found = files.read(Weights.open(written(dialect)), networks)
    assert found.matched == 3 and same(factors(found), expected)


@pytest.mark.parametrize("first", DIALECTS)
def test_mixed_files_lose_nothing(first: str) -> None:
    networks, keys = models.empty(SD15, TEXT), list(MODULES)
    mixed = written(first, keys[:1]) | written("peft", keys[1:2]) | written("kohya", keys[2:])
    assert same(factors(files.read(Weights.open(mixed), networks)), factors(files.read(Weights.open(written("kohya")), networks)))


def test_numbered_names_of_sdxl_and_diffusers_names_are_one_module() -> None:
    networks = models.empty(SDXL, CLIP_L, CLIP_G)
    known = names.Names(networks)
    for numbered, dotted in {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "lora_unet_input_blocks_3_0_op": "unet.down_blocks.0.downsamplers.0.conv",
        "lora_unet_output_blocks_2_2_conv": "unet.up_blocks.0.upsamplers.0.conv",
        "lora_unet_middle_block_1_proj_in": "unet.mid_block.attentions.0.proj_in",
        "lora_unet_middle_block_2_in_layers_2": "unet.mid_block.resnets.1.conv1",
        "lora_unet_label_emb_0_2": "unet.add_embedding.linear_2",
        "lora_unet_out_2": "diffusion_model.out.2",
        "lora_te2_text_projection": "text_encoder_2.text_projection",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
    }.items():
        assert known.find(numbered) is not None and known.find(numbered) == known.find(dotted)


@pytest.mark.parametrize("configs", [(SD15, TEXT), (SDXL, CLIP_L, CLIP_G)], ids=["sd15", "sdxl"])
def test_no_two_modules_share_a_name(configs: tuple[UNetConfig | CLIPTextConfig, ...]) -> None:
    networks = models.empty(*configs)
    for place, network in networks.items():
        seen: dict[str, names.Target] = {}
        for name, target in names._spelled(place, network):
            assert seen.setdefault(name, target) == target
    written = names.kohya(networks)
    assert len(set(written.values())) == len(written)


# --- alpha in PEFT's metadata


def test_peft_alphas_from_the_metadata(tmp_path: Path) -> None:
    networks = models.empty(SD15, TEXT)
    q, out, text = (MODULES[key][0] for key in MODULES)
    metadata = {
        "unet.lora_alpha": 4,
        "unet.alpha_pattern": {"attn2.to_out.0": 1},
        "text_encoder.lora_alpha": 6,
        "text_encoder.use_rslora": True,
        "text_encoder.r": 2,
    }
    path = tmp_path / "a.safetensors"
    save_file(written("peft"), path, metadata={"lora_adapter_metadata": json.dumps(metadata)})
    adapter = files.read(Weights.open(path), networks)
    strength = {name: delta.change(torch.eye(*delta.size)) / (delta.up @ delta.down) for name, delta in _low_ranks(adapter).items()}
    for module, expected in ((q, 4 / 2), (out, 1 / 2), (text, 6 / 2**0.5)):
        place, name = models.find(networks, module.removeprefix("unet."))
        torch.testing.assert_close(strength[f"{place}.{name}.weight"].mean(), torch.tensor(expected))


def _low_ranks(adapter: Adapter) -> dict[str, LowRank]:
    return {f"{place}.{name}": deltas[0] for place, own in adapter.deltas.items() for name, deltas in own.items()}  # type: ignore[misc]


def test_peft_alpha_from_the_config_beside(tmp_path: Path) -> None:
    networks = models.empty(SD15)
    keys = [key for key in MODULES if "unet" in key]
    save_file(written("peft of one network", keys), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 3}))
    weights = Weights.open(tmp_path / "adapter_model.safetensors")
    assert {float(delta.alpha or 0) for delta in _low_ranks(files.read(weights, networks)).values()} == {3.0}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LOKR", "r": 2}))
    with pytest.raises(FileError, match="LOKR"):
        files.read(weights, networks)


def test_an_alpha_key_outdoes_the_metadata(tmp_path: Path) -> None:
    key = next(iter(MODULES))
    tensors = written("peft", [key]) | {f"{MODULES[key][0]}.alpha": torch.tensor(8.0)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 4})})
    adapter = files.read(Weights.open(tmp_path / "a.safetensors"), models.empty(SD15))
    assert [float(delta.alpha or 0) for delta in _low_ranks(adapter).values()] == [8.0]


# --- refusals


def test_unknown_keys_are_refused_and_the_nearest_named() -> None:
    tensors = written("kohya") | {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_x.lora_up.weight": torch.ones(2, 2)}
    networks = models.empty(SD15, TEXT)
    with pytest.raises(FileError, match=r"1 of its 7 keys .*attn1_to_x.*nearest here: lora_unet_down_blocks_1_.*attn1_to_.*strict=False"):
        files.read(Weights.open(tensors), networks)
    loose = files.read(Weights.open(tensors), networks, strict=False)
    assert loose.matched == 3 and len(loose.unmatched) == 1


@pytest.mark.parametrize("lost", ["lora_up.weight", "lora_down.weight"])
def test_half_a_pair_is_refused(lost: str) -> None:
    tensors = {key: value for key, value in written("kohya").items() if not (key.endswith(lost) and "mid_block" in key)}
    with pytest.raises(FileError, match=r"1 of its 5 keys"):
        files.read(Weights.open(tensors), models.empty(SD15, TEXT))


def test_two_kinds_on_one_module_add_up() -> None:
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = written("kohya", [key]) | {f"{key}.diff": torch.randn(16, 16), f"{key}.hada_w1_a": torch.ones(16, 2)}
    with pytest.raises(FileError, match=r"1 of its 4 keys \(.*hada_w1_a\)"):
        files.read(Weights.open(tensors), models.empty(SD15))
    del tensors[f"{key}.hada_w1_a"]
    (several,) = files.read(Weights.open(tensors), models.empty(SD15)).deltas["network"].values()
    weight, (up, down) = torch.randn(16, 16), pairs()[key]
    found = adapted(adapted(weight, several[0], 0.5), several[1], 0.5)
    torch.testing.assert_close(found, weight + 0.5 * (up @ down + tensors[f"{key}.diff"]))


def test_no_adapter_at_all() -> None:
    networks = models.empty(SD15)
    with pytest.raises(FileError, match="no tensors of an adapter"):
        files.read(Weights.open({}), networks)
    with pytest.raises(FileError, match="belong to no module"):
        files.read(Weights.open({"model.weight": torch.ones(2, 2)}), networks)


def test_other_kinds_of_adapters_are_named() -> None:
    for end, kind in {"oft_blocks": "OFT", "b2.weight": "GLoRA", "on_input": "IA3"}.items():
        with pytest.raises(FileError, match=f"holds {kind}: expected LoRA"):
            files.read(Weights.open({f"lora_unet_mid_block_attentions_0_proj_in.{end}": torch.ones(2)}), models.empty(SD15))


def test_a_network_that_is_not_there() -> None:
    with pytest.raises(FileError, match=r"2 of its 6 keys \(lora_te_"):
        files.read(Weights.open(written("kohya")), models.empty(SD15))


def test_nan_is_refused() -> None:
    tensors = written("kohya")
    next(iter(tensors.values()))[0, 0] = float("nan")
    with pytest.raises(FileError, match="NaN or infinity"):
        files.read(Weights.open(tensors), models.empty(SD15, TEXT))


def test_another_shape_is_refused() -> None:
    tensors = {key: value[:, :1] if key.endswith("to_q.lora_down.weight") else value for key, value in written("kohya").items()}
    with pytest.raises(FileError, match=r"attn1.to_q.weight is a matrix of \(16, 1\), the model's has shape \(16, 16\)"):
        files.read(Weights.open(tensors), models.empty(SD15, TEXT))
    assert files.read(Weights.open(tensors), models.empty(SD15, TEXT), strict=False).matched == 2


XL_NAMES = r"for SDXL.*, and this model is Stable Diffusion 1"
REAL_SD1 = UNetConfig()
REAL_XL = UNetConfig(
    widths=(320, 640, 1280), depths=(0, 2, 10), mid_depth=10, head_width=64, context_width=2048, linear_projection=True, pooled_width=2816
)


def cross_attention(width: int, rows: int = 640) -> dict[str, Tensor]:
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    return {f"{name}.lora_A.weight": torch.zeros(2, width), f"{name}.lora_B.weight": torch.zeros(rows, 2)}


@pytest.mark.parametrize(
    ("width", "config", "families"),
    [
        (2048, REAL_SD1, ("SDXL", "Stable Diffusion 1")),
        (1024, REAL_SD1, ("Stable Diffusion 2", "Stable Diffusion 1")),
        (768, REAL_XL, ("Stable Diffusion 1", "SDXL")),
        (1280, REAL_XL, ("the SDXL refiner", "SDXL")),
    ],
)
def test_another_family_is_named_with_this_one(width: int, config: UNetConfig, families: tuple[str, str]) -> None:
    networks = models.empty(config)
    with pytest.raises(FileError, match=rf"an adapter for {families[0]}, and this model is {families[1]}"):
        files.read(Weights.open(cross_attention(width)), networks)
    assert files.read(Weights.open(cross_attention(config.context_width)), networks).matched == 1


@pytest.mark.parametrize("case", ["kohya", "lycoris_lokr", "peft_dora"])
def test_golden_sdxl_files_are_refused_by_stable_diffusion_1(bench: Callable[[str], Bench], case: str) -> None:
    with pytest.raises(FileError, match=XL_NAMES if case != "kohya" else r"for SDXL by its header, and this model is Stable Diffusion 1"):
        files.read(Weights.open(bench("sd15").folder / f"sdxl_{case}.safetensors"), bench("sd15").networks)


@pytest.mark.parametrize("case", ["kohya", "lycoris_lokr"])
def test_golden_stable_diffusion_1_files_are_refused_by_sdxl(bench: Callable[[str], Bench], case: str) -> None:
    with pytest.raises(FileError, match=r"for Stable Diffusion 1.* and this model is SDXL"):
        files.read(Weights.open(bench("sdxl").folder / f"sd15_{case}.safetensors"), bench("sdxl").networks)


def test_a_header_of_another_family_is_believed_though_every_shape_fits(tmp_path: Path) -> None:
    """Self-attention of Stable Diffusion 1 and 2 has the same shapes."""
    path, key = tmp_path / "a.safetensors", next(iter(MODULES))
    save_file(written("kohya", [key]), path, metadata={"ss_base_model_version": "sd_v2"})
    with pytest.raises(FileError, match="for Stable Diffusion 2 by its header, and this model is Stable Diffusion 1"):
        files.read(Weights.open(path), models.empty(SD15))
    assert files.read(Weights.open(path), models.empty(SD15), strict=False).matched == 1


@pytest.mark.parametrize(
    ("key", "family"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", "Flux"),
        ("transformer.single_transformer_blocks.0.attn.to_q", "Flux"),
        ("transformer.transformer_blocks.0.attn.add_q_proj", "Stable Diffusion 3"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv", "Stable Diffusion 3"),
    ],
)
def test_transformers_are_told_by_their_keys(key: str, family: str) -> None:
    tensors = {f"{key}.lora_{way}.weight": torch.ones(2, 2) for way in ("up", "down")}
    with pytest.raises(FileError, match=f"for {family}, and this model is Stable Diffusion 1"):
        files.read(Weights.open(tensors), models.empty(SD15))


# --- kohya's form, written


@pytest.mark.parametrize("case", [case for case in CASES if "kohya" in case or "lycoris" in case])
def test_kohya_and_lycoris_files_come_back_bit_for_bit(bench: Callable[[str], Bench], case: str, tmp_path: Path) -> None:
    own, path = bench(case), tmp_path / "saved.safetensors"
    files.save(path, own.read(case), own.networks)
    before, after = load_file(own.folder / f"{case}.safetensors"), load_file(path)
    assert before.keys() == after.keys()
    assert all(before[key].dtype == after[key].dtype and torch.equal(before[key], after[key]) for key in before)
    kept = Weights.open(own.folder / f"{case}.safetensors").metadata
    assert Weights.open(path).metadata == kept


@pytest.mark.parametrize(
    "case",
    ["sd15_attnproc_prefixed", "sd15_cloneofsimo", "sd15_peft_alpha_in_metadata", "sdxl_peft_alpha_in_metadata", "sdxl_peft_no_metadata"],
)
def test_other_dialects_in_kohya_s_form_do_the_same(bench: Callable[[str], Bench], case: str, tmp_path: Path) -> None:
    own, path = bench(case), tmp_path / "saved.safetensors"
    adapter = own.read(case)
    files.save(path, adapter, own.networks)
    assert all(key.startswith(("lora_unet_", "lora_te")) for key in load_file(path))
    again = files.read(Weights.open(path), own.networks)
    results = [own.run(files.apply(own.networks, [(a, 0.7)])) for a in (adapter, again)]
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_peft_dora_is_not_written_as_what_it_is_not(bench: Callable[[str], Bench], tmp_path: Path) -> None:
    own = bench("sd15")
    with pytest.raises(FileError, match="PEFT's DoRA"):
        files.save(tmp_path / "a.safetensors", own.read("sd15_peft_dora"), own.networks)


# --- what real files and Stable Diffusion 3 have


def test_real_files(shared: Path) -> None:
    networks = models.empty(REAL_SD1, CLIPTextConfig())
    folder = shared / "weights" / "lora_sd15"
    disney = files.read(Weights.open(folder / "cloneofsimo_lora_disney.safetensors"), networks)
    assert (disney.matched, disney.unmatched, disney.rank) == (144 + 48, (), 1)
    assert [(word.word, word.vectors[""].shape) for word in disney.embeddings] == [("<s1>", (1, 768)), ("<s2>", (1, 768))]
    cat = files.read(Weights.open(folder / "diffusers_lora_catundchat.safetensors"), networks)
    assert (cat.matched, cat.unmatched, cat.rank) == (128, (), 4)
    assert "down_blocks.0.attentions.0.transformer_blocks.0.ff.proj.weight" in disney.deltas["network"]


@pytest.mark.slow
def test_a_real_file_changes_what_stable_diffusion_1_answers(shared: Path) -> None:
    """Zeros as base, so that the network's weights with the adapter are its changes alone."""
    networks = models.empty(REAL_SD1)
    unet = networks["network"].to_empty(device="cpu")
    for p in unet.parameters():
        torch.nn.init.zeros_(p)
    cat = files.read(Weights.open(shared / "weights" / "lora_sd15" / "diffusers_lora_catundchat.safetensors"), networks)
    on = files.apply({"network": unet}, [(cat, 0.5)])["network"]
    stored = load_file(shared / "weights" / "lora_sd15" / "diffusers_lora_catundchat.safetensors")
    for block in ("down_blocks.0.attentions.0", "up_blocks.3.attentions.2"):
        key = f"{block}.transformer_blocks.0.attn2.processor.to_k_lora"
        expected = 0.5 * stored[f"{key}.up.weight"] @ stored[f"{key}.down.weight"]
        torch.testing.assert_close(on.get_parameter(f"{block}.transformer_blocks.0.attn2.to_k.weight").data, expected)


MMDIT = MMDiTConfig(in_channels=4, width=32, depth=2, heads=2, context_width=12, pooled_width=10, positions=8, qk_norm=True, dual_blocks=1)


def sd3_pairs() -> dict[str, Tensor]:
    """diffusers' names: third of a joint matrix, a whole one, and the last block's text modulation, whose halves are exchanged there."""
    shapes = {"0.attn.to_k": (32, 32), "0.attn2.to_v": (32, 32), "1.attn.add_q_proj": (32, 32), "0.ff.net.0.proj": (128, 32)}
    shapes |= {"1.norm1_context.linear": (64, 32), "0.norm1_context.linear": (192, 32)}
    result = {}
    for name, (out, in_) in shapes.items():
        result[f"transformer.transformer_blocks.{name}.lora_A.weight"] = torch.randn(2, in_)
        result[f"transformer.transformer_blocks.{name}.lora_B.weight"] = torch.randn(out, 2)
    return result


def test_stable_diffusion_3_by_diffusers_names(tmp_path: Path) -> None:
    tensors = sd3_pairs()
    networks: Networks = {"network": MMDiT(MMDIT).requires_grad_(False)}
    adapter = files.read(Weights.open(tensors), networks)
    on = files.apply(networks, [(adapter, 1.0)])["network"]

    def change(name: str) -> Tensor:
        return on.get_parameter(name) - networks["network"].get_parameter(name)

    def product(name: str) -> Tensor:
        front = f"transformer.transformer_blocks.{name}"
        return tensors[f"{front}.lora_B.weight"] @ tensors[f"{front}.lora_A.weight"]

    close = {"rtol": 1e-4, "atol": 1e-5}
    joint = change("joint_blocks.0.x_block.attn.qkv.weight")
    torch.testing.assert_close(joint[32:64], product("0.attn.to_k"), **close)
    assert not joint[:32].any() and not joint[64:].any()
    torch.testing.assert_close(change("joint_blocks.0.x_block.attn2.qkv.weight")[64:], product("0.attn2.to_v"), **close)
    torch.testing.assert_close(change("joint_blocks.1.context_block.attn.qkv.weight")[:32], product("1.attn.add_q_proj"), **close)
    torch.testing.assert_close(change("joint_blocks.0.x_block.mlp.fc1.weight"), product("0.ff.net.0.proj"), **close)
    text = "context_block.adaLN_modulation.1.weight"
    torch.testing.assert_close(change(f"joint_blocks.0.{text}"), product("0.norm1_context.linear"), **close)
    torch.testing.assert_close(change(f"joint_blocks.1.{text}"), product("1.norm1_context.linear").roll(32, dims=0), **close)
    files.save(tmp_path / "a.safetensors", adapter, networks)
    again = files.read(Weights.open(tmp_path / "a.safetensors"), networks)
    assert again.matched == adapter.matched == 6
    assert sum(isinstance(delta, Rows) for own in again.deltas["network"].values() for delta in own) == 4


def test_stable_diffusion_3_by_the_authors_names() -> None:
    networks: Networks = {"network": MMDiT(MMDIT)}
    name = "joint_blocks.0.x_block.attn.qkv"
    up, down = torch.randn(96, 2), torch.randn(2, 32)
    for front in ("lora_unet_" + name.replace(".", "_"), f"diffusion_model.{name}"):
        tensors = {f"{front}.lora_up.weight": up, f"{front}.lora_down.weight": down}
        assert files.read(Weights.open(tensors), networks).deltas["network"].keys() == {f"{name}.weight"}


def test_norms_and_biases_of_lycoris_and_peft() -> None:
    networks = models.empty(SD15)
    norm, linear = "lora_unet_down_blocks_1_resnets_0_norm1", "unet.down_blocks.1.resnets.0.time_emb_proj"
    tensors = {f"{norm}.w_norm": torch.randn(8), f"{norm}.b_norm": torch.randn(8)}
    tensors |= {f"{linear}.lora_A.weight": torch.randn(2, 32), f"{linear}.lora_B.weight": torch.randn(16, 2)}
    tensors |= {f"{linear}.lora_B.bias": torch.randn(16), f"{linear}.alpha": torch.tensor(1.0)}
    unet = files.read(Weights.open(tensors), networks).deltas["network"]
    path = "down_blocks.1.resnets.0"
    assert unet.keys() == {f"{path}.{leaf}" for leaf in ("norm1.weight", "norm1.bias", "time_emb_proj.weight", "time_emb_proj.bias")}
    bias = unet[f"{path}.time_emb_proj.bias"][0]
    assert not isinstance(bias, Rows | Decomposed)
    torch.testing.assert_close(bias.change(torch.zeros(16)), tensors[f"{linear}.lora_B.bias"] / 2)
