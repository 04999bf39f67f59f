"""Writes src/unnoise/data/emoji_words.tsv: what each emoji is called, in English and Korean, by Unicode CLDR.

    npm pack emojibase-data@17.0.0 && tar xf emojibase-data-17.0.0.tgz
    python scripts/emoji_words.py package

The npm package `emojibase-data` holds CLDR's short names and keywords (Unicode licence). A row has the code points as Twemoji's files are
named, the kind of thing (CLDR's subgroup, such as animal-mammal), and the keywords of each language, the short name first.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from unnoise.data import emoji

TABLE = Path(__file__).resolve().parent.parent / "src" / "unnoise" / "data" / "emoji_words.tsv"
LETTERS = {"en": r"[a-z][a-z' -]{1,24}", "ko": r"[가-힣a-z0-9][가-힣a-z0-9 ]{0,14}"}


def main() -> None:
    folder = Path(sys.argv[1])
    subgroups = json.loads((folder / "meta" / "groups.json").read_text(encoding="utf-8"))["subgroups"]
    rows = {language: _rows(folder / language / "data.json") for language in LETTERS}
    lines = ["code\tkind\ten\tko"]
    for entry in emoji.entries():
        english, korean = (rows[language].get(entry.code, {}) for language in LETTERS)
        kind = subgroups.get(str(english.get("subgroup")), "none")
        lines.append("\t".join([entry.code, kind, _words(english, "en"), _words(korean, "ko")]))
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _rows(file: Path) -> dict[str, dict]:
    """Emojibase's rows by the code points that Twemoji's files have."""
    rows = json.loads(file.read_text(encoding="utf-8"))
    return {"-".join(part for part in row["hexcode"].lower().split("-") if part != "fe0f"): row for row in rows}


def _words(row: dict, language: str) -> str:
    """The short name and the keywords that are words, joined by semicolons; a country's two letters are none."""
    words = [str(word).lower().replace("’", "'").replace(": ", " ").strip() for word in (row.get("label", ""), *row.get("tags", ()))]
    kept = [word for word in words if re.fullmatch(LETTERS[language], word) and not re.fullmatch(r"[a-z]{1,2}", word)]
    return ";".join(dict.fromkeys(kept))


if __name__ == "__main__":
    main()
