"""The three files of a published calibration: read without running code, written atomically."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ss_lens.calibration.published.module_names import sites_of_modules
from ss_lens.calibration.published.untrusted import Layout, load_tensors
from ss_lens.core.errors import UserError
from ss_lens.core.files import atomic_path, check_replaceable, read_json, write_json
from ss_lens.models.sites import Site

FILES = ("metadata.json", "directions.pt", "plane.pt")
_REMEDY = "Use the folder as it was published, or one that Calibration.to_reference wrote."


@dataclass(frozen=True, eq=False)
class Published:
    """What the files hold, in order of depth; numbers in float64.

    Attributes:
        modules: the norms that were read, by their names in transformers.
        sites: the same as sites.
        candidates: one per site, as stored (zero where the class means agreed).
        direction_site: the site whose candidate was chosen.
        basis: the plane as stored, neither exactly normalised nor exactly orthogonal in bfloat16.
        in_plane: the stored coordinates of each candidate along the two basis vectors.
        mask: the sites to steer.
        model_name: of the model; the authors' files lack it, so that the folder's name is taken.
        n_layers: blocks of the model; the authors' ``n_layers`` counts modules.
        n_positive: prompts that show the behaviour.
        n_negative: prompts that do not.
        dtype: of the stored candidates.
        session: names the run that made all three files.
    """

    modules: tuple[str, ...]
    sites: tuple[Site, ...]
    candidates: Float[Tensor, "site d_model"]
    direction_site: Site
    basis: Float[Tensor, "2 d_model"]
    in_plane: Float[Tensor, "site 2"]
    mask: Bool[Tensor, "site"]
    model_name: str
    n_layers: int
    n_positive: int
    n_negative: int
    dtype: str
    session: str


def read_files(path: Path | str) -> Published:
    """Read the folder at ``path``; no code in it is ever run.

    Raises:
        UserError: absent, damaged, holding more than tensors, numbers and text, or of another
            layout; the message names the file and what is wrong in it.
    """
    meta, found, plane = (_opened(Path(path), name) for name in FILES)
    session = meta.text("session_id")
    for part in (found, plane):
        if (other := part.text("metadata", "session_id")) != session:
            raise part.error("metadata.session_id", other, f"{session}, as in {meta.path.name}")

    rows = found.table("candidates")
    site_of = dict(zip(rows, sites_of_modules(rows), strict=True))
    modules = tuple(sorted(rows, key=site_of.__getitem__))
    if (n := meta.whole("n_layers")) != len(modules):
        raise meta.error("n_layers", n, f"{len(modules)}, the number of candidates")
    width = meta.whole("hidden_dim")
    candidates = torch.stack([found.vector(width, "candidates", name) for name in modules])
    if (chosen := found.text("selected_layer")) not in rows:
        raise found.error("selected_layer", chosen, "the name of a candidate")

    basis = plane.at("basis")
    if not isinstance(basis, tuple | list) or len(basis) != 2:
        raise plane.error("basis", basis, "two vectors")
    vectors = [plane.vector(width, "basis", i) for i in range(2)]
    if not all(vector.any() for vector in vectors):
        raise plane.error("basis", "zero in one of its vectors", "two directions")
    mask = plane.table("extra_info", "layer_steering_mask", like=modules)
    for name in modules:
        if not isinstance(mask[name], bool):
            raise plane.error(f"layer_steering_mask.{name}", mask[name], "True or False")
    if not any(mask.values()):
        raise plane.error("layer_steering_mask", "off everywhere", "a module to steer")
    plane.table("projections", like=modules)
    deepest = 1 + max(site.layer for site in site_of.values())
    return Published(
        modules=modules,
        sites=tuple(site_of[name] for name in modules),
        candidates=candidates,
        direction_site=site_of[chosen],
        basis=torch.stack(vectors),
        in_plane=torch.tensor(
            [[plane.number("projections", name, i) for i in range(2)] for name in modules],
            dtype=torch.float64,
        ),
        mask=torch.tensor([mask[name] for name in modules]),
        model_name=meta.text("model") if "model" in meta.value else Path(path).resolve().name,
        n_layers=meta.whole("n_blocks", at_least=deepest) if "n_blocks" in meta.value else deepest,
        n_positive=meta.whole("harmful_samples"),
        n_negative=meta.whole("harmless_samples"),
        dtype=str(rows[chosen].dtype).removeprefix("torch."),
        session=session,
    )


def _opened(folder: Path, name: str) -> Layout:
    path = folder / name
    if not path.is_file():
        raise UserError(
            f"there is no file {path}; a published calibration is a folder with {', '.join(FILES)}."
        )
    json = path.suffix == ".json"
    return Layout(path, read_json(path, "file") if json else load_tensors(path), _REMEDY)


def write_files(published: Published, path: Path | str) -> None:
    """Write the folder at ``path``, atomically, with tensors in float32.

    Raises:
        UserError: the folder holds something else, which would be replaced.
    """
    folder = Path(path)
    check_replaceable(folder, {*FILES}, "published calibration")
    modules, session = published.modules, published.session
    width = published.candidates.shape[1]
    rows = dict(zip(modules, published.candidates.float().unbind(), strict=True))
    chosen = modules[published.sites.index(published.direction_site)]
    coordinates = [tuple(pair) for pair in published.in_plane.tolist()]
    directions = {
        "candidates": rows,
        "selected_direction": rows[chosen],
        "selected_layer": chosen,
        "metadata": {
            "n_candidates": len(modules),
            "layer_names": list(modules),
            "hidden_dim": width,
            "session_id": session,
        },
    }
    plane = {
        "basis": published.basis.float().unbind(),
        "projections": dict(zip(modules, coordinates, strict=True)),
        "plane_type": "selective",
        "extra_info": {
            "target_layers": list(modules),
            "layer_steering_mask": dict(zip(modules, published.mask.tolist(), strict=True)),
        },
        "metadata": {"n_projections": len(modules), "session_id": session},
    }
    metadata = {
        "session_id": session,
        "selected_layer": chosen,
        "plane_type": "selective",
        "n_layers": len(modules),
        "harmful_samples": published.n_positive,
        "harmless_samples": published.n_negative,
        "hidden_dim": width,
        "model": published.model_name,
        "n_blocks": published.n_layers,
    }
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for name, content in (("directions.pt", directions), ("plane.pt", plane)):
            # Bytes go through Python, so that a full disk is an OSError, not torch's RuntimeError.
            buffer = io.BytesIO()
            torch.save(content, buffer)
            (temporary / name).write_bytes(buffer.getvalue())
        write_json(temporary / "metadata.json", metadata)
