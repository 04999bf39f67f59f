"""ModelSpec: configs by place, told apart by kind in JSON, each in a place that it fits; and the header of the first format."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from unnoise.checkpoints import native
from unnoise.families.papers import PUBLISHED
from unnoise.families.spec import PLACES, ModelSpec
from unnoise.families.table import FAMILIES
from unnoise.networks.text import CLIPTextConfig
from unnoise.networks.unet import UNetConfig

SD1 = FAMILIES["sd1"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_itself_after_json(name: str) -> None:
    row = FAMILIES[name]
    stored = json.loads(row.model_dump_json())
    assert {place: one["kind"] for place, one in stored["networks"].items()} == {place: one.kind for place, one in row.networks.items()}
    assert ModelSpec.model_validate(stored) == row


def test_configs_stand_in_the_order_of_the_places() -> None:
    networks = dict(reversed(FAMILIES["sd3-medium"].networks.items()))
    assert tuple(ModelSpec(name="other way round", networks=networks).networks) == PLACES
    assert tuple(SD1.with_networks({"autoencoder": None}).with_networks({"autoencoder": SD1.first_stage}).networks) == tuple(SD1.networks)


@pytest.mark.parametrize(
    ("networks", "expected"),
    [
        ({}, "got nothing: expected a network that denoises in the place 'network'"),
        ({"network": {"kind": "unet", "wdiths": [32]}}, "wdiths"),
        ({"network": {"kind": "u-net"}}, "'u-net'"),
        ({"network": {"kind": "unet"}, "decoder": {"kind": "vq"}}, "decoder"),
        ({"network": CLIPTextConfig()}, "got a CLIPTextConfig in the place 'network': expected UNetConfig"),
        ({"network": UNetConfig(), "text_encoder": UNetConfig()}, "got a UNetConfig in the place 'text_encoder'"),
    ],
)
def test_what_does_not_fit_is_refused(networks: dict, expected: str) -> None:
    with pytest.raises(ValidationError) as refused:
        ModelSpec(name="wrong", networks=networks)
    assert expected in str(refused.value)


def test_every_published_config_builds_the_network_of_its_kind() -> None:
    """Two kinds never share a name: JSON could not tell them apart."""
    configs = {type(one) for row in PUBLISHED.values() for one in (row.network, row.autoencoder, *row.texts) if one}
    assert len({config.kind for config in configs}) == len(configs)


# Every field that a spec of format unnoise-1 could have, as its program wrote them
OLD = {"unet": None, "dit": None, "mmdit": None, "ncsnpp": None, "autoencoder": None, "vq": None, "tiny": None}
OLD |= {"text": None, "text_2": None, "text_3": None, "bert": None, "class_tokens": None}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_spec_of_the_first_format_is_read(name: str) -> None:
    row = FAMILIES[name]
    stored = json.loads(row.model_dump_json())
    for place, config in stored.pop("networks").items():
        old = {(place, kind): field for field, (place, kind) in native.FIELDS.items()}[place, config.pop("kind")]
        stored[old] = config
    assert ModelSpec.model_validate_json(native.upgraded(json.dumps({**OLD, **stored}))) == row
    assert ModelSpec.model_validate_json(native.upgraded(json.dumps(stored))) == row  # before a kind of network existed
