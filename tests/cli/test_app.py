"""The table of verbs says what each verb's own help says, and reading it imports none of them."""

from __future__ import annotations

import pytest

from unnoise.cli.app import VERBS, verb


@pytest.mark.parametrize("name", VERBS)
def test_a_verbs_line_is_the_first_sentence_of_its_help(name: str):
    first = " ".join((verb(name).help or "").split()).split(". ")[0].rstrip(".")
    assert VERBS[name][2] == f"{first}."
