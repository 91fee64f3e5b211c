"""A dial on llama.cpp's own server: every angle per request, and no angle leaks into another."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import torch
from torch import Tensor

import ss_lens
from ss_lens import ContrastiveDataset, RotateBy
from ss_lens.exports.kinds import DIAL, write
from ss_lens.exports.subject import Base
from ss_lens.exports.verify import subject_of, tokens_for
from tests.exports.conftest import ANGLES, PROMPTS, Readied, Ready, kept_as_gguf, token_ids
from tests.fitting import fitted_on
from tests.gguf_files import write_tiny_gguf

xllamacpp = pytest.importorskip("xllamacpp", reason="xllamacpp, which holds llama.cpp, is not here")

NATS = {"llama": 1e-4, "qwen2": 1e-4, "gemma2": 5e-3, "gemma3": 5e-3}
"""How far a log-probability may be off; Gemma's GELU is read from a table of half precision."""
NEW = 8


class Served:
    """A tiny model and its dial behind a running server."""

    def __init__(
        self, ready: Ready, gguf: Path, adapters: Sequence[Path], tolerance: float
    ) -> None:
        self.ready, self.tolerance = ready, tolerance
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(gguf)
        given = []
        for path in adapters:
            adapter = xllamacpp.CommonAdapterLoraInfo()
            adapter.path, adapter.scale = str(path), 0.0
            given.append(adapter)
        parameters.lora_adapters = given
        parameters.lora_init_without_apply = True
        parameters.port, parameters.n_ctx, parameters.n_parallel = 0, 256, 4
        parameters.n_gpu_layers, parameters.warmup, parameters.verbosity = 0, False, 0
        for threads in (parameters.cpuparams, parameters.cpuparams_batch):
            threads.n_threads = 1
        for cache in ("cache_type_k", "cache_type_v"):
            setattr(parameters, cache, xllamacpp.ggml_type.GGML_TYPE_F32)
        # Its fast attention computes in half precision.
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(parameters)

    def scales(self, angle: float) -> list[dict[str, float]]:
        theta = math.radians(angle)
        return [{"id": i, "scale": s} for i, s in enumerate((math.cos(theta) - 1, math.sin(theta)))]

    def ask(self, ids: list[int], lora: list[dict[str, float]]) -> list[Tensor]:
        """The server's greedy answer, as log-probabilities ``[vocab]`` at each of its tokens."""
        body = {
            **{"prompt": ids, "n_predict": NEW, "temperature": 0, "top_k": 1, "ignore_eos": False},
            **{"n_probs": self.ready.model.cfg.d_vocab, "lora": lora, "cache_prompt": False},
        }
        request = Request(
            f"{self.server.listening_address}/completion",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urlopen(request, timeout=60) as answer:
            told: Any = json.load(answer)
        rows = []
        for place in told["completion_probabilities"]:
            row = torch.full((self.ready.model.cfg.d_vocab,), -math.inf)
            for token in place["top_logprobs"]:
                row[token["id"]] = token["logprob"]
            rows.append(row)
        return rows

    def expected(self, ids: list[int], answer: list[Tensor], angle: float) -> Tensor:
        """Our steered log-probabilities at the same tokens."""
        read = [*ids, *(int(row.argmax()) for row in answer[:-1])]
        logits = self.ready.steered(RotateBy(angle), torch.tensor([read]))[0]
        return logits[len(ids) - 1 :].log_softmax(dim=-1)


def as_llama_cpp_takes_it(name: str, folder: Path, ready: Ready, data: Any) -> Ready:
    """Gemma with the attention that llama.cpp computes: scaled by the head's width, unwindowed."""
    if not name.startswith("gemma"):
        return ready
    changed = shutil.copytree(ready.folder, folder / "model")
    config = json.loads((changed / "config.json").read_text())
    config.update(query_pre_attn_scalar=config["head_dim"], sliding_window=64)
    (changed / "config.json").write_text(json.dumps(config))
    model = ss_lens.load_model(changed)
    calibration = fitted_on(model, data, ss_lens.Store(folder / "store"))
    tokens = tokens_for(model, calibration.spec.chat, PROMPTS, 1)
    subject, _ = subject_of(model, calibration, Base.of(model), RotateBy(90), tokens[0])
    return Ready(changed, model, calibration, subject)


@pytest.fixture(scope="module", params=NATS)
def served(
    request: pytest.FixtureRequest,
    ready: Readied,
    tiny_data: ContrastiveDataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    made = as_llama_cpp_takes_it(request.param, folder, ready(request.param), tiny_data)
    gguf = write_tiny_gguf(made.folder, request.param, folder / "base.gguf", tokenizer=True)
    (folder / "dial").mkdir()
    write("dial", folder / "dial", made.subject, [], torch.float32)
    turns = [folder / "dial" / f"{name}.gguf" for name in DIAL]
    running = Served(made, gguf, turns, NATS[request.param])
    yield running
    del running.server


def test_a_dial_turns_on_one_running_server(served: Served) -> None:
    """At 8 angles: the server's distributions are ours, and what it finds likeliest."""
    agreeing = total = 0
    for ids in (row[0].tolist() for row in token_ids(served.ready)):
        unsteered = served.ask(ids, served.scales(0))[0]
        for angle in ANGLES:
            answer = served.ask(ids, served.scales(angle))
            expected = served.expected(ids, answer, angle)
            got = torch.stack(answer)
            assert (got - expected).abs().max() < served.tolerance
            assert (got[0] - unsteered).abs().max() > 1e-2
            agreeing += int((got.argmax(dim=-1) == expected.argmax(dim=-1)).sum())
            total += len(answer)
    assert total >= 8 * 4
    assert agreeing / total >= 0.98


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_merged_gguf_file_is_the_steered_model(
    architecture: str, ready: Readied, tiny_data: ContrastiveDataset, tmp_path: Path
) -> None:
    """Served without an adapter; its changed weights are in half precision."""
    model = kept_as_gguf(ready(architecture).folder, architecture, tmp_path / "kept")
    calibration = fitted_on(model, tiny_data, ss_lens.Store(tmp_path / "store"))
    out, operator = tmp_path / "out", RotateBy(135)
    ss_lens.export(
        calibration, model, operator, kind="merged", out=out, gguf="f16", prompts=PROMPTS,
        max_new_tokens=2,
    )  # fmt: skip
    made = ready(architecture)._replace(model=model, calibration=calibration)
    served = Served(made, out / "model.gguf", [], 2e-2)
    for ids in (row[0].tolist() for row in token_ids(made)):
        answer = served.ask(ids, [])
        expected = served.expected(ids, answer, 135)
        assert (torch.stack(answer) - expected).abs().max() < served.tolerance


def test_scales_do_not_leak_between_requests_that_are_served_at_once(served: Served) -> None:
    prompts = [row[0].tolist() for row in token_ids(served.ready)]
    asked = [(ids, angle) for angle in ANGLES for ids in prompts]
    alone = [served.ask(ids, served.scales(angle)) for ids, angle in asked]
    with ThreadPoolExecutor(4) as four:
        together = [*four.map(lambda one: served.ask(one[0], served.scales(one[1])), asked)]
    for first, second in zip(alone, together, strict=True):
        difference = torch.stack(first) - torch.stack(second)
        assert difference.abs().max() < served.tolerance
