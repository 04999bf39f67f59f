"""Hub ids through a small hub of our own on 127.0.0.1: what is asked for, what is resumed, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from unnoise.checkpoints.store import hub
from unnoise.checkpoints.store.hub import Wanted, chosen
from unnoise.checkpoints.store.weights import Weights
from unnoise.errors import FileError, UnknownName

COMMIT = "0123456789abcdef0123456789abcdef01234567"
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": [None, None],
    "requires_safety_checker": False,
}
SMALL = {
    "model_index.json": json.dumps(INDEX).encode(),
    "unet/config.json": b'{"n": 0}',
    "text_encoder/config.json": b'{"n": 1}',
    "tokenizer/vocab.json": b'{"n": 2}',
    "tokenizer/merges.txt": b"#",
    "tokenizer/tokenizer_config.json": b'{"n": 3}',
    "scheduler/scheduler_config.json": b'{"n": 4}',
    "feature_extractor/preprocessor_config.json": b'{"n": 5}',
}
OTHER = ["README.md", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt", "unet/diffusion_pytorch_model.bin", "text_encoder/flax_model.msgpack"]
OTHER += [
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "safety_checker/model.safetensors",
    "unet/openvino_model.xml",
    "vae_1_0/config.json",
]


def weights(value: float) -> bytes:
    return save({"w": torch.full((50_000,), value)})


MODEL = {
    **SMALL,
    **dict.fromkeys(OTHER, b"must not be fetched"),
    "unet/diffusion_pytorch_model.safetensors": weights(1.0),
    "unet/diffusion_pytorch_model.fp16.safetensors": weights(2.0),
    "text_encoder/model.safetensors": weights(3.0),
}
FULL = [*SMALL, "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]


class Hub(ThreadingHTTPServer):
    """Answers as the hub does: the listing, HEAD, GET with Range. What it was asked stands in `requests`."""

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests = files, []
        self.served: dict[str, bytes] = {}  # in place of the true bytes
        self.cut: dict[str, list[int]] = {}  # name: after how many bytes each next answer breaks off
        self.status: dict[str, int] = {}  # an error in place of an answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def listing(self) -> dict:
        return {"id": "a/b", "sha": COMMIT, "siblings": [self.sibling(name, data) for name, data in self.files.items()]}

    def sibling(self, name: str, data: bytes) -> dict:
        row = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
        return {**row, "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}} if large(name) else row


def large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".ckpt"))


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        self.server.requests.append((self.command, path, self.headers.get("Range"), self.headers.get("Authorization")))
        name = path.partition("/resolve/")[2].partition("/")[2]
        if status := self.server.status.get(name or path.split("/")[2]):
            headers = {401: {"X-Error-Code": "RepoNotFound"}, 403: {"X-Error-Code": "GatedRepo"}, 404: {"X-Error-Code": "RevisionNotFound"}}
            self.send(status, b"", headers.get(status, {}))
        elif path.startswith("/api/models/"):
            self.send(200, json.dumps(self.server.listing()).encode(), {"Content-Type": "application/json"})
        elif name in self.server.files:
            self.file(name, body)
        else:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def file(self, name: str, body: bool) -> None:
        true = self.server.files[name]
        data = self.server.served.get(name, true)
        begin = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        etag = hashlib.sha256(true).hexdigest() if large(name) else hashlib.sha1(true).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(data)), "Accept-Ranges": "bytes"}
        cuts = self.server.cut.get(name)
        self.send(206 if begin else 200, data[begin:], headers, body, cuts.pop(0) if cuts and body else None)

    def send(self, status: int, data: bytes, headers: dict[str, str], body: bool = True, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    made = Hub(dict(MODEL))
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", made.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # what is kept of a broken download is whole chunks, of 10 MB otherwise
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits a second before it resumes
    yield made
    made.shutdown()
    made.server_close()


def inside(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_only_what_is_needed_is_fetched_and_a_second_load_asks_nobody(server):
    folder = hub.resolve("a/b")
    assert inside(folder) == sorted(FULL)
    assert float(Weights.open(folder / "unet/diffusion_pytorch_model.safetensors").read("w")[0]) == 1.0
    fetched = {path.partition("/resolve/")[2].partition("/")[2] for method, path, *_ in server.requests if method == "GET"} - {""}
    assert fetched == set(FULL)
    server.requests.clear()
    assert hub.resolve("a/b") == folder and server.requests == []
    assert hub.resolve("a/b", revision=COMMIT) == folder and server.requests == []


def test_the_precision_that_was_asked_for_where_there_is_one(server):
    folder = hub.resolve("a/b", variant="fp16")
    expected = [*SMALL, "unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.safetensors"]
    assert inside(folder) == sorted(expected)
    server.requests.clear()
    assert hub.resolve("a/b", variant="fp16") == folder and server.requests == []
    hub.resolve("a/b")  # the full precision was not there
    assert inside(folder) == sorted({*expected, *FULL})


def test_some_components(server):
    folder = hub.resolve("a/b", components=["unet", "scheduler"])
    assert inside(folder) == ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json", FULL[-2]]
    server.requests.clear()
    assert hub.resolve("a/b", components=["unet", "scheduler"]) == folder and server.requests == []
    with pytest.raises(UnknownName, match=r"unknown component 'unnet': did you mean 'unet'"):
        hub.resolve("a/b", components=["unnet"])


def test_one_file(server):
    path = hub.resolve("a/b:v1-5-pruned.safetensors")
    assert path.name == "v1-5-pruned.safetensors" and path.read_bytes() == b"must not be fetched"
    assert inside(path.parent) == ["v1-5-pruned.safetensors"]
    server.requests.clear()
    assert hub.resolve("a/b:v1-5-pruned.safetensors") == path and server.requests == []
    assert hub.resolve("a/b:unet/diffusion_pytorch_model.safetensors").parent.name == "unet"
    with pytest.raises(UnknownName, match=r"unknown file of a/b 'v1-5-prunned.safetensors': did you mean 'v1-5-pruned.safetensors'"):
        hub.resolve("a/b:v1-5-prunned.safetensors")


UNET = "unet/diffusion_pytorch_model.safetensors"


def test_a_download_that_breaks_off_is_resumed_by_range(server):
    server.cut[UNET] = [70_000, 50_000]
    folder = hub.resolve("a/b", components=["unet"])
    assert (folder / UNET).read_bytes() == MODEL[UNET]
    ranges = [asked for method, path, asked, _ in server.requests if method == "GET" and path.endswith(UNET)]
    assert ranges == [None, "bytes=70000-", "bytes=120000-"]


def test_the_next_call_goes_on_where_the_last_one_ended(server):
    """The first breaks off and the server then says it is down: what has arrived stays."""
    server.cut[UNET] = [70_000, 0, 0, 0, 0, 0, 0]
    with pytest.raises(FileError, match=r"cannot fetch the model a/b .*what has arrived is kept, try again, or name a local folder"):
        hub.resolve("a/b", components=["unet"])
    server.cut.clear()
    server.requests.clear()
    folder = hub.resolve("a/b", components=["unet"])
    assert (folder / UNET).read_bytes() == MODEL[UNET]
    assert [asked for method, path, asked, _ in server.requests if method == "GET" and path.endswith(UNET)] == ["bytes=70000-"]
    assert not list(folder.parents[1].glob("blobs/*.unnoise"))


def test_a_damaged_download_is_refused_and_removed(server):
    damaged = bytearray(MODEL[UNET])
    damaged[-1] ^= 1
    server.served[UNET] = bytes(damaged)
    with pytest.raises(FileError, match=r"a/b: unet/diffusion_pytorch_model.safetensors arrived damaged \(sha256 .*removed: try again"):
        hub.resolve("a/b", components=["unet"])
    cache = [path for path in Path(os.path.commonpath([hub._folder(Wanted("a/b", None, "main", None, None))])).rglob("*") if path.is_file()]
    assert bytes(damaged) not in [path.read_bytes() for path in cache]
    server.served.clear()
    assert (hub.resolve("a/b", components=["unet"]) / UNET).read_bytes() == MODEL[UNET]


ANSWERS = {
    401: r"the hub has no model a/b: check the name, or set HF_TOKEN if it is private",
    403: r"the model a/b is gated: accept its terms on its page, then set HF_TOKEN",
    404: r"the model a/b has no revision 'main'",
    500: r"cannot fetch the model a/b \(.*500.*\): what has arrived is kept, try again",
}


@pytest.mark.parametrize("status", ANSWERS)
def test_what_the_hub_says_is_one_line(status, server):
    server.status["models"] = status
    with pytest.raises(FileError, match=ANSWERS[status]) as refused:
        hub.resolve("a/b")
    assert "\n" not in str(refused.value)


def test_nobody_answers(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(FileError, match=r"cannot fetch the model a/b \(.*refused.*\): .*try again, or name a local folder"):
        hub.resolve("a/b")


def test_offline(server, monkeypatch):
    from huggingface_hub import constants

    hub.resolve("a/b", variant="fp16")
    server.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert inside(hub.resolve("a/b"))  # the half precision is better than none
    with pytest.raises(
        FileError, match=r"the model c/d is not whole in the cache and HF_HUB_OFFLINE is set: unset it once, or name a local"
    ):
        hub.resolve("c/d")
    assert server.requests == []


def test_a_cache_with_a_hole_is_filled(server):
    folder = hub.resolve("a/b")
    (folder / UNET).unlink()
    server.requests.clear()
    assert (hub.resolve("a/b") / UNET).read_bytes() == MODEL[UNET]
    assert not any(method == "GET" and path.endswith(".safetensors") for method, path, *_ in server.requests)  # its blob was still there


def test_a_full_disk(server, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(FileError, match="cannot keep model a/b in the cache: No space left on device"):
        hub.resolve("a/b")


def test_the_variables_are_huggingface_hubs_own(server, tmp_path):
    """In a fresh process: where, whom, as whom; the library is imported only when an id is resolved."""
    code = "import sys; from unnoise.checkpoints.store import hub; assert 'huggingface_hub' not in sys.modules; print(hub.resolve('a/b'))"
    env = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server.url, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env})
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.strip()) == tmp_path / "home/hub/models--a--b/snapshots" / COMMIT
    assert {token for _, path, _, token in server.requests if "a/b" in path} == {"Bearer hf_test"}


# Which files, of a listing alone


def files(*names: str, index: dict | None = None, variant: str | None = None, strict: bool = False) -> list[str]:
    return chosen(names, index, Wanted("a/b", None, "main", variant, None), strict)


def shards(stem: str, n: int) -> list[str]:
    return [f"{stem}-{i + 1:05}-of-{n:05}.safetensors" for i in range(n)]


T5 = {"text_encoder_3": ["transformers", "T5EncoderModel"]}
FORMS = {
    "shards": ([*shards("model", 2), "model.safetensors.index.json"], None, 3),
    "shards of a precision, new names": ([*shards("model.fp16", 2), "model.safetensors.index.fp16.json"], "fp16", 3),
    "shards of a precision, older names": (
        ["model-00001-of-00002.fp16.safetensors", "model-00002-of-00002.fp16.safetensors", "model.fp16.safetensors.index.json"],
        "fp16",
        3,
    ),
    "one file": (["model.safetensors"], None, 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_shards_and_precisions(form):
    names, variant, count = FORMS[form]
    both = [f"text_encoder_3/{name}" for name in {*names, "model.safetensors", "config.json", "pytorch_model.bin.index.json"}]
    got = files(*both, index=T5, variant=variant)
    wanted = names if form != "shards" else ["model.safetensors"]  # a whole file is as good as its shards
    assert got == ["model_index.json", "text_encoder_3/config.json", *sorted(f"text_encoder_3/{name}" for name in wanted)]
    alone = files(*(f"text_encoder_3/{name}" for name in names), index=T5, variant=variant)
    assert len(alone) == 1 + count


def test_shards_that_are_not_all_there():
    with pytest.raises(FileError, match=r"a/b: its text_encoder_3 has no safetensors weights"):
        files(*(f"text_encoder_3/{name}" for name in shards("model", 3)[:2]), index=T5)


def test_a_repository_with_half_precision_alone():
    only = ["unet/config.json", "unet/diffusion_pytorch_model.fp16.safetensors"]
    index = {"unet": ["diffusers", "UNet2DConditionModel"]}
    assert files(*only, index=index) == ["model_index.json", *only]
    with pytest.raises(FileError, match="precision"):
        files(*only, index=index, strict=True)


SINGLE = {
    "controlnet": (["config.json", "diffusion_pytorch_model.safetensors", "x.bin"], ["config.json", "diffusion_pytorch_model.safetensors"]),
    "lora": (["README.md", "pytorch_lora_weights.safetensors", "image.png"], ["pytorch_lora_weights.safetensors"]),
    "a single file beside a config": (["config.json", "sd_turbo.safetensors"], ["sd_turbo.safetensors"]),
}


@pytest.mark.parametrize("case", SINGLE)
def test_repositories_without_an_index(case):
    names, expected = SINGLE[case]
    assert files(*names) == expected


def test_what_cannot_be_chosen():
    with pytest.raises(FileError, match=r"a/b has 2 files of weights: name one, as a/b:a.safetensors"):
        files("a.safetensors", "b.safetensors")
    with pytest.raises(
        FileError, match=r"a/b has no safetensors weights .*it has sd.ckpt, a pickle: download it and run `unnoise convert`"
    ):
        files("sd.ckpt", "README.md")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b", True),
        ("stabilityai/sd-x_1.0", True),
        ("a/b:c/d.safetensors", True),
        ("a", False),
        ("a/b/c", False),
        ("/a/b", False),
        ("a/b:c.ckpt", False),
    ],
)
def test_what_reads_as_an_id(name, expected):
    assert hub.is_id(name) is expected
    if not expected:
        with pytest.raises(FileError, match=r"got the hub id .*expected owner/name"):
            hub.resolve(name)
