"""Files of DDPM, IDDPM, ADM, consistency models, DiT, EDM and score_sde: told from their keys, and written back as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from networks import golden_pixels
from unnoise.checkpoints import keys, recognise
from unnoise.checkpoints.keys import Layout
from unnoise.checkpoints.layouts import adm, consistency, ddpm, dit, edm, numbered, score_sde
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError, UnknownName
from unnoise.families.papers import PUBLISHED
from unnoise.families.spec import ModelSpec
from unnoise.families.table import FAMILIES
from unnoise.networks.classifier import Classifier, ClassifierConfig
from unnoise.networks.dit import DiTConfig
from unnoise.networks.unet import UNetConfig

FIXTURES = [
    ("ddpm/unet", ""),
    ("adm/iddpm", ""),
    ("adm/unet", "unet."),
    ("adm/superres", ""),
    ("consistency/unet", ""),
    ("dit/dit_patch2", ""),
    ("dit/dit_patch4", ""),
    *((f"edm/{name}", "") for name in ("ddpmpp", "ddpmpp_vp", "ncsnpp", "dhariwal")),
    *((f"score_sde/{name}", "") for name in ("ddpm", "ddpmpp", "ncsnpp")),
]
CONSTANTS = ("resample_filter", "sigmas", "pos_embed")  # what files hold beside weights


@pytest.mark.parametrize(("fixture", "prefix"), FIXTURES)
def test_what_was_read_is_written_back_to_the_last_bit(shared: Path, fixture: str, prefix: str) -> None:
    part = golden_pixels.read(shared / "golden" / fixture, prefix).part
    written = keys.write(part.layout, part.load().state_dict())
    for name, tensor in written.items():
        theirs = part.weights.read(name)
        assert (tensor.dtype, tensor.shape) == (theirs.dtype, theirs.shape), name
        assert torch.equal(tensor, theirs), name
    assert [name for name in part.weights if name not in written and not name.endswith(CONSTANTS)] == []


def layout(row: ModelSpec) -> tuple[Layout, str]:
    """Of a published model, and what its authors put before every key."""
    config: Any = row.network
    if row.family in ("adm", "iddpm"):
        return numbered.unet(config, "qkv head d" if row.name in adm.NEW_ORDER else "head qkv d"), ""
    if row.family == "edm":
        return (edm.dhariwal if row.network.kind == "unet" else edm.song)(config, row.size), "model."
    whose = {
        "ddpm": (ddpm.unet, "module."),
        "consistency": (consistency.unet, ""),
        "dit": (dit.dit, ""),
        "score-sde": (score_sde.ncsnpp, "module."),
    }
    of, prefix = whose[row.family]
    return of(config), prefix


def published_file(row: ModelSpec) -> dict[str, Tensor]:
    """Its names and shapes, without memory."""
    table, prefix = layout(row)
    tensors = keys.write(table, row.build("meta")["network"].state_dict())
    if isinstance(dit := row.network, DiTConfig):
        tensors["pos_embed"] = torch.empty(1, (row.size // 8 // dit.patch) ** 2, dit.width, device="meta")
    if row.name == "edm-baseline-iddpm":
        tensors["u"] = torch.empty(1001, device="meta")
    return {prefix + name: tensor for name, tensor in tensors.items()}


PIXELS = [row for row in FAMILIES.values() if row.family in ("ddpm", "iddpm", "adm", "consistency", "dit", "edm", "score-sde")]


@pytest.mark.parametrize("row", PIXELS, ids=lambda row: row.name)
def test_a_published_model_is_recognised_with_all_that_its_file_does_not_say(row: ModelSpec) -> None:
    asked = {"file": {"family": row.name}} if row.name in ("edm-baseline-vp", "edm-baseline-ve") else {}
    found = recognise.single_file(Weights.open(published_file(row)), asked)
    assert found.spec == row
    found.parts["network"].check()


def test_every_published_model_of_pixels_has_a_row() -> None:
    families = {row.family for row in PIXELS}
    networks = {name for name, model in PUBLISHED.items() if model.family in families and not isinstance(model.network, ClassifierConfig)}
    assert networks <= {row.name for row in PIXELS}


CLASSIFIERS = [name for name, model in PUBLISHED.items() if isinstance(model.network, ClassifierConfig)]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_published_classifier_is_recognised(name: str) -> None:
    config = PUBLISHED[name].network
    assert isinstance(config, ClassifierConfig)
    with torch.device("meta"):
        file = keys.write(adm.classifier(config), Classifier(config).state_dict())
    part = adm.classifier_part(Weights.open(file), {})
    assert part is not None
    assert part.config == config
    assert recognise.RECOGNISERS and all(one(Weights.open(file), {}) is None for one in recognise.RECOGNISERS)  # it draws nothing


@pytest.mark.parametrize(
    ("fixture", "prefix", "said"), [("adm/unet", "classifier.", {"head_width": 16}), ("adm/classifier_adaptive", "", {"side": 8})]
)
def test_a_classifier_is_written_back_to_the_last_bit(shared: Path, fixture: str, prefix: str, said: dict) -> None:
    weights = Weights.open(shared / "golden" / fixture / "weights.safetensors").prefixed(prefix)
    heads = {} if "head_width" in said else {"heads": 2, "head_width": 0}
    part = adm.classifier_part(weights, {**said, **heads})
    assert part is not None
    written = keys.write(part.layout, part.load().state_dict())
    assert written.keys() == set(weights)
    assert all(torch.equal(tensor, weights.read(name)) and tensor.shape == weights.read(name).shape for name, tensor in written.items())


def test_the_newer_order_of_adm_64_is_known_by_its_sizes() -> None:
    """Its README has use_new_attention_order; read in the older order it draws noise."""
    orders = {
        name: recognise.single_file(Weights.open(published_file(FAMILIES[name])), {}).parts["network"].layout.order
        for name in ("adm-64", "adm-128")
    }
    assert orders == {"adm-64": "qkv head d", "adm-128": "head qkv d"}


@pytest.mark.parametrize("case", ["dit_patch2", "dit_patch4"])
def test_the_positions_that_dits_loader_asks_for_are_its_own(shared: Path, case: str) -> None:
    file = golden_pixels.read(shared / "golden/dit" / case)
    side = file.record["hyperparameters"]["input_size"]
    mine, theirs = dit.constants(file.part.config, side)["pos_embed"], file.part.weights.read("pos_embed")
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    assert file.found.spec.size == 8 * side
    assert file.found.spec.null_label == file.part.config.num_classes


def test_edms_form_of_improved_ddpm_has_the_cosine_table() -> None:
    """Its noise levels u (Karras et al. 2022, table 1), which the file holds, from the cleanest: our table at t = 0, 1, ..."""
    steps, u = 1000, [0.0]
    bar = [torch.sin(torch.tensor(0.5 * torch.pi * j / steps / 1.008, dtype=torch.float64)) ** 2 for j in range(steps + 1)]
    for j in range(steps, 0, -1):
        u.append(float(((u[-1] ** 2 + 1) / max(bar[j - 1] / bar[j], 0.001) - 1) ** 0.5))
    schedule, t = FAMILIES["edm-baseline-iddpm"].schedule.build(), torch.arange(steps - 1)
    levels = schedule.sigma(t) / schedule.alpha(t)
    torch.testing.assert_close(levels, torch.tensor(u[1:steps], dtype=torch.float64), rtol=1e-9, atol=0)
    assert torch.equal(schedule.timestep(t), t.double())


@pytest.mark.parametrize("prefix", ["", "module.", "ema."])
def test_wrappers_of_training_are_looked_through(prefix: str) -> None:
    row = FAMILIES["ddpm-cifar"]
    assert isinstance(row.network, UNetConfig)
    file = keys.write(ddpm.unet(row.network), row.build("meta")["network"].state_dict())
    assert recognise.single_file(Weights.open({prefix + name: tensor for name, tensor in file.items()}), {}).spec == row


def test_what_the_caller_says_of_the_heads_holds() -> None:
    file = Weights.open(published_file(FAMILIES["adm-256"]))
    config = recognise.single_file(file, {"network": {"heads": 4, "head_width": 0}}).parts["network"].config
    assert (config.heads, config.head_width) == (4, 0)


@pytest.mark.parametrize("name", ["adm-256", "dit-s-2", "edm-cifar-ve", "score-sde-ncsnpp-cifar", "ddpm-cifar"])
def test_a_lost_and_a_foreign_key_are_named(name: str) -> None:
    file = published_file(FAMILIES[name])
    lost = max(key for key in file if key.endswith(".bias") and "." in key)
    file[f"{lost}.foreign"] = file.pop(lost)
    with pytest.raises(FileError, match=r"1 keys are missing, such as .* 1 keys are unknown") as refused:
        recognise.single_file(Weights.open(file), {}).parts["network"].check()
    assert lost.split(".", 1)[-1] in str(refused.value)


def test_an_unknown_family_is_refused_by_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match="edm-baseline-vp"):
        recognise.single_file(Weights.open(published_file(FAMILIES["edm-cifar"])), {"file": {"family": "edm-baselin-vp"}})
