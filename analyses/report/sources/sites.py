"""The parts of a report that are of the model's sites: the map, the cosines, the norms."""

from __future__ import annotations

from dataclasses import replace

from analyses.report.contents import Contents
from analyses.report.sources import notes, site_map
from analyses.run_figures import norm_growth
from ss_lens import Calibration, Store, UserError
from ss_lens.activations.spec import range_of


def with_sites(
    contents: Contents, calibration: Calibration, keys: dict[str, str], store: Store | None
) -> tuple[Contents, list[str]]:
    """The contents with the map, the cosines and the norms, and notes on what they lack.

    Args:
        contents: without them.
        calibration: of the method.
        keys: of the ``train`` and ``test`` activations, by these names.
        store: ``None`` is the user's store.
    """
    chosen = calibration.selected_sites
    contents = replace(
        contents,
        steered=f"every token of prompt and answer, at {len(chosen)} of {len(calibration.sites)} "
        f"sites ({range_of(chosen)})",
        sites=site_map.of_calibration(calibration),
        cosines=site_map.pairs(calibration),
    )
    told = []
    try:
        train, test = ((store or Store()).load(keys[part]) for part in ("train", "test"))
    except UserError as error:
        told.append(f"The map has no class means, and there is no norm growth: {error}")
        return contents, told
    made, used = calibration.spec, train.spec
    same = [
        (spec.model.fingerprint, spec.dataset_digest, spec.tokens_digest) for spec in (made, used)
    ]
    if same[0] != same[1]:
        told.append(
            f"The calibration in this folder was made on {made.dataset_name!r} with "
            f"{made.model.name!r}, and the run names the activations {keys['train'][:12]} of other "
            "prompts or another model: two runs were mixed. Remove the folder and run again."
        )
    libraries = {
        name: dict(acts.spec.versions) for name, acts in (("train", train), ("test", test))
    }
    told += notes.about_libraries(libraries)
    spec = test.spec
    return replace(
        contents,
        sites=site_map.measure(test, calibration),
        sites_seen=f"{spec.n_positive} + {spec.n_negative} test prompts, which the calibration has "
        "not seen",
        norms=norm_growth.measure(train),
    ), told
