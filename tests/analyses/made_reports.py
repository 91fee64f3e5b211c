"""Contents of reports with known numbers, and a sweep's folder, made without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyses.report.contents import UNSTEERED, Command, Contents, Measure, Said, Series, Table
from ss_lens.experiments.cells import CellStore
from ss_lens.experiments.config import SweepConfig
from ss_lens.experiments.sweeps.result import SweepResult, save
from ss_lens.experiments.sweeps.tables import UNSTEERED_COLUMNS

HOSTILE = '</script><script>document.title = "broken"</script><img src="http://example.invalid/x">'
MEASURES = (
    Measure("refusal_score", "refusal score (nats)", level=0.0),
    Measure("opening_mass", "opening mass", level=0.5, is_rate=True),
)


def made_contents(
    angles: tuple[float, ...] = (0.0, 90.0, 180.0, 270.0),
    with_texts: tuple[float, ...] = (180.0,),
    n_prompts: int = 3,
    **changes: Any,
) -> Contents:
    """A method whose score is 2 cos θ, its harmless prompts at −3, and a control at 90° only."""
    score = pd.Series([2 * np.cos(np.deg2rad(angle)) for angle in angles])
    method = _curve("method", angles, score, start=2.0)
    harmless = _curve("harmless", angles, 0 * score - 3, start=-3.0)
    control = _curve("random", angles[1:2], pd.Series([1.5]), start=2.0, low=1.0, high=1.75)
    rows = []
    for label in ("positive", "negative"):
        for index in range(n_prompts):
            for angle in (np.nan, *with_texts):
                still = bool(np.isnan(angle))
                rows.append(
                    {
                        "arm": UNSTEERED if still else "method",
                        "part": "test",
                        "prompt_class": label,
                        "prompt_index": index,
                        "prompt": f"{label} prompt {index} {HOSTILE}",
                        "angle_deg": angle,
                        "response": f"{'own' if still else f'at {angle:g}'} words {HOSTILE}",
                        "shortened": label == "positive",
                        "refused": still and label == "positive",
                        "refusal_score": index - (0 if still else 2.5),
                    }
                )
    sites = [(layer, stream) for layer in range(4) for stream in ("ln1_out", "ln2_out")]
    names = [f"L{layer}.{stream}" for layer, stream in sites]
    depth = np.linspace(-1, 1, len(sites))
    made: dict[str, Any] = {
        "title": f"made-up {HOSTILE}",
        "subtitle": "nothing was measured",
        "verdict": (Said("Refusal turned down at 180°", f"Refused 1 → 0 {HOSTILE}"),),
        "notes": (f"a note {HOSTILE}",),
        "series": (
            Series("method", "method", "positive"),
            Series("harmless", "harmless", "negative"),
            Series("random", "random", "positive"),
        ),
        "curves": pd.concat([method, harmless, control], ignore_index=True),
        "measures": MEASURES,
        "samples": pd.DataFrame(rows),
        "scores": {"refused": "refused", "refusal_score": "refusal score"},
        "still": ("method",),
        "start_deg": 180.0,
        "steered": "every token, at 4 of 8 sites",
        "sites": pd.DataFrame(
            {
                "site": names,
                "layer": [layer for layer, _ in sites],
                "stream": [stream for _, stream in sites],
                "selected": depth > 0,
                "is_direction_site": [name == names[-1] for name in names],
                "direction_cosine": depth,
                **{f"{label}_mean": depth for label in ("positive", "negative")},
                **{f"{label}_sd": 0 * depth for label in ("positive", "negative")},
                **{f"{label}_settled": depth > 0 for label in ("positive", "negative")},
                **{f"in_plane_{label}": 0 * depth + 0.5 for label in ("positive", "negative")},
            }
        ),
        "sites_seen": "no prompt",
        "cosines": pd.DataFrame(
            [(a, b, float(a == b)) for a in names for b in names],
            columns=["site", "other_site", "cosine"],
        ),
        "norms": pd.DataFrame(
            {
                "layer": [0, 1, 2, 3] * 2,
                "stream": "ln1_out",
                "prompt_class": ["positive"] * 4 + ["negative"] * 4,
                "mean_norm": [1.0, 10.0, 100.0, 1000.0] * 2,
            }
        ),
        "tables": (Table("Scores", HOSTILE, pd.DataFrame({"angle": ["180°"], "x": [HOSTILE]})),),
        "configuration": {"rule": HOSTILE},
        "provenance": {"ss_lens": "0"},
        "commands": (Command("this report", f"ss-lens report '{HOSTILE}'"),),
    }
    return Contents(**{**made, **changes})


def _curve(
    name: str,
    angles: tuple[float, ...],
    score: pd.Series,
    *,
    start: float,
    low: float = np.nan,
    high: float = np.nan,
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "series": name,
            "angle_deg": [*angles],
            "n": 16,
            "draws": 1 if np.isnan(low) else 8,
            "refusal_score": score,
            "refusal_score_low": low,
            "refusal_score_high": high,
            "refusal_score_unsteered": start,
            "opening_mass": 0.75,
            "opening_mass_low": np.nan,
            "opening_mass_high": np.nan,
            "opening_mass_unsteered": 0.75,
        }
    )


def made_sweep(
    folder: Path, *, n_angles: int = 4, n_prompts: int = 2, seeds: int = 2, **changes: Any
) -> SweepResult:
    """A finished sweep: the method, and random planes of several seeds, both on both classes.

    The method's score is 2 cos θ for every prompt, that of the random planes 2 + the seed.
    """
    angles = tuple(round(360 * place / n_angles, 6) for place in range(n_angles))
    grids = [
        {"model": "made-up", "angles_deg": angles},
        {
            "model": "made-up",
            "angles_deg": angles,
            "plane": "RandomPlane(seed={seed})",
            "seed": tuple(range(seeds)),
        },
    ]
    config = SweepConfig(grid=grids, scores=("answers", "refusal_score"))
    rows, groups, plain = [], [], []
    for group in config.groups():
        seed = group.arm.seed
        groups.append(
            {**group.columns, "key": "k", "steered_sites": "L0.ln1_out", "n_sites": 1}
            | {"problem": None}
        )
        for index in range(n_prompts):
            asked = {"prompt_index": index, "prompt": f"{group.prompt_class} prompt {index}"}
            for angle in group.angles_deg:
                score = 2 * np.cos(np.deg2rad(angle)) if seed is None else 2.0 + seed
                text = f"{index} at {angle:g} " + "one two three four five six seven eight"
                rows.append(
                    {**group.columns, **asked, "angle_deg": angle, "response": text}
                    | {"refused": score > 0, "refused_phrases": score > 0}
                    | {"refusal_score": score, "opening_mass": 0.75}
                )
            if seed is None:
                own = {"response": f"{index} unsteered, one two three four five six seven"}
                values = {"refused": True, "refusal_score": 2.0, "opening_mass": 0.75}
                place = {"part": group.part, "prompt_class": group.prompt_class}
                where = {"model": "made-up", "dataset": "refusal", **place}
                plain.append({**where, **asked, "angle_deg": np.nan, **own, **values})
    table = pd.DataFrame(rows).astype({"seed": "Int64"}).assign(**changes)
    group_table = pd.DataFrame(groups).astype({"seed": "Int64"})
    unsteered = pd.DataFrame(plain)
    assert {*UNSTEERED_COLUMNS} <= {*unsteered}
    result = SweepResult(config, table, group_table, (), unsteered)
    save(result, CellStore.claim(folder))
    return result
