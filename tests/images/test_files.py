"""Picture files: what they carry survives, other programs read it, and no half file or overwritten file is left."""

from __future__ import annotations

import errno
import json
import os
import struct
import threading
import zlib
from xml.etree import ElementTree

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unnoise.errors import ArgumentError, DataError, FileError
from unnoise.images import provenance
from unnoise.images.files import Embedded, read, save, user_comment
from unnoise.images.metadata import to_parameters

IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
FORMATS = ["png", "jpg", "jpeg", "webp"]
TRICKY = [
    "a red apple",
    "commas, colons: and; 'quotes' \"too\"",
    "line one\nline two\r\n\nNegative prompt: of the prompt itself",
    "빨간 사과, 나무 위",
    "🍎 é \t </unnoise:settings> & <b>",
    "a NUL \0 and a lone \udcff",
    "  spaces at both ends  ",
    "",
]


def settings(prompt: str = "a red apple") -> dict:
    return {
        "model": "emoji",
        "prompt": prompt,
        "negative_prompt": prompt,
        "sampler": "euler",
        "spacing": None,
        "num_inference_steps": 20,
        "seed": 7,
    } | {
        "guidance_scale": 0.1 + 0.2,
        "width": 64,
        "height": 64,
    }


@pytest.fixture
def image():
    return Image.effect_noise((64, 64), 80).convert("RGB")


def xmp(path) -> bytes:
    with Image.open(path) as image:
        value = image.info["xmp"]
    return value if isinstance(value, bytes) else value.encode()


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Type and content of each chunk, checksums verified: a reader that shares no code with Pillow."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + body)
        chunks.append((kind, body))
        at += 12 + size
    return chunks


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("prompt", TRICKY)
def test_settings_survive_in_every_format(tmp_path, image, prompt, ending):
    path = save(image, tmp_path / f"a.{ending}", settings(prompt))
    assert read(path) == Embedded(settings(prompt), exact=True)


@pytest.mark.parametrize("prompt, kind", [("a red apple", b"tEXt"), ("é", b"tEXt"), ("빨간 사과", b"iTXt")])
def test_png_chunks_as_the_standard_draws_them(tmp_path, image, prompt, kind):
    chunks = png_chunks(save(image, tmp_path / "a.png", settings(prompt)).read_bytes())
    (body,) = [body for name, body in chunks if name == kind and body.startswith(b"parameters\0")]
    text = body.removeprefix(b"parameters\0")
    text = text.decode("latin-1") if kind == b"tEXt" else text.removeprefix(b"\0\0\0\0").decode()
    assert text == to_parameters(settings(prompt))
    (packet,) = [body for name, body in chunks if body.startswith(b"XML:com.adobe.xmp\0")]
    assert packet.startswith(b"XML:com.adobe.xmp\0\0\0\0\0<?xpacket")  # uncompressed, as XMP part 3 asks
    assert [name for name, _ in chunks].index(b"IDAT") > max(i for i, (name, _) in enumerate(chunks) if name in (b"tEXt", b"iTXt"))


@pytest.mark.parametrize("prompt", ["apple, red", "빨간 사과"])
def test_pillow_and_so_the_webui_read_the_png_text(tmp_path, image, prompt):
    with Image.open(save(image, tmp_path / "a.png", settings(prompt))) as opened:
        assert opened.info["parameters"] == to_parameters(settings(prompt))
        assert json.loads(opened.info["unnoise"]) == settings(prompt)


@pytest.mark.parametrize("ending", ["jpg", "webp"])
@pytest.mark.parametrize("prompt", ["apple, red", "빨간 사과"])
def test_user_comment_is_unicode_with_the_big_end_first(tmp_path, image, prompt, ending):
    with Image.open(save(image, tmp_path / f"a.{ending}", settings(prompt))) as opened:
        comment = opened.getexif().get_ifd(0x8769)[0x9286]
    assert comment == b"UNICODE\0" + to_parameters(settings(prompt)).encode("utf-16-be")
    assert user_comment(comment) == to_parameters(settings(prompt))


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("record", [None, settings("빨간 <사과> & 'x'")])
def test_every_file_says_that_a_model_made_it(tmp_path, image, ending, record):
    packet = xmp(save(image, tmp_path / f"a.{ending}", record))
    assert provenance.is_marked(packet)
    root = ElementTree.fromstring(packet.decode().split("?>", 1)[1].rsplit("<?xpacket", 1)[0])
    assert [element.text for element in root.iter(IPTC)] == [TRAINED]


@pytest.mark.parametrize("ending", FORMATS)
def test_without_settings_the_file_holds_none(tmp_path, image, ending):
    path = save(image, tmp_path / f"a.{ending}", None)
    assert b"parameters" not in path.read_bytes() and b"UNICODE" not in path.read_bytes()
    with pytest.raises(FileError, match="holds no settings"):
        read(path)


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_lossless_formats_keep_the_pixels(tmp_path, image, ending):
    with Image.open(save(image, tmp_path / f"a.{ending}", settings())) as opened:
        assert opened.convert("RGB").tobytes() == image.tobytes()


def test_alpha_is_dropped_for_jpeg_only(tmp_path, image):
    image.putalpha(128)
    for name, mode in (("a.jpg", "RGB"), ("a.png", "RGBA")):
        with Image.open(save(image, tmp_path / name)) as opened:
            assert opened.mode == mode


def test_nothing_is_overwritten(tmp_path, image):
    (tmp_path / "a.png").write_text("mine")
    assert [save(image, tmp_path / "a.png").name for _ in range(3)] == ["a-2.png", "a-3.png", "a-4.png"]
    assert (tmp_path / "a.png").read_text() == "mine"


def test_writers_at_once_get_a_file_each(tmp_path, image):
    paths: list = []
    threads = [threading.Thread(target=lambda: paths.append(save(image, tmp_path / "a.png"))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 12 and sorted(paths) == sorted(tmp_path.iterdir())


def test_without_hard_links_it_renames(tmp_path, image, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert [save(image, tmp_path / "a.png").name for _ in range(2)] == ["a.png", "a-2.png"]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_stopped_write_leaves_nothing(tmp_path, image, monkeypatch, stop):
    def fail(descriptor):
        raise stop

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((FileError, KeyboardInterrupt)):
        save(image, tmp_path / "a.png", settings())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="no permission bits")
def test_a_file_is_as_readable_as_any_new_file(tmp_path, image):
    (tmp_path / "plain").write_text("")
    assert save(image, tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_unknown_ending_is_refused(tmp_path, image):
    with pytest.raises(ArgumentError, match=r"'\.gif', expected one of \.png"):
        save(image, tmp_path / "a.gif")


@pytest.mark.parametrize("ending", ["jpg", "webp", "png"])
def test_settings_too_long_for_the_format(tmp_path, image, ending):
    long = settings("a very long prompt " * 5000)
    if ending == "jpg":
        with pytest.raises(FileError, match="do not fit into a JPEG"):
            save(image, tmp_path / "a.jpg", long)
        assert list(tmp_path.iterdir()) == []
    else:
        assert read(save(image, tmp_path / f"a.{ending}", long)).settings == long


def test_the_text_of_other_programs_is_read(tmp_path, image):
    info = PngInfo()
    info.add_text("parameters", "a cat\nSteps: 6, Sampler: Euler, Seed: 5")
    image.save(tmp_path / "theirs.png", pnginfo=info)
    assert read(tmp_path / "theirs.png") == Embedded(
        {"prompt": "a cat", "negative_prompt": "", "num_inference_steps": 6, "sampler": "euler", "seed": 5}, exact=False
    )


@pytest.mark.parametrize(
    "value",
    [
        b"UNICODE\0" + "고양이, cat".encode("utf-16-be"),
        b"UNICODE\0\xff\xfe" + "고양이, cat".encode("utf-16-le"),
        b"\0" * 8 + "고양이, cat".encode(),
        "고양이, cat",
    ],
)
def test_user_comments_of_several_writers(value):
    assert user_comment(value) == "고양이, cat"


def test_a_latin_comment_with_the_small_end_first():
    assert user_comment(b"UNICODE\0" + "a cat".encode("utf-16-le")) == "a cat"


@pytest.mark.parametrize("record", ["{", "[1]", '"text"', "null"])
def test_a_damaged_record_is_named(tmp_path, image, record):
    info = PngInfo()
    info.add_text("unnoise", record)
    image.save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(FileError, match="damaged"):
        read(tmp_path / "a.png")


def test_unreadable_files_are_named(tmp_path, image):
    (tmp_path / "text.png").write_text("no picture")
    data = save(image, tmp_path / "whole.png", settings()).read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    for name in ("none.png", "text.png", "half.png", "."):
        with pytest.raises(FileError):
            read(tmp_path / name)


def test_no_prefix_of_a_file_gives_a_traceback(tmp_path, image):
    data = save(image.resize((4, 4)), tmp_path / "whole.png", settings()).read_bytes()
    for size in range(0, len(data), 7):
        (tmp_path / "cut.png").write_bytes(data[:size])
        try:
            assert read(tmp_path / "cut.png").settings == settings()
        except (FileError, DataError):
            pass
