"""What the tables of arXiv 2601.19375 and the controls they lack consist of, and at what size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from ss_lens.behaviours.behaviour import Behaviour
from ss_lens.behaviours.files import behaviour_beside_refusal
from ss_lens.behaviours.measures import REFUSAL, Measures
from ss_lens.core.checks import check_flag, check_is, check_one_of, check_whole
from ss_lens.core.errors import UserError
from ss_lens.experiments.config import Grid, Part, PromptClass, Split, SweepConfig
from ss_lens.experiments.dial.scan import CRITERIA
from ss_lens.experiments.grid import Arm
from ss_lens.judges import read_judge
from ss_lens.scoring.registry import ANSWERS

FULL = "Selective Steering"
UNSTEERED = "unsteered"
PUBLISHED = (FULL, "SAS", "AAS", "Activation Addition", "Directional Ablation")
"""The methods of the paper's own tables."""
CRITERION = CRITERIA["weakened"]
"""The main job's: least refusal of harmful prompts where at most a tenth of answers collapses."""
SELECTIONS = (
    *("site", "block", "uniform"),
    *("Discriminative(margin=0.02)", "Discriminative(margin=0.05)"),
    *("TopK(k=8)", "TopK(k=16)", "TopK(k=24)"),
)
"""Rules whose sites and dial are compared on dev, beside ``Discriminative(centred=True)``."""
WEAKENING = (90.0, 180.0)
"""Between these angles, and unsteered, rules are compared: there the dial is deepest."""
UNIFORM_PLANE = "RandomPlane(seed={})"
"""The text of a uniform random plane, with a place for a seed."""
MATCHED_NULL = "random planes, equal energy"
NULLS = ("random planes, uniform", MATCHED_NULL, "random site sets")
"""What the method is ranked among."""
SECOND_AXIS = "random second axis"
CENTRED = "Discriminative(centred=True)"
ADDED = (0.25, 0.5, 1.0, 2.0)
"""Strengths of Activation Addition that dev chooses from: in units of the mean gap between the
classes along the direction, against it."""
PUBLISHED_WRAP = "Please respond the following request. \nRequest: {prompt} \nAnswer: "
"""What the code published with arXiv 2601.19375 puts around every harmless prompt that it
calibrates on, and around no harmful one (``data/alpaca.json`` and ``data/advbench.json`` of
github.com/knoveleng/steering, the column ``prompt``)."""

ON_DEV = (ANSWERS, "refusal_score")
ON_TEST = (ANSWERS, "perplexity", "perplexity_steered", "refusal_score")
OF_ABLATIONS = (ANSWERS, "perplexity", "refusal_score")
ONE_PASS = ("refusal_score",)
BOTH: tuple[PromptClass, ...] = ("positive", "negative")
HARMFUL: tuple[PromptClass, ...] = ("positive",)


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        train: prompts per class to calibrate on; ``None`` is all that dev and test leave.
        dev, test: prompts per class.
        angles_deg: that dev chooses from.
        draws: of random sites; of the other random controls half as many.
        nulls: random planes of each kind and random site sets by the one-pass score.
        null_prompts: harmful test prompts that these are measured on, the first ones.
        null_angles_deg: where they are measured beside the method's angle, for bands over θ.
        tries: at most so many angles of a variant are answered on dev; strengths are few, and all.
    """

    train: int | None
    dev: int
    test: int
    max_new_tokens: int
    angles_deg: tuple[float, ...]
    draws: int
    nulls: int
    null_prompts: int
    tries: int
    null_angles_deg: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("dev", "test", "max_new_tokens", "draws", "nulls", "null_prompts", "tries"):
            check_whole(name, getattr(self, name), at_least=1)
        if self.train is not None:
            check_whole("train", self.train, at_least=1)


SIZES: Mapping[str, Size] = {
    "small": Size(96, 16, 24, 32, tuple(45.0 * i for i in range(8)), 2, 99, 12, 3),
    "full": Size(
        *(None, 32, 104, 256, tuple(10.0 * i for i in range(36)), 5, 199, 104, 36),
        null_angles_deg=tuple(45.0 * i for i in range(1, 8)),
    ),
}
"""``full`` has the paper's 104 test prompts and its 36 angles."""


@dataclass(frozen=True)
class PaperConfig:
    """What :func:`ss_lens.experiments.paper.run.run_paper` measures.

    Attributes:
        model: as :func:`ss_lens.load_model` takes it.
        size: how much.
        seed: of the split, the intervals and the tests.
        workers: processes or jobs that share the cells.
        cluster: ``local`` or ``slurm``; ``None`` is this process, and ``local`` for more workers.
        judges: of the answers to harmful test prompts, as :func:`ss_lens.judges.read_judge` reads
            them.
        keep_answers: whether answers to harmful prompts stay in full when the run is finished, and
            not as their first six words.
        behaviour: what is weakened in place of refusal: an embedded name or a YAML file.
    """

    model: str
    size: Size = field(default_factory=lambda: SIZES["small"])
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    workers: int = 1
    cluster: Literal["local", "slurm"] | None = None
    judges: tuple[str, ...] = ()
    keep_answers: bool = False
    behaviour: str | None = None

    def __post_init__(self) -> None:
        if self.measures.mass is None:
            raise UserError(
                f"the behaviour {self.measures.behaviour!r} has no openings or questions, expected "
                "some, since random planes are ranked by one pass over the prompts; add openings."
            )
        check_is("model", self.model, (str,), "a name such as 'qwen2.5-coder-1.5b'")
        check_is("size", self.size, (Size,), "SIZES['small'], SIZES['full'] or a Size(...)")
        check_whole("workers", self.workers, at_least=1)
        if self.cluster is not None:
            check_one_of("cluster", self.cluster, ("local", "slurm"))
        check_flag("keep_answers", self.keep_answers)
        for text in self.judges:
            read_judge(text)

    def sweep(
        self,
        cells: Mapping[Arm, tuple[float, ...]],
        part: Part,
        scores: tuple[str, ...],
        prompt_class: tuple[PromptClass, ...],
        first_prompts: int | None = None,
    ) -> SweepConfig:
        """The cells of some arms, measured on one part, or the first prompts of it."""
        return SweepConfig(
            grid=tuple(_grid(arm, angles) for arm, angles in cells.items()),
            split=Split(dev=self.size.dev, test=self.size.test, seed=self.seed),
            parts=(part,),
            prompt_class=prompt_class,
            scores=self._own(scores),
            behaviour=None if self.followed is None else self.behaviour,
            first_prompts=first_prompts,
            max_new_tokens=self.size.max_new_tokens,
            device=self.device,
            dtype=self.dtype,
            cluster=self.cluster or ("local" if self.workers > 1 else None),
            workers=self.workers,
        )

    @cached_property
    def followed(self) -> Behaviour | None:
        """The behaviour; ``None`` for refusal."""
        return behaviour_beside_refusal(self.behaviour)

    @property
    def measures(self) -> Measures:
        """What the behaviour's columns are called."""
        return REFUSAL if self.followed is None else self.followed.measures

    def _own(self, scores: tuple[str, ...]) -> tuple[str, ...]:
        """The behaviour's scores in place of refusal's, and what reads its answers."""
        if self.followed is None:
            return scores
        others = [name for name in scores if name != REFUSAL.score]
        own = [n for n in self.followed.scored_by if n != "behaviour_shown" or ANSWERS in scores]
        return (*others, *own)

    @property
    def rule_angles_deg(self) -> tuple[float, ...]:
        """At which rules of selection are compared."""
        low, high = WEAKENING
        return tuple(a for a in self.size.angles_deg if a == 0 or low <= a <= high)

    def as_json(self) -> dict[str, Any]:
        """JSON values; where the work is done is left out."""
        told = asdict(self)
        named = () if self.followed is None else ("behaviour",)
        return {name: told[name] for name in ("model", "size", "seed", "dtype", *named)}


def _grid(arm: Arm, angles: tuple[float, ...]) -> Grid:
    return Grid(
        model=(arm.model,),
        dataset=(arm.dataset,),
        operator=(arm.operator,),
        selection=(arm.selection,),
        plane=(arm.plane,),
        labels=("shuffled",) if arm.labels == "shuffled" else (True,),
        angles_deg=angles,
        seed=(arm.seed or 0,),
    )


@dataclass(frozen=True)
class Variant:
    """One row of a table, or one draw of it: what dev chooses from.

    Attributes:
        arms: with an operator each; several where a strength is chosen like an angle.
        angles_deg: of every arm that has angles.
    """

    table: Literal["methods", "ablations"]
    name: str
    arms: tuple[Arm, ...]
    angles_deg: tuple[float, ...]
    draw: int = 0

    def most_tries(self, tries: int) -> int:
        """Of its angles ``tries``, of its strengths all: the best by score is the strongest."""
        return max(tries, len(self.arms))

    @property
    def cells(self) -> dict[Arm, tuple[float, ...]]:
        return {arm: arm.angles_of(self.angles_deg) for arm in self.arms}


def full_method(config: PaperConfig, dataset: str) -> Arm:
    """``RotateBy`` at the discriminative sites, in the plane of PC1."""
    return Arm(model=config.model, dataset=dataset)


def variants(
    config: PaperConfig, dataset: str, sites: str, gap: float, gap_everywhere: float
) -> tuple[Variant, ...]:
    """All rows of the two tables.

    Args:
        config: what is measured.
        dataset: as an arm names it.
        sites: the full method's, like ``L3.ln1_out,L5.ln2_out``.
        gap: between the class means along the direction, the mean over these sites.
        gap_everywhere: the same over all sites.
    """
    size, same = config.size, f"Explicit(sites={sites!r})"

    def arm(**fields: Any) -> Arm:
        return Arm(model=config.model, dataset=dataset, **fields)

    def added(unit: float, selection: str) -> tuple[Arm, ...]:
        alphas = [float(f"{-strength * unit:.4g}") for strength in ADDED]
        return tuple(arm(operator=f"Add(alpha={a})", selection=selection) for a in alphas)

    methods: dict[str, tuple[Arm, ...]] = {
        FULL: (arm(),),
        "SAS": (arm(operator="RotateTo", selection="uniform"),),
        "SAS, discriminative sites": (arm(operator="RotateTo"),),
        "AAS": (arm(operator="RotateToIfAligned", selection="uniform"),),
        "Activation Addition": added(gap_everywhere, "uniform"),
        "Activation Addition, discriminative sites": added(gap, "site"),
        "Directional Ablation": (arm(operator="Ablate", selection="uniform"),),
    }
    lone: dict[str, Arm] = {
        "all sites": arm(selection="uniform"),
        "first half": arm(selection="Half(which='first')"),
        "second half": arm(selection="Half(which='second')"),
        "norm not kept": arm(operator="SetAngle"),
        "Ablate": arm(operator="Ablate"),
        "Reflect": arm(operator="Reflect"),
    }
    drawn: dict[str, tuple[Arm, ...]] = {
        "random sites": tuple(
            arm(selection=f"RandomSites(seed={i}, count={1 + sites.count(',')})")
            for i in range(size.draws)
        )
    }
    for name, plane in (
        (SECOND_AXIS, "RandomSecond(seed={})"),
        ("random plane", UNIFORM_PLANE),
        ("random plane, matched energy", matched_plane(sites)),
    ):
        few = range(max(1, size.draws // 2))
        drawn[name] = tuple(arm(plane=plane.format(i), selection=same) for i in few)
    drawn["shuffled labels"] = tuple(
        arm(labels="shuffled", seed=i, selection=same) for i in range(max(1, size.draws // 2))
    )
    return (
        *(Variant("methods", name, arms, size.angles_deg) for name, arms in methods.items()),
        Variant("ablations", FULL, (arm(),), size.angles_deg),
        Variant("ablations", "rotate by 180°", (arm(),), (180.0,)),
        Variant("ablations", "rotate by 90°", (arm(),), (90.0,)),
        Variant("ablations", "rotate by −90°", (arm(),), (270.0,)),
        *(Variant("ablations", name, (one,), size.angles_deg) for name, one in lone.items()),
        *(
            Variant("ablations", name, (one,), size.angles_deg, draw)
            for name, arms in drawn.items()
            for draw, one in enumerate(arms)
        ),
        # At 180° every second axis gives the same: both coordinates change their sign.
        *(
            Variant("ablations", f"{SECOND_AXIS}, {told}", (one,), (angle,), draw)
            for told, angle in (("90°", 90.0), ("−90°", 270.0))
            for draw, one in enumerate(drawn[SECOND_AXIS])
        ),
    )


def matched_plane(sites: str) -> str:
    """The text of a random plane with the energy of PC1's at ``sites``, with a place for a seed."""
    return "MatchedRandomPlane(seed={}, sites=" + repr(sites) + ")"


def cells_of(pairs: Iterable[tuple[Arm, float]]) -> dict[Arm, tuple[float, ...]]:
    """Angles by arm, each once, in the order of their first mention."""
    found: dict[Arm, dict[float, None]] = {}
    for arm, angle in pairs:
        found.setdefault(arm, {})[angle] = None
    return {arm: tuple(angles) for arm, angles in found.items()}


def union(plan: Iterable[Variant]) -> dict[Arm, tuple[float, ...]]:
    """The cells of all these variants."""
    return cells_of(
        (arm, angle)
        for variant in plan
        for arm, angles in variant.cells.items()
        for angle in angles
    )
