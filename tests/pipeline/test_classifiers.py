"""A classifier beside a model: files of guided-diffusion, loaded as people have them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import unnoise
from unnoise.conditioning import Cond
from unnoise.errors import ArgumentError, FileError
from unnoise.pipeline import start
from unnoise.pipeline.inputs import Inputs
from unnoise.pipeline.job import resolve
from unnoise.pipeline.request import Request

GIVEN = {"num_inference_steps": 8, "seed": 3, "height": 16, "width": 16, "output_type": "latent", "sampler": "ddim"}


@pytest.fixture(scope="module")
def files(shared, tmp_path_factory) -> tuple[Path, Path]:
    """ADM's U-Net and its classifier, each in a file of its own as published."""
    weights = load_file(shared / "golden/adm/unet/weights.safetensors")
    folder = tmp_path_factory.mktemp("adm")
    for name in ("unet", "classifier"):
        own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        save_file(own, folder / f"{name}.safetensors")
    return folder / "unet.safetensors", folder / "classifier.safetensors"


@pytest.fixture(scope="module")
def model(files):
    return unnoise.load(files[0], config={"network": {"head_width": 16}})


def test_a_classifier_pulls_towards_its_class(files, model):
    """The stronger, the surer it is of the label in what comes out; at scale 0 it changes no bit."""
    net = unnoise.load_classifier(files[1], config={"head_width": 16})
    plain = model.generate(class_labels=[4], **GIVEN).latents
    assert torch.equal(model.generate(class_labels=[4], classifier=net, classifier_scale=0.0, **GIVEN).latents, plain)
    sure = []
    for scale in (0.0, 2.0, 8.0, 32.0):
        drawn = model.generate(class_labels=[4], classifier=net, classifier_scale=scale, **GIVEN).latents
        with torch.no_grad():
            sure.append(net.network(drawn, torch.zeros(1)).log_softmax(1)[0, 4].item())
    assert all(weak < strong for weak, strong in itertools.pairwise(sure)), sure


def test_what_is_no_classifier_is_refused(files, model):
    with pytest.raises(FileError, match="no classifier of guided-diffusion"):
        unnoise.load_classifier(files[0])
    with pytest.raises(ArgumentError, match="from 0 to 9"):
        model.generate(class_labels=[10], **GIVEN)
    with pytest.raises(ArgumentError, match="class_labels"):
        model.generate(**GIVEN)


def test_a_classifier_asks_for_the_labels_of_the_positive_side(files, model):
    net = unnoise.load_classifier(files[1], config={"head_width": 16})
    encoded = start.encode(model.parts, resolve(Request(class_labels=[4, 7], classifier=net, **GIVEN), model.spec), Inputs())
    (pull,) = start.start(model.parts, encoded).cond.pulls
    assert pull.labels.tolist() == [4, 7] and pull.scale.tolist() == [1.0, 1.0]
    with pytest.raises(ArgumentError, match="classifier is conditioned on labels"):
        start.start(model.parts, replace(encoded, positive=Cond(pooled=torch.zeros(2, 1))))
