"""Calibrations on the Hub: what is uploaded comes back, and what fails is one line."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from ss_lens import Calibration, ContrastiveDataset, Store, UserError
from ss_lens.calibration.dictionary import Dictionary
from tests.fitting import fitted_on

REPO, TOKEN = "somebody/refusal-tiny", "hf_a_token_that_is_secret"
Commits = dict[str, dict[str, bytes]]


class _Hub(http.server.BaseHTTPRequestHandler):
    """The Hub's API on repositories that are kept in memory, as far as the client asks it."""

    protocol_version = "HTTP/1.1"
    repositories: dict[str, Commits]
    """Name → commit → path → content; the last commit is that of ``main``."""
    asked: list[tuple[str, str]]
    private: dict[str, bool]
    status: int | None = None
    """What everything is answered with, where it is set."""

    def _answer(self, status: int, body: object = None, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def _address(self) -> str:
        return f"http://{self.headers['Host']}"

    def _refuse(self, code: str, status: int = 404) -> None:
        self._answer(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def _begun(self) -> tuple[str, bytes] | None:
        """The path and the body, unless everything is refused."""
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while (size := int(self.rfile.readline(), 16)) > 0:
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.asked.append((self.command, path))
        if self.status is not None:
            self._answer(self.status, {"error": "refused"})
            return None
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and self.command == "POST":
            self._answer(401, {"error": "Invalid username or password."})
            return None
        return path, body

    def do_POST(self) -> None:
        begun = self._begun()
        if begun is None:
            return
        path, body = begun
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            exists = name in self.repositories
            self.repositories.setdefault(name, {"0" * 40: {".gitattributes": b"*.bin lfs\n"}})
            if not exists:
                private = given.get("private") or given.get("visibility") == "private"
                self.private[name] = bool(private)
            self._answer(409 if exists else 200, {"url": f"{self._address}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        else:
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            commits = self.repositories[name]
            lines = [json.loads(line) for line in body.splitlines()]
            new = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            commit = hashlib.sha1(body).hexdigest()
            commits[commit] = {**[*commits.values()][-1], **new}
            url = f"{self._address}/{name}/commit/{commit}"
            told = {"commitUrl": url, "commitOid": commit, "success": True}
            self._answer(200, told)

    def do_GET(self) -> None:
        begun = self._begun()
        if begun is None:
            return
        path = begun[0]
        if path.startswith("/api/models/"):
            owner, name, *rest = path.removeprefix("/api/models/").split("/")
            commits = self.repositories.get(f"{owner}/{name}")
            if commits is None:
                return self._refuse("RepoNotFound", 401)
            commit = self._commit(commits, rest[1] if len(rest) > 1 else "main")
            if commit is None:
                return self._refuse("RevisionNotFound")
            files = commits[commit]
            if rest[:1] == ["tree"]:
                return self._answer(200, [_entry(p, content) for p, content in files.items()])
            siblings = [{"rfilename": p} for p in files]
            return self._answer(200, {"id": f"{owner}/{name}", "sha": commit, "siblings": siblings})
        owner, name, _, revision, *inside = path.strip("/").split("/")
        commits = self.repositories[f"{owner}/{name}"]
        commit = self._commit(commits, revision)
        assert commit is not None
        content = commits[commit][("/").join(inside)]
        oid = hashlib.sha1(content).hexdigest()
        return self._answer(200, content, ETag=f'"{oid}"', X_Repo_Commit=commit)

    do_HEAD = do_GET

    @staticmethod
    def _commit(commits: Commits, revision: str) -> str | None:
        return [*commits][-1] if revision == "main" else revision if revision in commits else None

    def log_message(self, *args: object) -> None:
        pass


def _entry(path: str, content: bytes) -> dict[str, object]:
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": oid}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    """A Hub of our own, a cache that is empty, and a token."""
    fields: dict[str, Any] = {"repositories": {}, "asked": [], "private": {}}
    handler = type("Handler", (_Hub,), fields)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    use_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path)
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str, folder: Path) -> None:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no_token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def calibration(
    tiny_llama: TransformerBridge, tiny_data: ContrastiveDataset, store: Store
) -> Calibration:
    return fitted_on(tiny_llama, tiny_data, store)


def test_what_is_pushed_comes_back_bit_for_bit(
    hub: type[_Hub], calibration: Calibration, tiny_llama: TransformerBridge
) -> None:
    address = calibration.push_to_hub(REPO)
    (_, (commit, files)) = hub.repositories[REPO].items()
    assert address.endswith(f"/{REPO}/commit/{commit}")
    assert {*files} == {
        *("calibration.json", "calibration.safetensors", "README.md", ".gitattributes"),
    }
    back = Calibration.from_hub(REPO)
    assert torch.equal(back.plane.basis, calibration.plane.basis)
    assert torch.equal(back.directions, calibration.directions)
    assert back.selected_sites == calibration.selected_sites
    published = calibration.published()
    assert (back.recipe, back.spec) == (published.recipe, published.spec)
    assert replace(back.spec, model=calibration.spec.model) == calibration.spec
    back.check_fits(tiny_llama)
    assert not hub.private[REPO]


def test_what_is_pushed_names_no_folder_of_this_machine(
    hub: type[_Hub], calibration: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Neither the model's, the dataset's, nor that of a dictionary of features."""
    base = tmp_path_factory.getbasetemp()
    spec = replace(calibration.spec, dataset_name=str(base / "prompts.jsonl"))
    named = Dictionary(base / "sae.safetensors", "L1.ln1_out", feature=3)
    recipe = replace(calibration.recipe, direction=named)
    local = replace(calibration, spec=spec, recipe=recipe)
    assert str(base) in repr(local)
    local.push_to_hub(REPO)
    files = [*hub.repositories[REPO].values()][-1]
    assert [name for name, content in files.items() if str(base).encode() in content] == []
    back = Calibration.from_hub(REPO)
    assert back.spec.model.name == Path(calibration.spec.model.name).name
    assert back.spec.dataset_name == "prompts.jsonl"
    assert back.recipe.direction == replace(named, path="sae.safetensors")
    assert back.spec.model.fingerprint == calibration.spec.model.fingerprint


def test_the_card_holds_the_numbers_of_the_figures(
    hub: type[_Hub], calibration: Calibration
) -> None:
    calibration.push_to_hub(REPO)
    text = [*hub.repositories[REPO].values()][-1]["README.md"].decode()
    assert text.startswith('---\nlibrary_name: "ss_lens"\ntags: ["selective-steering", ')
    assert "base_model" not in text  # a folder of this disk is none
    assert f'Calibration.from_hub("{REPO}")'.replace('"', "'") in text
    rows = [line for line in text.splitlines() if line.startswith("| L")]
    assert len(rows) == len(calibration.sites)
    for row, length, score in zip(
        rows, calibration.candidates.lengths, calibration.direction.scores, strict=True
    ):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1] == f"{float(length):.4g}"
        assert cells[2] == ("" if score.isnan() else f"{float(score):.4g}")
    assert "strengthening of refusal" in text
    assert calibration.spec.model.fingerprint is not None
    assert calibration.spec.model.fingerprint[:16] in text


def test_a_second_push_is_a_commit_and_the_first_can_be_had(
    hub: type[_Hub],
    calibration: Calibration,
    tiny_llama: TransformerBridge,
    tiny_data: ContrastiveDataset,
    store: Store,
) -> None:
    first = calibration.push_to_hub(REPO).rpartition("/")[2]
    fitted_on(tiny_llama, tiny_data, store, "ln1_out").push_to_hub(REPO)
    old, new = Calibration.from_hub(REPO, revision=first), Calibration.from_hub(REPO)
    assert old.selected_sites == calibration.selected_sites
    assert {site.stream for site in new.selected_sites} == {"ln1_out"}


def test_a_repository_is_private_where_asked(hub: type[_Hub], calibration: Calibration) -> None:
    calibration.push_to_hub(REPO, private=True)
    assert hub.private == {REPO: True}


def test_offline_it_comes_from_the_cache(
    hub: type[_Hub], calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration.push_to_hub(REPO)
    Calibration.from_hub(REPO)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    back = Calibration.from_hub(REPO)
    assert torch.equal(back.plane.basis, calibration.plane.basis)
    assert len(hub.asked) == asked
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, expected a network"):
        calibration.push_to_hub(REPO)


def refused(match: str, action: Any) -> None:
    """One line, without the token."""
    with pytest.raises(UserError, match=match) as caught:
        action()
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_repository_of_something_else_is_left_alone(
    hub: type[_Hub], calibration: Calibration
) -> None:
    held = {"0" * 40: {"README.md": b"mine", "model.safetensors": b"weights"}}
    hub.repositories[REPO] = {key: dict(files) for key, files in held.items()}
    refused(
        r"holds 'model.safetensors', expected a new one.*choose another name",
        lambda: calibration.push_to_hub(REPO),
    )
    assert hub.repositories[REPO] == held
    refused(r"holds no calibration.json, expected", lambda: Calibration.from_hub(REPO))


def test_without_a_token_that_may_write_it_is_one_line(
    hub: type[_Hub], calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    for token in (None, "hf_another"):
        monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
        refused(
            r"cannot be pushed to .*access was denied \(401\).*`hf auth login`, or set HF_TOKEN",
            lambda: calibration.push_to_hub(REPO),
        )
    assert not hub.repositories
    monkeypatch.setattr(hub, "status", 403)
    refused(r"access was denied \(403\)", lambda: calibration.push_to_hub(REPO))


def test_what_is_not_there_is_one_line(hub: type[_Hub], calibration: Calibration) -> None:
    refused(
        "fetched from 'somebody/other': there is no such repository, or it is private",
        lambda: Calibration.from_hub("somebody/other"),
    )
    calibration.push_to_hub(REPO)
    refused(
        "it has no such revision. Name a branch",
        lambda: Calibration.from_hub(REPO, revision="nowhere"),
    )


@pytest.mark.parametrize("name", ["refusal", "a/b/c", "/tmp/x", "", "a/..", 3, None])
@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_id_is_refused_before_the_network(
    name: Any, hub: type[_Hub], calibration: Calibration
) -> None:
    for action in (lambda: calibration.push_to_hub(name), lambda: Calibration.from_hub(name)):
        refused("repo_id", action)
    assert not hub.asked


def test_a_hub_that_cannot_be_reached_is_one_line(
    calibration: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    use_hub(monkeypatch, f"http://127.0.0.1:{port}", tmp_path)
    refused("cannot be pushed to.*Connect to the Hub", lambda: calibration.push_to_hub(REPO))
    refused(
        "the Hub cannot be reached, and it is not in the cache",
        lambda: Calibration.from_hub(REPO),
    )


def test_a_damaged_download_is_one_line(hub: type[_Hub], calibration: Calibration) -> None:
    calibration.push_to_hub(REPO)
    files = [*hub.repositories[REPO].values()][-1]
    files["calibration.safetensors"] = files["calibration.safetensors"][:-20]
    refused("calibration.safetensors is missing or damaged", lambda: Calibration.from_hub(REPO))
