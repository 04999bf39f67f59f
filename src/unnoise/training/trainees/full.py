"""Full fine-tuning: all weights of a model's network, and of its text encoders where they are named too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unnoise.errors import UnknownName
from unnoise.pipeline.model import Model
from unnoise.training import texts
from unnoise.training.trainee import Trainee, Values, denoiser, holding, trained


def full(model: Model, places: Sequence[str] = ("network",), *, layout: str | None = None) -> Trainee:
    """Train all weights of the networks at these places ("network", "text_encoder", ...), in place; its other weights are frozen.

    Parameters are named "place.name". `save` writes the whole model, in the `layout` that `Model.save` takes. Raises UnknownName for
    a place that the model lacks, ArgumentError for a model in half precision.
    """
    chosen = {place: network for place, network in model.networks.items() if place in places}
    if missing := [place for place in places if place not in chosen]:
        raise UnknownName("network", missing[0], model.networks)
    parameters = trained(model, ((f"{place}.{name}", p) for place, network in chosen.items() for name, p in network.named_parameters()))
    for network in chosen.values():
        network.train()

    def save(path: Path, values: Values | None = None) -> None:
        with holding(parameters, values):
            model.save(path, layout)

    return Trainee(model, denoiser(model), parameters, save, texts.encoder(model))
