"""A griffe extension: docstrings are shown as the plain text that they are, and a field is documented by the comment behind it."""

from __future__ import annotations

import re
from typing import Any

from griffe import Attribute, Docstring, Extension, Object

BEHIND = re.compile(r"\s#\s(?!noqa|type:|pyright:)(.+)$")


class PlainText(Extension):
    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Keep Markdown from reading `<tag>`, `*` and `[x][y]` in a docstring as its own."""
        if obj.docstring:
            obj.docstring.value = "\n".join(map(escaped, obj.docstring.value.split("\n")))

    def on_attribute(self, *, attr: Attribute, **_: Any) -> None:
        """Take the comment behind the first or last line of an attribute that has no docstring: shapes and units are written there."""
        if attr.docstring or not attr.lineno or not attr.endlineno or isinstance(attr.filepath, list):
            return
        lines = attr.lines_collection[attr.filepath][attr.lineno - 1 : attr.endlineno]
        found = [match[1] for line in dict.fromkeys([lines[0], lines[-1]]) if (match := BEHIND.search(line))]
        if found:
            attr.docstring = Docstring(escaped(" ".join(found)), lineno=attr.lineno, parent=attr)


def escaped(line: str) -> str:
    """A line with `<`, `*` and `[` escaped; an indented line and what stands between backticks are code and stay."""
    if line.startswith("    "):
        return line
    parts = line.split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*").replace("[", "\\[") for part in parts[::2]]
    return "`".join(parts)
