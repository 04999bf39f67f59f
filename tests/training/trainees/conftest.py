from __future__ import annotations

from pathlib import Path

import pytest

from training import models


@pytest.fixture(scope="session")
def fresh(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> models.Models:
    """A family's tiny model, a copy of its own at every call."""
    return models.models(shared, tmp_path_factory)
