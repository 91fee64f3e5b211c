"""What is there: registered models, embedded datasets, and the store."""

from __future__ import annotations

from typing import Annotated

import typer

import ss_lens
from ss_lens.cli import console, options
from ss_lens.cli.console import keeps

UNCHANGED = "nothing was changed."


@keeps(UNCHANGED)
def models(as_json: options.Json = False) -> None:
    """List the registered models: their sources in order, their sizes, and which are here.

    Memory is that of float32. A size that is not known before the model is loaded is left out.
    """
    from ss_lens.core.resources import in_gb
    from ss_lens.models.delivery.presence import presence_of
    from ss_lens.models.sources import MODELS

    def size(n_bytes: int | None) -> str | int | None:
        return n_bytes if as_json else "" if n_bytes is None else in_gb(n_bytes)

    rows = []
    for model in MODELS.values():
        found = presence_of(model)
        here = found.here if as_json else "yes" if found.here else found.begun or "no"
        for source in model.sources:
            sizes = size(found.disk_bytes), size(found.memory_bytes)
            rows.append((model.name, str(source), source.origin, *sizes, here))
    console.print_rows(("name", "source", "from", "disk", "memory", "here"), rows, as_json)


@keeps(UNCHANGED)
def datasets(as_json: options.Json = False) -> None:
    """List the embedded datasets: their sizes, what they hold and are for, and their licence."""
    from ss_lens.datasets.contrastive import EMBEDDED, Embedded

    loaded = {name: ss_lens.load_dataset(name) for name in EMBEDDED}
    rows = [
        (name, len(data.positive), len(data.negative), data.digest[:12], *EMBEDDED[name])
        for name, data in loaded.items()
    ]
    columns = ("name", "positive", "negative", "digest", *Embedded._fields)
    console.print_rows(columns, rows, as_json)


@keeps(UNCHANGED)
def store_ls(as_json: options.Json = False) -> None:
    """List what the store holds; the column weights distinguishes models of one name."""
    rows = [
        (
            entry.key[:12],
            entry.spec.model.name,
            (entry.spec.model.fingerprint or "unknown")[:12],
            entry.spec.dataset_name,
            f"{entry.spec.n_positive} + {entry.spec.n_negative}",
            len(entry.spec.sites),
            str(entry.spec.position),
            f"{entry.shards_present}/{entry.shards_total}",
            f"{entry.n_bytes / 1e6:.1f} MB",
        )
        for entry in ss_lens.Store().entries()
    ]
    names = ("key", "model", "weights", "dataset", "prompts", "sites", "position", "shards", "size")
    console.print_rows(names, rows, as_json)


@keeps("what was not removed yet is still there; `ss-lens store ls` lists it.")
def store_rm(key: Annotated[str, typer.Argument(help="A key or its first characters.")]) -> None:
    """Remove one set of activations."""
    store = ss_lens.Store()
    whole = store.resolve(key)
    store.remove(whole)
    console.line(f"removed {whole[:12]}")


@keeps(UNCHANGED)
def store_verify(as_json: options.Json = False) -> None:
    """Check every shard against its checksum; exit code 1 when one is missing or damaged."""
    from ss_lens.core.progress import progress_bar

    store, problems = ss_lens.Store(), {}
    keys = store.stored_keys()
    with progress_bar(len(keys), "verify", "set") as bar:
        for key in keys:
            problems[key] = store.verify(key)
            bar.update()
    if as_json:
        console.print_json(problems)
    else:
        for key, lines in problems.items():
            console.line(f"{key[:12]}: {'; '.join(lines) or 'whole'}")
        console.line(f"{len(problems)} sets in {store.root}")
    if any(problems.values()):
        raise typer.Exit(1)
