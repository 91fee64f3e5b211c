"""Which prompts and which behaviour the options mean, and the methods that they name by text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

import ss_lens
from ss_lens.cli import console, options
from ss_lens.core.errors import UserError

if TYPE_CHECKING:
    from ss_lens.geometry.operators import Operator
    from ss_lens.steering.positions import Positions

Behaviour = Annotated[
    str | None,
    typer.Option(
        help="refusal, sentiment, formality, language, or a .yaml file.", show_default="refusal"
    ),
]
Positive = Annotated[
    str | None,
    typer.Option(help="In place of --dataset, the prompts that show it: a file, or a Hub id."),
]
Negative = Annotated[
    str | None, typer.Option(help="Those that do not; beside --positive, from a file or the Hub.")
]
ClassValues = Annotated[
    str | None,
    typer.Option(
        metavar="VALUE=CLASS,…",
        help="What the class column of --dataset holds, like toxic=positive,clean=negative.",
    ),
]
Direction = Annotated[
    str | None,
    typer.Option(help="How a site's direction is found.", show_default="DifferenceOfMeans()"),
]
Choice = Annotated[
    str | None,
    typer.Option(help="Which direction becomes the first axis.", show_default="MaxMeanCosine()"),
]
Plane = Annotated[
    str | None, typer.Option(help="How the plane is completed.", show_default="PC1()")
]
Where = Annotated[
    str | None,
    typer.Option(help="Tokens to steer, like PromptOnly() or LastPrompt(k=1).", show_default="all"),
]
Temperature = Annotated[float, typer.Option(help="0 is greedy; above 0 samples.")]
SamplingSeed = Annotated[int, typer.Option("--seed", help="Of the sampling.")]


def behaviour(given: str | None, dataset: ss_lens.ContrastiveDataset | None = None) -> Any:
    """The behaviour, on other prompts where they are given; ``None`` for refusal.

    Refusal is what everything measures without a behaviour, on prompts that the model brings.
    """
    if given is None or given == "refusal":
        return None
    found = ss_lens.load_behaviour(given)
    return found if dataset is None else found.with_dataset(dataset)


def given_prompts(
    dataset: str | None, positive: str | None, negative: str | None, class_values: str | None
) -> ss_lens.ContrastiveDataset | None:
    """The prompts that the options name; ``None`` where they name none."""
    if positive is not None or negative is not None:
        options.refuse_beside(
            "--positive or --negative", dataset=dataset, class_values=class_values
        )
        return ss_lens.load_dataset(positive=positive, negative=negative)
    if class_values is not None and dataset is None:
        raise UserError(
            "--class-values got no --dataset, expected a file whose class column they read; name "
            "one with --dataset, or leave them out."
        )
    if dataset is None:
        return None
    if class_values is None:
        return ss_lens.load_dataset(dataset)
    return ss_lens.load_dataset(dataset, class_values=_class_values(class_values))


def prompts(
    model: str,
    dataset: str | None,
    positive: str | None = None,
    negative: str | None = None,
    class_values: str | None = None,
    limit: int | None = None,
    named: str | None = None,
) -> ss_lens.ContrastiveDataset:
    """The prompts that are asked for; else those of the behaviour ``named``, or of the model."""
    given = given_prompts(dataset, positive, negative, class_values)
    followed = behaviour(named, given)
    if given is None and followed is not None:
        given = followed.dataset
    if given is None:
        return options.dataset(None, model, limit)
    return options.first(given, limit)


def _class_values(text: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for part in text.split(","):
        value, equals, label = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise UserError(
                f"--class-values {text!r} has the part {part!r}, expected VALUE=positive or "
                "VALUE=negative; write for instance toxic=positive,clean=negative."
            )
        if found.setdefault(value.lower(), label) != label:
            raise UserError(
                f"--class-values {text!r} maps {value!r} to {found[value.lower()]} and to {label}, "
                "expected one class for each value; keep one."
            )
    return found


def methods(direction: str | None, choice: str | None, plane: str | None) -> dict[str, Any]:
    """The methods of :func:`ss_lens.calibrate` that are named by text."""
    from ss_lens.calibration.directions import DirectionMethod
    from ss_lens.calibration.global_direction import GlobalChoice
    from ss_lens.calibration.planes import PlaneMethod
    from ss_lens.core.values import read_value

    told = {
        "direction": (direction, DirectionMethod),
        "choice": (choice, GlobalChoice),
        "plane": (plane, PlaneMethod),
    }
    return {
        name: read_value(text, get_args(kinds), name)
        for name, (text, kinds) in told.items()
        if text is not None
    }


def or_operator(context: typer.Context, angle: float | None) -> float | None:
    """The angle, refused where it is missing and no operator stands in its place."""
    if angle is None and context.params.get("operator") is None:
        raise typer.BadParameter('give degrees, or --operator "RotateTo(angle_deg=0)".')
    return angle


def operator(angle: float | None, text: str | None) -> Operator:
    """``RotateBy`` of an angle, or the operator that a text writes."""
    from ss_lens.core.values import read_value
    from ss_lens.geometry.operators import Operator

    if angle is not None and text is not None:
        raise UserError(
            "--angle and --operator got both, expected one of them; write the angle into the "
            'operator, like --operator "RotateTo(angle_deg=0)".'
        )
    if text is None:
        return ss_lens.RotateBy(cast(float, angle))
    return cast("Operator", read_value(text, Operator.kinds(), "operator"))


def positions(text: str | None) -> Positions:
    """The tokens to steer."""
    from ss_lens.core.values import read_value
    from ss_lens.steering.positions import ALL_POSITIONS, Positions

    if text is None:
        return ALL_POSITIONS
    return cast("Positions", read_value(text, get_args(Positions), "positions"))


def out_folder(given: Path | None, named: str | None) -> Path:
    """Where a run goes: ``--out``, or ``runs`` and the behaviour's name."""
    return given or Path("runs") / (Path(named).stem if named else "refusal")


def note_behaviour(found: Any) -> None:
    """Say which behaviour is followed, and on which prompts."""
    if found is not None:
        console.note(f"behaviour {found.name}, on {found.dataset.name}")
