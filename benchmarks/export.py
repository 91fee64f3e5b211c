"""A steered model as files beside ``steer(...)``: how exact, on llama.cpp's server, and how fast.

``python -m benchmarks.export exact --model NAME`` compares PEFT's LoRA and merged weights in plain
transformers. With ``server`` in place of ``exact``, llama.cpp's server is asked with the two
adapters of a dial; with ``speed``, and nothing else on the machine, all of them are timed.
"""

from __future__ import annotations

import argparse
import gc
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

import ss_lens
from benchmarks import llama_cpp
from benchmarks.timing import ROUNDS, Figure, alternating
from ss_lens import Calibration, RotateBy
from ss_lens.core.errors import UserError
from ss_lens.exports.kinds import DIAL, write
from ss_lens.exports.linear_map import Kind
from ss_lens.exports.parity import compare
from ss_lens.exports.plain import logits_of, plain_copy
from ss_lens.exports.subject import Base, Subject
from ss_lens.exports.verify import subject_of
from ss_lens.integrations.llama_cpp import Answer, turned
from ss_lens.models import forward
from ss_lens.models.chat import Tokens, tokenize
from ss_lens.models.load import loaded_from
from ss_lens.models.sources import default_dataset
from ss_lens.scoring.refusal_score import opening_tokens

ANGLES = "45,90,135,180,225,270,315,22.5"
LISTED = 4000
"""Log-probabilities that the server sends for a token; the openings lie far above the last."""
SPEED_ANGLE = 135.0


def calibrated(model: TransformerBridge, arguments: argparse.Namespace) -> Calibration:
    """The calibration that is named, or one made on the model's own dataset."""
    if arguments.calibration is not None:
        calibration = Calibration.load(arguments.calibration)
        calibration.check_fits(model)
        return calibration
    data = ss_lens.load_dataset(default_dataset(arguments.model))
    train = data.split(dev=8, test=32, seed=0).train.head(arguments.per_class)
    acts = ss_lens.capture(model, train, streams=("ln1_out", "ln2_out"))
    return ss_lens.calibrate(acts, rule=arguments.rule)


def prompts_for(model: TransformerBridge, name: str, n: int) -> list[Tokens]:
    """Requests that nothing was fitted on: one harmful, one harmless, and so on."""
    test = ss_lens.load_dataset(default_dataset(name)).split(dev=8, test=32, seed=0).test
    mixed = [p for pair in zip(test.positive, test.negative, strict=True) for p in pair]
    return tokenize(model, mixed[:n])


@contextmanager
def folder_of(kind: Kind, subject: Subject, angle: float, scratch: Path) -> Iterator[Path]:
    """An export's files, without their judgement, as long as they are needed."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        write(kind, Path(name), subject, [RotateBy(angle)], subject.model.cfg.dtype)
        yield Path(name)


def stock(subject: Subject) -> Any:
    """The unsteered model with the attention that a fresh load has; booting makes it eager.

    It shares the bridge's weights, and runs slower than a fresh load of them all the same.
    """
    model = plain_copy(subject.model)
    model.set_attn_implementation("sdpa")
    return model


def with_adapter(subject: Subject, folder: Path) -> Any:
    """PEFT's model, on the weights that are loaded already."""
    return PeftModel.from_pretrained(stock(subject), folder).eval()


def merged_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def exact(
    subject: Subject,
    calibration: Calibration,
    prompts: Sequence[Tokens],
    angles: Sequence[float],
    new_tokens: int,
    scratch: Path,
) -> Iterator[dict[str, Any]]:
    """Logits and greedy answers of each angle's LoRA and merged model beside ``steer(...)``."""
    dtype = str(subject.model.cfg.dtype).removeprefix("torch.")
    for angle in angles:
        with (
            folder_of("lora", subject, angle, scratch) as lora,
            folder_of("merged", subject, angle, scratch) as merged,
        ):
            models = {
                "LoRA in PEFT": with_adapter(subject, lora),
                "merged, plain transformers": merged_model(merged),
            }
            found = compare(
                subject.model,
                calibration,
                RotateBy(angle),
                {name: (partial(logits_of, one), dtype) for name, one in models.items()},
                prompts,
                max_new_tokens=new_tokens,
            )
            del models
            gc.collect()
        for name, parity in found.items():
            yield {
                "angle": angle,
                "export": name,
                "prompts": parity.n_prompts,
                "positions": parity.n_positions,
                "deviation": parity.relative,
                "steering": parity.steered_relative,
                "KL, largest": parity.kl_max,
                "same likeliest token": parity.same_top,
                "equal answers": parity.equal_answers,
            }


@contextmanager
def serving(
    subject: Subject, scratch: Path, form: Any, context: int, *, exactly: bool
) -> Iterator[llama_cpp.Server]:
    """The base in floats and the two adapters of a dial behind llama.cpp's server."""
    source = loaded_from(subject.model).source.gguf
    if source is None:
        raise UserError(
            f"the model {subject.base.name!r} came from no GGUF file, expected one, whose "
            "vocabulary the server needs; name a .gguf file or a registered model."
        )
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        base, dial = Path(name) / "base.gguf", Path(name) / "dial"
        llama_cpp.write_dequantised(source, base, form)
        dial.mkdir()
        write("dial", dial, subject, [], torch.float32)
        adapters = [dial / f"{turn}.gguf" for turn in DIAL]
        threads = torch.get_num_threads()
        yield llama_cpp.Server(base, adapters, context=context, threads=threads, exact=exactly)


class Served:
    """A dial on a server, and the steered model that it should equal."""

    def __init__(
        self, server: llama_cpp.Server, subject: Subject, calibration: Calibration, new_tokens: int
    ) -> None:
        self.server, self.model, self.calibration = server, subject.model, calibration
        self.new, self.openings = new_tokens, opening_tokens(subject.model)

    def ask(self, ids: Tokens, angle: float) -> Answer:
        return self.server.ask(ids, turned(angle), new=self.new, listed=LISTED)

    @torch.inference_mode()
    def ours(self, ids: Tokens, answer: Answer, angle: float) -> Tensor:
        """Our steered log-probabilities at the tokens of the server's answer."""
        row = torch.tensor([[*ids, *answer.tokens[:-1]]])
        with ss_lens.steer(self.model, self.calibration, RotateBy(angle)):
            logits = forward.run_all(
                self.model, row, torch.ones_like(row), keep=len(answer.tokens)
            )[0]
        return logits.float().log_softmax(dim=-1)

    def score(self, logprobs: Mapping[int, float]) -> float:
        """The refusal score, of the tokens that the server sends."""
        refuse, comply = (
            torch.tensor([logprobs.get(token, -math.inf) for token in side]).logsumexp(0)
            for side in self.openings
        )
        return float(refuse - comply)


def on_a_server(
    served: Served, prompts: Sequence[Tokens], angles: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """What the server answers at each angle, beside our steered logits at the same tokens."""
    for angle in angles:
        agreeing = positions = 0
        worst, scores = 0.0, []
        for ids in prompts:
            answer = served.ask(ids, angle)
            logp = served.ours(ids, answer, angle)
            for mine, top, sent in zip(logp, answer.likeliest, answer.logprobs, strict=True):
                agreeing += int(mine.argmax()) == top
                worst = max(worst, abs(float(mine[top]) - sent[top]))
            positions += len(answer.tokens)
            ours = {token: float(logp[0, token]) for token in answer.logprobs[0]}
            scores.append((served.score(ours), served.score(answer.logprobs[0])))
        mine, theirs = (sum(side) / len(scores) for side in zip(*scores, strict=True))
        yield {
            "angle": angle,
            "positions": positions,
            "same likeliest token": agreeing / positions,
            "log-probability, largest difference": worst,
            "refusal score, steer(...)": mine,
            "refusal score, server": theirs,
            "largest difference of a prompt": max(abs(a - b) for a, b in scores),
        }


def at_once(served: Served, prompts: Sequence[Tokens], angles: Sequence[float]) -> dict[str, Any]:
    """The same requests alone and four at once, neighbours at other angles."""
    asked = [(ids, angle) for ids in prompts for angle in angles]
    alone = [served.ask(*one) for one in asked]
    with ThreadPoolExecutor(4) as four:
        together = [*four.map(lambda one: served.ask(*one), asked)]
    pairs = [*zip(alone, together, strict=True)]
    moved = [abs(served.score(a.logprobs[0]) - served.score(b.logprobs[0])) for a, b in pairs]
    return {
        "requests": len(asked),
        "at once": 4,
        "equal answers": sum(a.tokens == b.tokens for a, b in pairs),
        "refusal score, largest difference": max(moved),
    }


def speed(
    subject: Subject,
    calibration: Calibration,
    prompts: Sequence[Tokens],
    new_tokens: int,
    rounds: int,
    scratch: Path,
) -> Iterator[Figure]:
    """Greedy answers of a fixed length: each way to steer over the unsteered model."""
    model, plain = subject.model, stock(subject)
    (batch,) = forward.batches(
        prompts,
        [range(len(prompts))],
        side="left",
        pad_id=forward.pad_id_of(model),
        device=torch.device("cpu"),
    )
    lengths = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}

    def plainly(one: Any) -> Callable[[], object]:
        given = {"input_ids": batch.ids, "attention_mask": batch.mask, "do_sample": False}
        return lambda: one.generate(**given, **lengths)

    @torch.inference_mode()
    def bridged() -> None:
        mask = batch.mask
        logits, cache = forward.run(model, batch.ids, mask, keep_cache=True)
        for _ in range(new_tokens - 1):
            mask = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
            logits, cache = forward.run(model, logits.argmax(dim=-1)[:, None], mask, cache)

    def steered() -> None:
        with ss_lens.steer(model, calibration, RotateBy(SPEED_ANGLE)):
            bridged()

    with (
        folder_of("lora", subject, SPEED_ANGLE, scratch) as lora,
        folder_of("merged", subject, SPEED_ANGLE, scratch) as merged,
    ):
        times = alternating(
            {
                "unsteered": plainly(plain),
                "merged": plainly(merged_model(merged)),
                "LoRA in PEFT": plainly(with_adapter(subject, lora)),
                "TransformerLens, unsteered": bridged,
                "steer(...)": steered,
            },
            rounds,
        )
    base = times["unsteered"]
    for name, seconds in times.items():
        if name != "unsteered":
            yield Figure(
                f"{name} / plain transformers, unsteered", seconds / base, "", None, seconds
            )
    hooks = times["steer(...)"] / times["TransformerLens, unsteered"]
    yield Figure("steer(...) / TransformerLens, unsteered", hooks)


def server_speed(
    server: llama_cpp.Server, prompts: Sequence[Tokens], new_tokens: int, rounds: int
) -> Figure:
    """The dial at an angle over the same server at 0°, where it leaves both adapters out."""

    def answers(angle: float) -> Callable[[], object]:
        def ask() -> None:
            for ids in prompts:
                scales = turned(angle)
                server.ask(ids, scales, new=new_tokens, listed=0, whole_length=True)

        return ask

    sides = {"dial": answers(SPEED_ANGLE), "unsteered": answers(0)}
    return Figure.ratio("llama.cpp, dial / unsteered", alternating(sides, rounds), "unsteered")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("exact", "server", "speed"))
    parser.add_argument("--model", required=True, help="a name, a folder or a .gguf file")
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16, float16")
    parser.add_argument("--calibration", type=Path, help="saved; by default one is made")
    parser.add_argument("--per-class", type=int, default=64, help="prompts of that; default: 64")
    parser.add_argument("--rule", default="site", help="of that; default: site, as in the paper")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of an answer")
    parser.add_argument("--angles", default=ANGLES, help=f"degrees; default: {ANGLES}")
    parser.add_argument(
        "--form", choices=("f32", "f16"), default="f32", help="of the server's base"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of speed, after one")
    parser.add_argument("--scratch", type=Path, help="a folder with room for three models")
    parser.add_argument("--out", type=Path, help="append the tables to this Markdown file")
    given = parser.parse_args()
    run(given)


def run(given: argparse.Namespace) -> None:
    """Measure what is asked for, and print it as it comes."""
    model = ss_lens.load_model(given.model, device="cpu", dtype=given.dtype)
    calibration = calibrated(model, given)
    prompts = prompts_for(model, given.model, given.prompts)
    subject, _ = subject_of(model, calibration, Base.of(model), RotateBy(90), prompts[0])
    sites, angles = len(calibration.selected_sites), [float(a) for a in given.angles.split(",")]
    about = (
        f"{given.what} {given.model}, {given.dtype}: {sites} sites, {len(prompts)} prompts × "
        f"{given.tokens} tokens, {torch.get_num_threads()} threads"
    )
    print(about, flush=True)
    tell = Table(about, given.out)
    context = max(map(len, prompts)) + given.tokens + 8
    if given.what == "exact":
        for row in exact(subject, calibration, prompts, angles, given.tokens, given.scratch):
            tell.add(row)
    elif given.what == "server":
        with serving(subject, given.scratch, given.form, context, exactly=True) as server:
            served = Served(server, subject, calibration, given.tokens)
            for row in on_a_server(served, prompts, angles):
                tell.add(row)
            tell.add(at_once(served, prompts[:4], angles))
    else:
        for figure in speed(
            subject, calibration, prompts, given.tokens, given.rounds, given.scratch
        ):
            tell.add(vars(figure))
        gc.collect()
        with serving(subject, given.scratch, given.form, context, exactly=False) as server:
            tell.add(vars(server_speed(server, prompts[:2], given.tokens, given.rounds)))


class Table:
    """Rows that are printed as they come, and kept in a file of Markdown where one is named."""

    def __init__(self, about: str, path: Path | None) -> None:
        self._path, self._names = path, ()
        self._write(f"\n**{about}**\n")

    def add(self, row: Mapping[str, Any]) -> None:
        if self._names != (names := (*row,)):
            self._names = names
            self._write(f"\n| {' | '.join(names)} |\n|{'---|' * len(names)}")
        cells = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()]
        self._write(f"| {' | '.join(cells)} |")

    def _write(self, line: str) -> None:
        print(line, flush=True)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(f"{line}\n")


if __name__ == "__main__":
    main()
