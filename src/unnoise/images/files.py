"""Picture files: written whole or not at all, never over another file, with their settings inside.

| format | other programs read | `unnoise generate --from` reads | provenance |
| PNG    | text chunk `parameters` | text chunk `unnoise`: JSON | XMP |
| JPEG, WebP | EXIF UserComment | JSON inside the XMP packet | XMP |
"""

from __future__ import annotations

import io
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unnoise.errors import ArgumentError, FileError
from unnoise.images import FORMATS, metadata, provenance

EXIF, USER_COMMENT, SOFTWARE = 0x8769, 0x9286, 0x0131  # EXIF 2.3 tags
CHUNK = "unnoise"


@dataclass(frozen=True)
class Embedded:
    """What a file says of how it was made. `exact`: our own record, which makes the same pixels again."""

    settings: dict
    exact: bool


def save(image: Image.Image, path: str | os.PathLike, settings: dict | None = None) -> Path:
    """Write the picture and return where: `path`, or `path` with a counter where a file is already there.

    `settings` is one entry of `result.metadata`; None leaves prompt and settings out and keeps the provenance mark.
    Raises ArgumentError for an unknown ending and FileError where the file cannot be written.
    """
    path = Path(path)
    data = encode(image, kind(path), settings)
    try:
        return write_new(path, data)
    except OSError as error:
        raise FileError(f"cannot write {str(path)!r}: {error.strerror or error}; choose another place or make room") from error


def kind(path: Path) -> str:
    """Pillow's name of the format that the ending means."""
    if path.suffix.lower() not in FORMATS:
        raise ArgumentError(f"cannot write {path.name!r}: got the ending {path.suffix!r}, expected one of {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def encode(image: Image.Image, format: str, settings: dict | None) -> bytes:
    """The file's bytes. In memory first: a full disk or an interrupt then costs no half picture."""
    text = writable(metadata.to_parameters(settings)) if settings else ""
    record = json.dumps(settings) if settings else ""  # ASCII, so that a prompt in any language fits a tEXt chunk
    if format == "PNG":
        options: dict = {"pnginfo": chunks(text, record)}
    else:
        lossless = {"quality": 95, "subsampling": 0} if format == "JPEG" else {"lossless": True}
        options = {"exif": exif(text), "xmp": provenance.packet(record), **lossless}
    stream = io.BytesIO()
    try:
        (image.convert("RGB") if format == "JPEG" else image).save(stream, format, **options)
    except ValueError as error:  # JPEG holds at most 64 KiB of EXIF or XMP
        raise FileError(f"the settings do not fit into a {format} file ({error}): write a .png, or leave them out") from error
    return stream.getvalue()


def writable(text: str) -> str:
    """Without NUL, which ends a chunk's text, and without lone surrogates, which no encoding holds; the record has them."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def chunks(text: str, record: str) -> PngInfo:
    """PNG's text chunks. Pillow chooses tEXt where Latin-1 holds the text and iTXt (UTF-8) elsewhere; readers take both."""
    info = PngInfo()
    if text:
        info.add_text("parameters", text)
        info.add_text(CHUNK, record)
    info.add_itxt("XML:com.adobe.xmp", provenance.packet())
    return info


def exif(text: str) -> Image.Exif:
    """EXIF with the text as UserComment: the code `UNICODE`, then UTF-16 with the big end first, as A1111 writes it."""
    tags = Image.Exif()
    tags[SOFTWARE] = "unnoise"
    if text:
        tags[EXIF] = {USER_COMMENT: b"UNICODE\0" + text.encode("utf-16-be")}
    return tags


def write_new(path: Path, data: bytes) -> Path:
    """Write beside the target, then give the whole file its name: a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".unnoise-{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> Path:
    """The first free name. A hard link refuses a name that another process has just taken; renaming would replace its file."""
    for name in numbered(path):
        try:
            os.link(temporary, name)
            return name
        except FileExistsError:
            continue
        except OSError:  # a file system without hard links
            if not name.exists():
                os.replace(temporary, name)
                return name
    raise AssertionError("unreachable: the names do not end")


def numbered(path: Path) -> Iterator[Path]:
    """apple.png, apple-2.png, apple-3.png ..."""
    return itertools.chain([path], (path.with_stem(f"{path.stem}-{i}") for i in itertools.count(2)))


def read(path: str | os.PathLike) -> Embedded:
    """What the picture says of how it was made. Raises FileError where it cannot be read or says nothing."""
    info, comment = load_info(Path(path))
    xmp = info.get("xmp") or b""
    record = info.get(CHUNK) or provenance.settings(xmp if isinstance(xmp, bytes) else xmp.encode())
    text = info.get("parameters") or comment
    if record:
        return Embedded(parse(record, path), exact=True)
    if text:
        return Embedded(metadata.from_parameters(text), exact=False)
    raise FileError(f"{str(path)!r} holds no settings: expected a picture from unnoise or one with an A1111 `parameters` text")


def parse(record: str, path: str | os.PathLike) -> dict:
    """The JSON record as a dict."""
    try:
        settings = json.loads(record)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise FileError(f"the settings in {str(path)!r} are damaged: expected a JSON object, got {record[:40]!r}")
    return settings


def load_info(path: Path) -> tuple[dict, str]:
    """Pillow's info of the whole file (a PNG may have text after its pixels) and the EXIF UserComment."""
    try:
        with Image.open(path) as image:
            image.load()
            return dict(image.info), user_comment(image.getexif().get_ifd(EXIF).get(USER_COMMENT, b""))
    except FileNotFoundError:
        raise FileError(f"no file {str(path)!r}: expected the path of a picture") from None
    except Image.UnidentifiedImageError:
        raise FileError(f"{str(path)!r} is not a picture: expected {', '.join(FORMATS)}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FileError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error


def user_comment(value: bytes | str) -> str:
    """EXIF UserComment: eight bytes that name the character code, then the text."""
    if isinstance(value, str):
        return value
    code, text = value[:8], value[8:]
    if code != b"UNICODE\0":
        return text.decode("utf-8", "replace").strip("\0 ")
    little = text[:2] == b"\xff\xfe" or (text[1:2] == b"\0" and text[:1] != b"\0")  # some writers put the small end first
    return text.decode("utf-16-le" if little else "utf-16-be", "replace").lstrip("\ufeff")
