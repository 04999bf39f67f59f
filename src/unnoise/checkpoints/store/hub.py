"""Models by their id on the Hugging Face hub, through huggingface_hub, its cache and its variables: HF_HOME, HF_HUB_CACHE, HF_TOKEN, ...

A model that is whole in the cache is used as it is, without asking anyone. Else the hub lists its files, and only those that are needed are
fetched: of each component its configs and one safetensors of one precision; never pickles, other frameworks, or a second precision.

huggingface_hub (2.4) resumes a download that breaks while it runs, by Range, but starts anew in the next process and compares sizes only.
Large files are therefore fetched by its `http_get` into the cache's own place under a lasting name, resumed from what is there, and get
their name, which is their sha256, only once they have it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from unnoise.checkpoints.store.write import STEMS, sha256
from unnoise.errors import FileError, UnknownName

ID = re.compile(r"([\w.-]+/[\w.-]+?)(?::(.+\.(?:safetensors|json)))?")
WEIGHTS = re.compile(r"(?P<stem>.+?)(?:\.(?P<variant>\w+))?(?:-\d{5}-of-(?P<shards>\d{5}))?(?:\.(?P<late>\w+))?\.safetensors")
INDEX = re.compile(r"(?P<stem>.+?)(?:\.(?P<variant>\w+))?\.safetensors\.index(?:\.(?P<late>\w+))?\.json")
TEXTS = re.compile(r"(config|\w+_config|vocab|merges|tokenizer|special_tokens_map|added_tokens|spiece|generation_config)\.(json|txt|model)")
BARE = ("Scheduler", "Tokenizer", "Processor", "FeatureExtractor", "TokenizerFast")  # classes without weights, by how their names end


@dataclass(frozen=True)
class Wanted:
    """What of a repository: one file, or a model's components in one precision."""

    id: str
    file: str | None
    revision: str
    variant: str | None
    components: Collection[str] | None


def is_id(name: str) -> bool:
    """Whether it reads as "owner/name" or "owner/name:folder/file.safetensors"."""
    return ID.fullmatch(name) is not None


def resolve(name: str, *, revision: str | None = None, variant: str | None = None, components: Collection[str] | None = None) -> Path:
    """The folder or the file of a hub id in the local cache, fetched if it is not there.

    name: "owner/name", or "owner/name:file.safetensors" for one file. revision: a branch, a tag or a commit; a branch in the cache is not
    asked for again. variant: the precision to prefer, "fp16" or "bf16". components: of a diffusers folder only these, such as all but
    text_encoder_3. Raises FileError and UnknownName.
    """
    found = ID.fullmatch(name)
    if not found:
        raise FileError(f"got the hub id {name!r}: expected owner/name or owner/name:file.safetensors")
    wanted = Wanted(found[1], found[2], revision or "main", variant, components)
    with _said(wanted):
        return _cached(wanted) or _asked(wanted)


def chosen(files: Collection[str], index: Mapping[str, Any] | None, wanted: Wanted, strict: bool = False) -> list[str]:
    """The files to have, of those that there are. index: the model_index.json. strict: nothing but the precision that was asked for.

    Raises FileError where weights are missing.
    """
    prefer = [wanted.variant, None] if wanted.variant else [None]
    if not strict:
        prefer = [*prefer, "fp16", "bf16"]
    if index is None:
        return _single(files, prefer, wanted)
    result = ["model_index.json"]
    for name, kind in _components(index, wanted).items():
        inside = {PurePosixPath(file).name for file in files if PurePosixPath(file).parent == PurePosixPath(name)}
        parts = [file for file in inside if TEXTS.fullmatch(file)]
        if not kind.endswith(BARE):
            parts += _weights(inside, prefer, f"{wanted.id}: its {name}")
        result += sorted(f"{name}/{part}" for part in parts)
    return result


def _components(index: Mapping[str, Any], wanted: Wanted) -> dict[str, str]:
    """Name and class; [null, null] stands for one that was left out."""
    known = {name: row[1] for name, row in index.items() if isinstance(row, list) and len(row) == 2 and row[1]}
    for name in wanted.components or ():
        if name not in known:
            raise UnknownName("component", name, known)
    return {name: kind for name, kind in known.items() if wanted.components is None or name in wanted.components}


def _weights(files: Collection[str], prefer: Iterable[str | None], what: str) -> list[str]:
    """One precision: a file, or its shards and their index."""
    sets: dict[str | None, dict[str, str]] = {}
    for file in files:
        found = WEIGHTS.fullmatch(file) or INDEX.fullmatch(file)
        if found and found["stem"] in STEMS:
            sets.setdefault(found["variant"] or found["late"], {})[file] = found.groupdict().get("shards") or ""
    for variant in prefer:
        parts = sets.get(variant, {})
        whole = sorted(file for file, shards in parts.items() if not shards and file.endswith(".safetensors"))
        if whole:
            return whole[:1]
        if (
            parts
            and len(shards := [file for file, count in parts.items() if count]) == max(int(count or 0) for count in parts.values()) > 0
        ):
            return sorted([*shards, *(file for file in parts if file.endswith(".json"))])
    pickled = sorted(file for file in files if file.endswith((".bin", ".ckpt", ".pt", ".pth")))
    hint = f"it has {pickled[0]}, a pickle: download it and run `unnoise convert`" if pickled else "expected a safetensors file"
    raise FileError(f"{what} has no safetensors weights of the precision that is wanted: {hint}")


def _single(files: Collection[str], prefer: Iterable[str | None], wanted: Wanted) -> list[str]:
    """A repository without model_index.json: one network with its config, or one file."""
    root = {file for file in files if "/" not in file}
    if "config.json" in root and any((WEIGHTS.fullmatch(f) or INDEX.fullmatch(f) or [""])[0].startswith(STEMS) for f in root):
        return ["config.json", *_weights(root, prefer, wanted.id)]
    alone = sorted(file for file in root if file.endswith(".safetensors"))
    if len(alone) == 1:
        return alone
    if alone:
        raise FileError(f"{wanted.id} has {len(alone)} files of weights: name one, as {wanted.id}:{alone[0]}")
    return _weights(root, prefer, wanted.id)  # says what it has instead


def _cached(wanted: Wanted, strict: bool = True) -> Path | None:
    """What is whole in the cache; no request is made. strict: only in the precision that was asked for, or the full one."""
    folder = _snapshot(wanted)
    if folder is None:
        return None
    if wanted.file:
        return folder / wanted.file if (folder / wanted.file).is_file() else None
    try:
        return _place(folder, chosen(_files(folder), _index(folder), wanted, strict))
    except FileError:
        return None


def _place(folder: Path, files: list[str]) -> Path:
    return folder if len(files) > 1 else folder / files[0]


def _snapshot(wanted: Wanted) -> Path | None:
    """The folder of a revision in the cache: refs/BRANCH holds a commit, snapshots/COMMIT the files."""
    ref = _folder(wanted) / "refs" / wanted.revision
    folder = _folder(wanted) / "snapshots" / (ref.read_text().strip() if ref.is_file() else wanted.revision)
    return folder if folder.is_dir() else None


def _folder(wanted: Wanted) -> Path:
    """The repository's place in the cache, as huggingface_hub lays it out."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{wanted.id.replace('/', '--')}"


def _files(folder: Path) -> list[str]:
    """Those that are there; a link without its target is none."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _index(folder: Path) -> dict[str, Any] | None:
    path = folder / "model_index.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError:
        raise FileError(f"{path} is not JSON: remove it and try again") from None


def _asked(wanted: Wanted) -> Path:
    """One request lists the files with sizes and checksums. Where nobody answers, another precision in the cache is better than none."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(wanted.id, revision=wanted.revision, files_metadata=True)
    except Exception:
        if kept := _cached(wanted, strict=False):
            return kept
        raise
    return _fetched(wanted, info)


def _fetched(wanted: Wanted, info: Any) -> Path:
    from huggingface_hub import hf_hub_download

    listed = {file.rfilename: file for file in info.siblings or []}
    index = None
    if "model_index.json" in listed and not wanted.file:
        index = json.loads(Path(hf_hub_download(wanted.id, "model_index.json", revision=info.sha)).read_text(encoding="utf-8"))
    if wanted.file and wanted.file not in listed:
        raise UnknownName(f"file of {wanted.id}", wanted.file, [name for name in listed if name.endswith(".safetensors")])
    files = [wanted.file] if wanted.file else chosen(listed, index, wanted)
    for name in files:
        if listed[name].lfs:
            _large(wanted, info.sha, name, listed[name])
    for name in files:
        hf_hub_download(wanted.id, name, revision=info.sha)
    _remember(wanted, info.sha)
    return _place(_folder(wanted) / "snapshots" / info.sha, files)


def _large(wanted: Wanted, commit: str, name: str, listed: Any) -> None:
    """A file of Git LFS into the cache's blobs, where it is called by its sha256. hf_hub_download finds it there and links it."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    expected, size = listed.lfs.sha256, listed.lfs.size
    blob = _folder(wanted) / "blobs" / expected
    lock = _folder(wanted).parent / ".locks" / _folder(wanted).name / f"{expected}.lock"  # huggingface_hub's own: both wait for each other
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        partial = blob.with_name(f"{expected}.unnoise")
        with partial.open("ab") as file:
            have = file.seek(0, os.SEEK_END)
            if have < size:
                url = hf_hub_url(wanted.id, name, revision=commit)
                http_get(url, file, resume_size=have, headers=build_hf_headers(), expected_size=size, displayed_filename=name)
        _verify(partial, expected, f"{wanted.id}: {name}")
        os.replace(partial, blob)


def _verify(path: Path, expected: str, what: str) -> None:
    """The sha256 is the server's, or the file goes. Raises FileError."""
    found = sha256(path)
    if found != expected:
        path.unlink()
        raise FileError(f"{what} arrived damaged (sha256 {found[:12]}, expected {expected[:12]}) and was removed: try again")


def _remember(wanted: Wanted, commit: str) -> None:
    """Which commit a branch was: hf_hub_download notes it for names only, and it was given the commit."""
    if wanted.revision != commit:
        ref = _folder(wanted) / "refs" / wanted.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)


@contextmanager
def _said(wanted: Wanted) -> Iterator[None]:
    """huggingface_hub's errors, each as one line. Raises FileError."""
    from huggingface_hub import errors

    what = f"the model {wanted.id}"
    sentences: dict[type[BaseException], Callable[[], str]] = {
        errors.GatedRepoError: lambda: f"{what} is gated: accept its terms on its page, then set HF_TOKEN",
        errors.RepositoryNotFoundError: lambda: f"the hub has no {what[4:]}: check the name, or set HF_TOKEN if it is private",
        errors.RevisionNotFoundError: lambda: f"{what} has no revision {wanted.revision!r}",
        errors.OfflineModeIsEnabled: lambda: (
            f"{what} is not whole in the cache and HF_HUB_OFFLINE is set: unset it once, or name a local folder"
        ),
    }
    try:
        yield
    except FileError:
        raise
    except Exception as error:
        for kind, sentence in sentences.items():
            if isinstance(error, kind):
                raise FileError(sentence()) from None
        if not (isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "requests", "urllib3"))):
            raise
        if isinstance(error, OSError) and error.errno:  # the disk's own word
            raise FileError(f"cannot keep {what[4:]} in the cache: {os.strerror(error.errno)}") from None
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise FileError(f"cannot fetch {what} ({reason}): what has arrived is kept, try again, or name a local folder") from None
