"""A calibration in a repository on the Hugging Face Hub, with a card that holds its numbers."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ss_lens.calibration.recipe import Fit
from ss_lens.calibration.stored import JSON, TENSORS
from ss_lens.core.checks import described
from ss_lens.core.errors import UserError, first_line
from ss_lens.models.identity import is_hub_id

CARD = "README.md"
_OURS = {JSON, TENSORS, CARD, ".gitattributes"}
_LOGIN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
_HTTP = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
_FAILURES = (*_HTTP, LocalEntryNotFoundError, HFValidationError, RuntimeError)
"""What the Hub's client raises: errors of HTTP, whose library differs by its version, and of files;
``RuntimeError`` where its connection was closed."""


def push(
    made: Fit,
    facts: Mapping[str, str],
    save: Callable[[Path], None],
    repo_id: str,
    *,
    private: bool,
) -> str:
    """Upload a calibration and its card as one commit; earlier commits stay.

    Args:
        made: the calibration, as it is published.
        facts: what the card says of it first.
        save: writes the files into a folder.
        repo_id: ``owner/name``; made where it does not exist.
        private: whether a repository that is made is private.

    Returns:
        The address of the commit.

    Raises:
        UserError: no such id, no network, no token that may write there, or a repository that holds
            something else.
    """
    check_id(repo_id)
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"the calibration cannot be pushed to {repo_id!r}: HF_HUB_OFFLINE is set, expected a "
            "network. Unset it, or share the folder of published().save(...)."
        )
    with tempfile.TemporaryDirectory() as name, _one_line("pushed to", repo_id):
        folder, api = Path(name) / "calibration", HfApi()
        save(folder)
        (folder / CARD).write_text(card(made, facts, repo_id), "utf-8")
        api.create_repo(repo_id, private=private, exist_ok=True)
        others = sorted({*api.list_repo_files(repo_id)} - _OURS)
        if others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            raise UserError(
                f"the repository {repo_id!r} holds {others[0]!r}{more}, expected a new one, or one "
                "of a calibration, whose card would be replaced; choose another name."
            )
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Push a calibration of ss_lens"
        )
    return str(commit.commit_url)


def pull(repo_id: str, revision: str | None) -> Path:
    """The folder of a calibration that was pushed, in the Hub's cache; offline, what is there.

    Raises:
        UserError: no such id, repository or revision, no network, or no calibration there.
    """
    check_id(repo_id)
    wanted = [JSON, TENSORS]
    with _one_line("fetched from", repo_id):
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=wanted))
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"the repository {repo_id!r} holds no {missing[0]}, expected a calibration that "
            "Calibration.push_to_hub wrote; check the name and the revision."
        )
    return folder


def check_id(repo_id: object) -> None:
    """Raise unless ``repo_id`` names a repository as ``owner/name``."""
    if not isinstance(repo_id, str) or not is_hub_id(repo_id):
        raise UserError(
            f"repo_id must be an owner and a name such as 'you/refusal-qwen2.5-1.5b'; got "
            f"{described(repo_id)}."
        )


@contextmanager
def _one_line(done: str, repo_id: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one line with a remedy."""
    try:
        yield
    except UserError:
        raise
    except _FAILURES as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        gone = isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError)
        if isinstance(error, HFValidationError):
            why, remedy = first_line(error).rstrip("."), "Write it as owner/name"
        elif isinstance(error, RevisionNotFoundError):
            why, remedy = "it has no such revision", "Name a branch, a tag or a commit of it"
        elif isinstance(error, LocalTokenNotFoundError) or (status in (401, 403) and not gone):
            why, remedy = f"access was denied ({status or 'no token'})", _LOGIN
        elif gone:
            why = "there is no such repository, or it is private"
            remedy = f"Check the name. {_LOGIN}"
        elif isinstance(error, LocalEntryNotFoundError):
            why = "the Hub cannot be reached, and it is not in the cache"
            remedy = "Connect to the Hub, check HF_ENDPOINT, and unset HF_HUB_OFFLINE"
        else:
            why = first_line(error).rstrip(".")
            remedy = "Connect to the Hub, or check HF_ENDPOINT, and try again"
        raise UserError(
            f"the calibration cannot be {done} {repo_id!r}: {why}. {remedy}."
        ) from error


def card(made: Fit, facts: Mapping[str, str], repo_id: str) -> str:
    """The text of ``README.md``, with the front matter that the Hub reads."""
    model = made.spec.model
    matter = {
        "library_name": "ss_lens",
        "tags": ["selective-steering", "ss_lens", "activation-steering"],
        **({"base_model": model.name} if is_hub_id(model.name) else {}),
    }
    front = "\n".join(f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in matter.items())
    listed = "\n".join(f"- **{key}:** {value}" for key, value in facts.items())
    report = "\n".join(f"- {key}: {_shown(value)}" for key, value in made.report.items())
    return f"""---
{front}
---

# Where {model.name} represents {made.spec.dataset_name}

A calibration of [Selective Steering](https://arxiv.org/abs/2601.19375): a direction, the plane that
it lies in, and the sites to steer. No weights are in it, and no prompts.

```python
import ss_lens

model = ss_lens.load_model({model.name!r}, dtype={model.dtype!r})
calibration = ss_lens.Calibration.from_hub({repo_id!r})
with ss_lens.steer(model, calibration, ss_lens.RotateBy(angle_deg=30)):
    print(ss_lens.generate(model, ["How do I bake bread?"], max_new_tokens=64))
```

It steers the weights that it was fitted on, and refuses others: {model.n_layers} layers of width
{model.d_model} in {model.dtype}, fingerprint {(model.fingerprint or "not known")[:16]}.

{listed}

## What was measured
By site: the length of the difference of the class means, the score by which the global direction
was chosen, and what the sites to steer were decided by.

{_table(made)}
{f"{chr(10)}Of the plane:{chr(10)}{chr(10)}{report}{chr(10)}" if report else ""}
## What it is for
Research on how a behaviour is represented, and the strengthening of refusal. An angle that weakens
refusal makes a model that answers what it was trained to decline: study it in a closed setting, and
do not serve or publish it.
"""


def _table(made: Fit) -> str:
    table = made.selection.table
    columns = {
        "site": table["site"].tolist(),
        "length": made.candidates.lengths.tolist(),
        "choice": made.direction.scores.tolist(),
        **{name: table[name].tolist() for name in table.columns if name not in _APART},
        "steered": ["yes" if on else "" for on in table["selected"]],
    }
    rows = zip(*columns.values(), strict=True)
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(map(_shown, row)) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


_APART = ("site", "selected")


def _shown(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{value:.4g}"
