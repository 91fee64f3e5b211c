"""A running llama.cpp server is compared with the steered model, and another one is refused."""

from __future__ import annotations

import json
import shutil
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xllamacpp", reason="xllamacpp, which holds llama.cpp, is not here")

import ss_lens
from benchmarks.llama_cpp import Server
from ss_lens import ContrastiveDataset, RotateBy, Store, UserError
from tests.fitting import fitted_on
from tests.gguf_files import write_tiny_gguf

PROMPTS = ["w9 w70 w33", "w100 w8"]


class Made:
    """A tiny model, its export of each kind, and its file for the server."""

    def __init__(self, folder: Path, tiny: Path, data: ContrastiveDataset) -> None:
        self.folder, self.model = folder, ss_lens.load_model(tiny)
        self.gguf = write_tiny_gguf(tiny, "llama", folder / "base.gguf", tokenizer=True)
        calibration = fitted_on(self.model, data, Store(folder / "store"))
        for kind in ("dial", "gguf-lora", "lora"):
            ss_lens.export(
                calibration,
                self.model,
                RotateBy if kind == "dial" else RotateBy(135),
                kind=kind,  # type: ignore[arg-type]
                out=folder / kind,
                prompts=PROMPTS,
                max_new_tokens=6,
            )

    def serve(self, *adapters: str) -> Server:
        files = [self.folder / name for name in adapters]
        return Server(self.gguf, files, context=64, threads=1, exact=True)


@pytest.fixture(scope="module")
def made(
    tiny_folders: dict[str, Path],
    tiny_data: ContrastiveDataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Made:
    return Made(tmp_path_factory.mktemp("server"), tiny_folders["llama"], tiny_data)


@pytest.fixture(scope="module")
def dial(made: Made) -> Server:
    return made.serve("dial/turn_p.gguf", "dial/turn_j.gguf")


def test_a_server_with_a_dial_is_the_steered_model_at_every_angle(made: Made, dial: Server) -> None:
    table = ss_lens.verify_server(made.folder / "dial", made.model, dial.address, prompts=PROMPTS)
    assert table["operator"].tolist() == [str(RotateBy(a)) for a in (45, 135, 225, 315)]
    assert (table["n_prompts"] == 2).all()
    assert (table["equal_answers"] == 2).all()
    assert (table["same_top"] == 1).all()
    assert table["max_difference"].max() < 1e-3
    assert table["kl_max"].max() < 1e-6


def test_a_server_of_one_angle_is_the_steered_model(made: Made) -> None:
    server, folder = made.serve("gguf-lora/adapter.gguf"), made.folder / "gguf-lora"
    table = ss_lens.verify_server(folder, made.model, server.address, prompts=PROMPTS)
    assert table["same_top"].tolist() == [1]


def refused(match: str, made: Made, kind: str, address: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        ss_lens.verify_server(made.folder / kind, made.model, address, prompts=PROMPTS)
    assert "\n" not in str(caught.value)


def test_a_server_with_other_numbers_is_refused(made: Made) -> None:
    """The negative control: adapters of the right names, each in the place of the other."""
    swapped = made.folder / "swapped"
    swapped.mkdir()
    for here, there in (("turn_p", "turn_j"), ("turn_j", "turn_p")):
        shutil.copy(made.folder / "dial" / f"{there}.gguf", swapped / f"{here}.gguf")
    server = made.serve("swapped/turn_p.gguf", "swapped/turn_j.gguf")
    refused("is not the steered model.*allowed are 2%", made, "dial", server.address)


def test_adapters_in_another_order_are_named(made: Made) -> None:
    server = made.serve("dial/turn_j.gguf", "dial/turn_p.gguf")
    refused(
        "has the adapters turn_j.gguf, turn_p.gguf, expected turn_p.gguf, turn_j.gguf in this",
        made, "dial", server.address,
    )  # fmt: skip


def test_an_export_for_other_programs_is_refused(made: Made, dial: Server) -> None:
    refused("is of kind 'lora' without a GGUF file, expected one", made, "lora", dial.address)


def test_what_is_no_server_is_one_line(made: Made) -> None:
    refused("no llama.cpp server answers at http://127.0.0.1:9", made, "dial", "http://127.0.0.1:9")
    refused("no llama.cpp server answers at nowhere", made, "dial", "nowhere")


class _Stranger(BaseHTTPRequestHandler):
    """A server that answers each path with what it is given for it."""

    told: dict[str, Any]

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        said = self.told[self.path]
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _answer

    def log_message(self, *args: object) -> None:
        pass


class _NoHttp(socketserver.BaseRequestHandler):
    """A server of another protocol."""

    def handle(self) -> None:
        self.request.recv(1024)
        self.request.sendall(b"220 mail.example ESMTP\r\n")


@contextmanager
def listening(server: socketserver.TCPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


ADAPTERS = [{"path": "a/turn_p.gguf"}, {"path": "a/turn_j.gguf"}]
OUTSIDE = {"id": 10**6, "logprob": 0.0}
PLACE = {"id": 5, "top_logprobs": [{"id": 5, "logprob": -0.1}]}


@pytest.mark.parametrize(
    ("adapters", "completion", "message"),
    [
        ({"object": "list"}, None, r"/lora-adapters answers .* expected what llama.cpp's server"),
        (["turn_p.gguf"], None, r"/lora-adapters answers .* check the address"),
        (None, None, "/lora-adapters answers None"),
        (b"<html>", None, "no llama.cpp server answers at"),
        (b"\xff\xfe\x00", None, "no llama.cpp server answers at"),
        ([], None, "has the adapters none, expected turn_p.gguf, turn_j.gguf"),
        (ADAPTERS, [], r"/completion answers .* expected what llama.cpp's server tells"),
        (ADAPTERS, {"completion_probabilities": [{"id": 5}]}, "/completion answers"),
        (ADAPTERS, {"completion_probabilities": [{**PLACE, "top_logprobs": []}]}, "/completion an"),
        (ADAPTERS, {"completion_probabilities": [{**PLACE, "id": None}]}, "/completion answers"),
        (ADAPTERS, {"content": "hello"}, "sent no token under RotateBy"),
        (
            ADAPTERS,
            {"completion_probabilities": [{**PLACE, "top_logprobs": [OUTSIDE]}]},
            "serves another model: it has a token 1000000, the vocabulary of",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_a_server_of_something_else_is_one_line(
    adapters: Any, completion: Any, message: str, made: Made
) -> None:
    told = {"/lora-adapters": adapters, "/completion": completion}
    handler = type("Stranger", (_Stranger,), {"told": told})
    with listening(HTTPServer(("127.0.0.1", 0), handler)) as address:
        refused(message, made, "dial", address)


def test_a_server_that_does_not_speak_http_is_one_line(made: Made) -> None:
    with listening(socketserver.TCPServer(("127.0.0.1", 0), _NoHttp)) as address:
        refused(
            "no llama.cpp server answers at .*expected one that was started", made, "dial", address
        )


def test_a_slash_behind_the_address_is_left_out(made: Made, dial: Server) -> None:
    address = f"{dial.address}/"
    table = ss_lens.verify_server(made.folder / "dial", made.model, address, prompts=PROMPTS[:1])
    assert (table["same_top"] == 1).all()
