"""What a run says of itself: its configuration, where it comes from, and how it is made again."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

from analyses.report.sources import notes
from ss_lens import Calibration, load_dataset
from ss_lens.behaviours.files import BEHAVIOURS
from ss_lens.datasets.contrastive import EMBEDDED
from ss_lens.experiments.ablations.config import AblationConfig
from ss_lens.experiments.dial.config import RunConfig
from ss_lens.models.chat import DATE, DEFAULT_FORMAT, ChatFormat

USUAL_DTYPE = "float32"
"""What the commands load a model in on a CPU unless told."""
_OPTIONS = {
    "rule": "--rule",
    "dev": "--dev",
    "test": "--test",
    "seed": "--seed",
    "max_new_tokens": "--max-new-tokens",
    "draws": "--draws",
}


def run_command(
    config: RunConfig,
    model: str,
    dataset: str,
    folder: Path,
    behaviour: str | None = None,
    dtype: str = USUAL_DTYPE,
) -> str:
    """``ss-lens run`` with each option that is not the default.

    >>> run_command(RunConfig(dev=4), "smollm2-135m", "refusal", Path("runs/a"))
    'ss-lens run --model smollm2-135m --dataset refusal --out runs/a --dev 4'
    """
    usual = RunConfig()
    what = _asked(given(dataset), behaviour)
    words = ["ss-lens", "run", "--model", model, *what, "--out", str(folder)]
    if config.angles_deg != usual.angles_deg:
        words += ["--angles", ",".join(f"{angle:g}" for angle in config.angles_deg)]
    for name, option in _OPTIONS.items():
        if getattr(config, name) != getattr(usual, name):
            words += [option, str(getattr(config, name))]
    words += [*_chat_options(config.chat), *_dtype_option(dtype)]
    if config.keep_answers:
        words.append("--keep-answers")
    return shlex.join(words)


def ablate_command(config: AblationConfig, folder: str, behaviour: str | None = None) -> str:
    """``ss-lens ablate`` with each option that is not the default.

    Args:
        config: what is ablated.
        folder: where its results lie.
        behaviour: in place of the configuration's, where only its name is known.

    >>> ablate_command(AblationConfig("smollm2-135m", dev=4), "runs/ablations")
    'ss-lens ablate --model smollm2-135m --dataset refusal --out runs/ablations --dev 4'
    """
    usual = AblationConfig(config.model)
    what = _asked(config.dataset, behaviour or config.behaviour)
    words = ["ss-lens", "ablate", "--model", config.model, *what, "--out", folder]
    if config.angles_deg != usual.angles_deg:
        words += ["--angles", ",".join(f"{angle:g}" for angle in config.angles_deg)]
    for name, option in _OPTIONS.items():
        if name != "rule" and getattr(config, name) != getattr(usual, name):
            words += [option, str(getattr(config, name))]
    return shlex.join([*words, *_chat_options(config.chat), *_dtype_option(config.dtype)])


def ablations_of(
    config: RunConfig, model: str, dataset: str, dtype: str = USUAL_DTYPE
) -> AblationConfig:
    """The ablations of a run's calibration: the same split, chat format and number of tokens."""
    return AblationConfig(
        model=model,
        dataset=given(dataset),
        angles_deg=config.angles_deg,
        dev=config.dev,
        test=config.test,
        seed=config.seed,
        max_new_tokens=config.max_new_tokens,
        chat=config.chat,
        dtype=dtype,
    )


def given(dataset: str) -> str:
    """A dataset as a command takes it: of a file, a run knows the name and not the folder."""
    return dataset if dataset in EMBEDDED else f"path/to/{dataset}"


def behaviour_given(behaviour: str | None) -> str | None:
    """A behaviour as a command takes it: of a file, a run knows the behaviour's name alone."""
    return behaviour if behaviour in (None, *BEHAVIOURS) else f"path/to/{behaviour}.yaml"


def _asked(dataset: str, behaviour: str | None) -> list[str]:
    """What is followed: refusal on a dataset, or another behaviour on its own prompts."""
    return ["--dataset", dataset] if behaviour is None else ["--behaviour", behaviour]


def _dtype_option(dtype: str) -> list[str]:
    return [] if dtype in (USUAL_DTYPE, "auto") else ["--dtype", dtype]


def _chat_options(chat: ChatFormat) -> list[str]:
    words = [] if chat.system is None else ["--system", chat.system]
    if chat.date != DATE:
        words += ["--date", chat.date]
    for name, value in dict(chat.template_arguments).items():
        words += ["--template-argument", f"{name}={json.dumps(value)}"]
    return words


def about_version(identity: dict[str, Any]) -> list[str]:
    """A note where the run was made by another version than this."""
    return notes.about_versions({"the run": str(identity["ss_lens"])}, version("ss_lens"))


def about_dataset(identity: dict[str, Any]) -> list[str]:
    """A note where the embedded dataset is no longer the run's."""
    name, digest = identity["dataset"]["name"], identity["dataset"]["digest"]
    if name not in EMBEDDED or load_dataset(name).digest == digest:
        return []
    return [
        f"The embedded dataset {name!r} has changed since this run ({digest[:12]} then), so the "
        "command below makes a new run; choose another --out for it."
    ]


def configuration(
    config: RunConfig, calibration: Calibration | None, word: str = "harmful"
) -> dict[str, str]:
    """What was asked for, and what the calibration made of it.

    Args:
        config: of the run.
        calibration: where there is one already.
        word: what the positive prompts are called.
    """
    said = ", ".join(f"{name}={value}" for name, value in config.chat.as_json().items())
    found = {
        "angles": ", ".join(f"{angle:g}°" for angle in config.angles_deg),
        "rule": config.rule,
        "prompts per class": f"dev {config.dev}, test {config.test}, seed {config.seed}",
        "new tokens": str(config.max_new_tokens),
        "random planes": f"{config.draws} of each kind",
        f"answers to {word} prompts": "kept in full" if config.keep_answers else "first six words",
        "chat template": "default" if config.chat == DEFAULT_FORMAT else said,
    }
    if calibration is None:
        return found
    recipe, spec = calibration.recipe, calibration.spec
    return {
        **found,
        "direction": f"{recipe.direction!r}, {recipe.choice!r}",
        "direction site": str(calibration.direction_site or "none: a consensus of all"),
        "plane": repr(recipe.plane),
        "steered sites": notes.joined([str(site) for site in calibration.selected_sites], 60),
        "sites without a direction": notes.joined([str(s) for s in calibration.candidates.excluded])
        or "none",
        "calibrated on": f"{spec.n_positive} + {spec.n_negative} prompts, position {spec.position}",
    }


def provenance(identity: dict[str, Any], calibration: Calibration | None) -> dict[str, str]:
    """Versions and digests."""
    found = {
        "ss_lens": f"{identity['ss_lens']} (run), {version('ss_lens')} (report)",
        "started": str(identity["started"]),
        "dataset": f"{identity['dataset']['name']}, SHA-256 {identity['dataset']['digest']}",
        **{f"activations, {part}": key for part, key in identity["activations"].items()},
    }
    if calibration is None:
        return found
    model = calibration.spec.model
    return {
        "model": f"{model.name}, {model.n_layers} blocks of width {model.d_model}, {model.dtype}",
        "weights": f"fingerprint {model.fingerprint}",
        "revision": str(model.revision or "none"),
        **found,
        **dict(calibration.spec.versions),
    }
