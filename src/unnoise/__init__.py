"""unnoise: train, sample, run, fine-tune, serve and measure image diffusion models.

    import unnoise

    model = unnoise.load("emoji")
    model.generate("a red apple", seed=7).images[0].save("apple.png")

A name is imported when it is first used, so that `import unnoise` and `unnoise --help` do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from unnoise.version import __version__ as __version__

if TYPE_CHECKING:
    from unnoise import errors
    from unnoise.diffusion import schedules
    from unnoise.diffusion.sampling import sample
    from unnoise.diffusion.solvers import samplers
    from unnoise.pipeline.classifiers import load_classifier
    from unnoise.pipeline.controls import load_control
    from unnoise.pipeline.inputs import Control
    from unnoise.pipeline.loading import inspect, load, models

__all__ = ["Control", "errors", "inspect", "load", "load_classifier", "load_control", "models", "sample", "samplers", "schedules"]

# public name -> the module that holds it; a name that is itself a module maps to that module
_HOMES = {
    "errors": "unnoise.errors",
    "Control": "unnoise.pipeline.inputs",
    "inspect": "unnoise.pipeline.loading",
    "load": "unnoise.pipeline.loading",
    "load_classifier": "unnoise.pipeline.classifiers",
    "load_control": "unnoise.pipeline.controls",
    "models": "unnoise.pipeline.loading",
    "sample": "unnoise.diffusion.sampling",
    "samplers": "unnoise.diffusion.solvers",
    "schedules": "unnoise.diffusion.schedules",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'unnoise' has no attribute {name!r}{_hint(name)}")
    home = importlib.import_module(_HOMES[name])
    value = home if _HOMES[name].endswith(f".{name}") else getattr(home, name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _hint(name: str) -> str:
    from unnoise.errors import nearest

    near = nearest(name, __all__)
    return f": did you mean {' or '.join(map(repr, near))}?" if near else ""
