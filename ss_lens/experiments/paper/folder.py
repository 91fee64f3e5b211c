"""The folder of a paper run: claimed for one model and its prompts, and marked when finished."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ss_lens.core.errors import UserError
from ss_lens.core.files import atomic_path, check_can_be_made, make_folder, read_json, write_json
from ss_lens.core.replace import holds_nothing, remove_leftovers
from ss_lens.core.sealed import read_sealed_json, write_sealed_json
from ss_lens.datasets.contrastive import ContrastiveDataset
from ss_lens.experiments.paper.plan import BOTH, PUBLISHED_WRAP, PaperConfig

PLAIN, WRAPPED = "data.jsonl", "data_wrapped.jsonl"
CLAIM, FINISHED = "claim.json", "paper.json"


def claim(config: PaperConfig, dataset: ContrastiveDataset, folder: Path) -> ContrastiveDataset:
    """Write the prompts into a folder that is new, empty, or of an earlier run on them.

    Returns:
        The prompts that are used, as many as the size needs.

    Raises:
        UserError: a dataset that cannot be split so, or a folder that holds something else.
    """
    size = config.size
    if size.train is not None:
        dataset = dataset.head(size.train + size.dev + size.test)
    dataset.split(dev=size.dev, test=size.test, seed=config.seed)
    check_can_be_made(folder)
    negative = tuple(PUBLISHED_WRAP.replace("{prompt}", text) for text in dataset.negative)
    wrapped = ContrastiveDataset(f"{dataset.name} wrapped", dataset.positive, negative)
    texts = {WRAPPED: _lines(wrapped), PLAIN: _lines(dataset)}  # in the order of writing
    _check_same(folder, texts, _identity(config))
    make_folder(folder)
    remove_leftovers(folder)
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, "utf-8")
    if not (folder / CLAIM).exists():
        write_sealed_json(folder / CLAIM, _identity(config))
    return dataset


def finish(config: PaperConfig, activations: Mapping[str, str], folder: Path) -> None:
    """Mark the run as finished, and say which activations its figures take from the store."""
    write_json(folder / FINISHED, {"config": config.as_json(), "activations": dict(activations)})


def _identity(config: PaperConfig) -> dict[str, object]:
    """What all tables of one folder have in common."""
    named = {} if config.followed is None else {"behaviour": config.followed.as_json()}
    return {"model": config.model, "seed": config.seed, "dtype": config.dtype, **named}


def _check_same(folder: Path, texts: Mapping[str, str], asked: Mapping[str, object]) -> None:
    """Refuse a folder that holds something else than a run of this model on these prompts."""
    if holds_nothing(folder):
        return
    if not (folder / WRAPPED).is_file():
        raise UserError(f"{folder} is not empty and holds no paper run; choose another --out.")
    for name, text in texts.items():
        path = folder / name
        if path.is_file() and path.read_bytes() != text.encode():
            raise UserError(
                f"{folder} holds a paper run on other prompts ({name} differs: another dataset, or "
                "another size of it); choose another --out, or remove that folder."
            )
    known = _known(folder)
    for name in (*asked, *({"behaviour"} & known.keys() - asked.keys())):
        value = asked.get(name)
        if (name in known or name == "behaviour") and known.get(name) != value:
            raise UserError(
                f"{folder} holds a paper run with {name} {known.get(name)!r}; got {value!r}, "
                "expected the same, since its tables are of one model. Choose another --out, or "
                "remove that folder."
            )


def _known(folder: Path) -> dict[str, object]:
    """What the run in a folder is of; an earlier version said so only when it was finished."""
    if (folder / CLAIM).exists():
        remedy = "remove that file and run the same command again"
        return read_sealed_json(folder / CLAIM, f"paper run ({CLAIM})", remedy=remedy)
    if not (folder / FINISHED).exists():
        return {}
    remedy = "remove that file and run the same command again"
    found = read_json(folder / FINISHED, f"paper run ({FINISHED})", remedy=remedy)
    config = found.get("config") if isinstance(found, dict) else None
    return config if isinstance(config, dict) else {}


def _lines(data: ContrastiveDataset) -> str:
    rows = [{"prompt": text, "class": label} for label in BOTH for text in getattr(data, label)]
    return "".join(json.dumps(row) + "\n" for row in rows)
