"""Cond: rows, and the refusal of what has none."""

from __future__ import annotations

import pytest
import torch

from unnoise.conditioning import Cond
from unnoise.errors import ArgumentError


def test_the_number_of_rows():
    assert len(Cond(labels=torch.zeros(3))) == len(Cond(tokens=torch.zeros(3, 4, 5))) == 3


def test_an_empty_condition_has_no_number_of_rows():
    with pytest.raises(ArgumentError, match="a Cond with nothing in it"):
        len(Cond())


def test_what_is_needed_is_given_or_named():
    labels = torch.zeros(3)
    assert Cond(labels=labels).need("labels", "DiT") is labels
    with pytest.raises(ArgumentError, match="this DiT is conditioned on pooled, got none"):
        Cond(labels=labels).need("pooled", "DiT")
