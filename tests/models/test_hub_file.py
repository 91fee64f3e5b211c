"""A pinned file from the Hub: the first choice, gone on with where it was cut off, and verified."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
from transformers import LlamaForCausalLM

from ss_lens.core.errors import Unavailable
from ss_lens.core.files import sha256_of_file
from ss_lens.models import fetching
from ss_lens.models.delivery import hub
from ss_lens.models.sources import MODELS, HubFile, PinnedFile, RegisteredModel, Wheel


class _Hub(http.server.BaseHTTPRequestHandler):
    """A Hub with one file; it waits before an answer, and hangs up after so many bytes of it."""

    data: bytes
    asked: list[tuple[str, str | None]]
    cut: int | None = None
    wait = 0.0

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Range"]))
        time.sleep(self.wait)
        begin = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
        self.send_response(206)
        self.send_header("Content-Length", str(len(self.data) - begin))
        last = len(self.data) - 1
        self.send_header("Content-Range", f"bytes {begin}-{last}/{len(self.data)}")
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # the client has given up
            self.wfile.write(self.data[begin:][: self.cut])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served(
    tiny_gguf: tuple[Path, LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> Iterator[type[_Hub]]:
    """The registered model ``tiny`` on a Hub of our own."""
    data = tiny_gguf[0].read_bytes()
    handler = type("Handler", (_Hub,), {"data": data, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(
        huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    file = PinnedFile("tiny.gguf", hashlib.sha256(data).hexdigest(), len(data), kept="gguf")
    source = HubFile("somebody/tiny-GGUF", "tiny-q4.gguf")
    monkeypatch.setitem(MODELS, "tiny", RegisteredModel("tiny", (source,), file))
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "home" / "models"


def test_a_file_comes_from_the_hub_and_is_verified(served: type[_Hub], kept: Path) -> None:
    folder = fetching.fetch("tiny")
    assert sha256_of_file(folder / "model.gguf") == hashlib.sha256(served.data).hexdigest()
    assert served.asked == [("/somebody/tiny-GGUF/resolve/main/tiny-q4.gguf", "bytes=0-")]
    assert [p.name for p in kept.iterdir() if p.suffix != ".lock"] == [folder.name]


def test_a_download_that_was_cut_off_goes_on(
    served: type[_Hub], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(served, "cut", 1000)
        with pytest.raises(Unavailable, match=r"somebody/tiny-GGUF could not be fetched from"):
            fetching.fetch("tiny")
    folder = fetching.fetch("tiny")
    assert served.asked[1][1] == "bytes=1000-"
    assert sha256_of_file(folder / "model.gguf") == hashlib.sha256(served.data).hexdigest()


def test_a_file_of_another_size_is_not_downloaded(
    served: type[_Hub], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "data", served.data + b"x")
    with pytest.raises(Unavailable, match=r"the file there has \d+ bytes, not \d+\. Connect to"):
        fetching.fetch("tiny")
    assert not [*kept.glob("*.partial")]


def test_a_file_of_another_digest_is_not_kept(
    served: type[_Hub], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "data", served.data[:-1] + b"?")
    with pytest.raises(Unavailable, match=r"has SHA-256 .*, expected") as caught:
        fetching.fetch("tiny")
    assert "\n" not in str(caught.value)
    assert [p.name for p in kept.iterdir() if p.suffix != ".lock"] == []


def test_a_hub_that_takes_too_long_is_given_up(
    served: type[_Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    monkeypatch.setattr(served, "wait", 2.0)
    start = time.monotonic()
    with pytest.raises(Unavailable, match=r"could not be fetched from the Hub: (timed out|no ans)"):
        fetching.fetch("tiny")
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("recorded", [True, False])
def test_a_fetch_that_was_killed_after_its_download_says_where_it_came_from(
    served: type[_Hub], kept: Path, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    """Not from the last source, which was never asked."""
    entry = MODELS["tiny"]
    wheel = Wheel("tiny-wheel==9.9", "tiny_wheel/tiny.gguf")
    monkeypatch.setitem(MODELS, "tiny", replace(entry, sources=(*entry.sources, wheel)))

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "_describe", killed)
        with pytest.raises(KeyboardInterrupt):
            fetching.fetch("tiny")
    if not recorded:  # as by a version that did not write it down
        (kept / "tiny.gguf.source").unlink()
    folder = fetching.fetch("tiny")
    assert len(served.asked) == 1
    said = json.loads((folder / "source.json").read_text())["source"]
    assert said == ("somebody/tiny-GGUF" if recorded else fetching._UNRECORDED)
    assert [p.name for p in kept.iterdir() if p.suffix != ".lock"] == [folder.name]
