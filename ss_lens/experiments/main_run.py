"""The main job: capture, calibrate, steer at several angles, score, and keep a run directory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import cast

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from ss_lens.activations.capture import capture
from ss_lens.activations.store import Store
from ss_lens.calibration.calibrate import calibrate
from ss_lens.calibration.calibration import Calibration
from ss_lens.calibration.site_selection import as_rule
from ss_lens.core.checks import check_at_least
from ss_lens.core.errors import UserError
from ss_lens.core.files import atomic_path, read_json, sha256_of_json, write_json
from ss_lens.core.progress import progress_bar
from ss_lens.datasets.contrastive import ContrastiveDataset
from ss_lens.generation.angle_batch import sweep_angles
from ss_lens.geometry.operators import RotateBy
from ss_lens.models.chat import check_context, tokenize
from ss_lens.scoring.coherence import coherence
from ss_lens.scoring.refusal import opens_with_refusal
from ss_lens.stats.intervals import wilson_interval

FORMAT = 1
EIGHT_ANGLES = (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)
PROMPTS_PER_CHUNK = 6
COHERENCE = ("compression_ratio", "repetition", "non_latin_share")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunConfig:
    """What the main job does; ``dev`` and ``test`` are prompts per class.

    ``rule`` is the text of a selection rule, as :func:`as_rule` reads it.
    """

    angles_deg: tuple[float | int, ...] = EIGHT_ANGLES
    rule: str = "site"
    dev: int = 16
    test: int = 24
    seed: int = 0
    max_new_tokens: int = 48

    def __post_init__(self) -> None:
        as_rule(self.rule)
        check_at_least("max_new_tokens", self.max_new_tokens)
        if len(set(self.angles_deg)) < len(self.angles_deg):
            raise UserError(f"an angle of {self.angles_deg} is given twice; keep one.")


@dataclass(frozen=True, eq=False)
class Run:
    """A finished main job, as its run directory holds it.

    Attributes:
        calibration: fitted on the train part.
        activations: the store's keys of the ``train`` and ``test`` activations.
        responses: one row per test prompt and angle, with its scores.
        scores: one row per angle, from :func:`score_by_angle`.
    """

    config: RunConfig
    calibration: Calibration
    activations: dict[str, str]
    responses: pd.DataFrame
    scores: pd.DataFrame


def run_main_job(
    model: TransformerBridge,
    dataset: ContrastiveDataset,
    run_dir: Path | str,
    config: RunConfig | None = None,
    *,
    store: Store | None = None,
) -> Run:
    """Calibrate on the train part of ``dataset`` and measure Selective Steering on its test part.

    The dev part stays unused here: it is where an angle may be chosen. Answers are kept in
    ``run_dir`` a few prompts at a time, so a run that was stopped goes on where it stopped, and a
    repeated run does no work.

    Raises:
        UserError: whatever capture, calibration or generation object to, or a ``run_dir`` that
            holds a run of something else.
    """
    config = config or RunConfig()
    folder = Path(run_dir)
    parts = dataset.split(dev=config.dev, test=config.test, seed=config.seed)
    for prompts in (parts.test.positive, parts.test.negative):
        check_context(model, tokenize(model, prompts), prompts, config.max_new_tokens)
    train, test = (capture(model, part, store=store) for part in (parts.train, parts.test))
    calibration = calibrate(train, rule=config.rule)
    identity = {
        "format": FORMAT,
        "config": {**asdict(config), "angles_deg": list(config.angles_deg)},
        "dataset": {"name": dataset.name, "digest": dataset.digest},
        "activations": {"train": train.spec.key, "test": test.spec.key},
        "ss_lens": version("ss_lens"),
    }
    _claim(folder, identity)
    calibration.save(folder / "calibration")
    tables = []
    for label, prompts in (("positive", parts.test.positive), ("negative", parts.test.negative)):
        table = _answers(model, calibration, prompts, config, folder / "answers", identity)
        tables.append(table.assign(prompt_class=label))
    responses = _scored(pd.concat(tables, ignore_index=True))
    scores = score_by_angle(responses)
    for name, table in (("responses", responses), ("scores", scores)):
        with atomic_path(folder / f"{name}.csv") as temporary:
            table.to_csv(temporary, index=False)
    return Run(config, calibration, identity["activations"], responses, scores)


def load_run(run_dir: Path | str) -> Run:
    """Read a run directory.

    Raises:
        UserError: it is not one, is unfinished, or was written by another version's format.
    """
    folder = Path(run_dir)
    identity = read_json(folder / "run.json", "run (run.json)")
    if identity.get("format") != FORMAT:
        raise UserError(
            f"the run at {folder} has format {identity.get('format')}, this version reads "
            f"{FORMAT}; run it again."
        )
    if not (folder / "scores.csv").exists():
        raise UserError(f"the run at {folder} is not finished; start `ss-lens run` on it again.")
    fields = identity["config"]
    return Run(
        RunConfig(**{**fields, "angles_deg": tuple(fields["angles_deg"])}),
        Calibration.load(folder / "calibration"),
        identity["activations"],
        # An answer may be empty or read "NA": only the scores have missing values.
        pd.read_csv(
            folder / "responses.csv",
            keep_default_na=False,
            na_values={column: [""] for column in COHERENCE},
        ),
        pd.read_csv(folder / "scores.csv"),
    )


def score_by_angle(responses: pd.DataFrame) -> pd.DataFrame:
    """One row per angle: refusal rate of each class with its 95 % Wilson interval, and coherence.

    ``compression_ratio``, ``repetition`` and ``non_latin_share`` are means over the answers to the
    positive class; answers too short for a score are left out of its mean.
    """
    rows = []
    for angle, group in responses.groupby("angle_deg", sort=True):
        row: dict[str, float] = {"angle_deg": cast(float, angle)}
        for label in ("positive", "negative"):
            refused = group.loc[group["prompt_class"] == label, "refused"]
            row[f"refusal_{label}"] = float(refused.mean())
            low, high = wilson_interval(int(refused.sum()), len(refused))
            row[f"refusal_{label}_low"], row[f"refusal_{label}_high"] = low, high
            row[f"n_{label}"] = len(refused)
        positive = group[group["prompt_class"] == "positive"]
        for column in COHERENCE:
            row[column] = float(positive[column].mean())
        rows.append(row)
    return pd.DataFrame(rows)


def _claim(folder: Path, identity: dict) -> None:
    """Write ``run.json``, or make sure that the one there describes this very run."""
    path = folder / "run.json"
    if path.exists():
        known = read_json(path, "run (run.json)")
        known.pop("started", None)
        if known != identity:
            differing = sorted(k for k in {*known, *identity} if known.get(k) != identity.get(k))
            raise UserError(
                f"{folder} holds a run that differs in {', '.join(differing)}; choose another "
                "--out, or remove that folder."
            )
        return
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        raise UserError(f"{folder} is not empty and holds no run; choose another --out.")
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_json(path, {**identity, "started": started})


def _answers(
    model: TransformerBridge,
    calibration: Calibration,
    prompts: Sequence[str],
    config: RunConfig,
    folder: Path,
    identity: dict,
) -> pd.DataFrame:
    """:func:`sweep_angles` over chunks of prompts, each kept as a file named by its content."""
    tables = []
    with progress_bar(len(prompts), "steer", "prompt") as bar:
        for start in range(0, len(prompts), PROMPTS_PER_CHUNK):
            chunk = list(prompts[start : start + PROMPTS_PER_CHUNK])
            path = folder / f"{sha256_of_json([identity, chunk])[:16]}.json"
            if path.exists():
                table = pd.DataFrame(read_json(path, "chunk of answers"))
            else:
                table = sweep_angles(
                    model,
                    calibration,
                    RotateBy,
                    chunk,
                    config.angles_deg,
                    max_new_tokens=config.max_new_tokens,
                )
                write_json(path, table.to_dict("records"))
            tables.append(table.assign(prompt_index=table["prompt_index"] + start))
            bar.update(len(chunk))
    return pd.concat(tables, ignore_index=True)


def _scored(answers: pd.DataFrame) -> pd.DataFrame:
    texts = answers["response"].tolist()
    refused = [opens_with_refusal(text) for text in texts]
    return pd.concat([answers.assign(refused=refused), coherence(texts)], axis=1)
