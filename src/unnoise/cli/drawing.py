"""A request answered by a loaded model, with a bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from unnoise.cli.sources import Source
from unnoise.errors import ArgumentError
from unnoise.pipeline.request import Request

if TYPE_CHECKING:
    from unnoise.pipeline.model import Model
    from unnoise.pipeline.stages import Result

Show = Callable[[str, int, int | None], None]


def draw(model: Model, source: Source, request: Request, show: Show) -> Result:
    """Return the pictures, each with a record that names the model and its files as they were typed.

    Leaving by Ctrl-C leaves the loop, so at most one step is lost.
    """
    state = None
    for state in model.answer(request):
        show("sampling", state.step, state.steps)
    if state is None:
        raise ArgumentError("got a request that takes no step")
    result = state.result()
    return replace(result, metadata=[{**record, **source.record()} for record in result.metadata])


def load(source: Source, show: Show) -> Model:
    """Load a model. Raises UnknownName, ArgumentError or FileError."""
    show("loading", 0, None)
    return source.load()


def evidence(model: Model) -> list[str]:
    """Return how the model's family is known, as one line; none for a model that unnoise saved."""
    from unnoise.checkpoints.native import SAVED

    lines = [line for line in model.evidence if line != SAVED]
    return [f"{model.spec.name}: {'; '.join(lines)}"] if lines else []
