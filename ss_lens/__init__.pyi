"""The public names and where they live; each is loaded on first use, from this list."""

from .activations.activations import (
    Activations as Activations,
    Evidence as Evidence,
)
from .activations.capture import capture as capture
from .activations.spec import CaptureSpec as CaptureSpec
from .activations.store import Store as Store
from .behaviours.behaviour import Behaviour as Behaviour
from .behaviours.files import load_behaviour as load_behaviour
from .calibration.calibration import Calibration as Calibration, calibrate as calibrate
from .calibration.dictionary import Dictionary as Dictionary
from .calibration.directions import (
    CentredPCA as CentredPCA,
    DifferenceOfMeans as DifferenceOfMeans,
    Fisher as Fisher,
    Logistic as Logistic,
    PairedPCA as PairedPCA,
)
from .calibration.global_direction import (
    AtSite as AtSite,
    BestSeparation as BestSeparation,
    Consensus as Consensus,
    MaxMeanCosine as MaxMeanCosine,
)
from .calibration.planes import (
    PC1 as PC1,
    ClassMeans as ClassMeans,
    Grassmann as Grassmann,
    MatchedRandomPlane as MatchedRandomPlane,
    NextBest as NextBest,
    RandomPlane as RandomPlane,
    RandomSecond as RandomSecond,
)
from .calibration.recipe import Recipe as Recipe
from .calibration.site_selection import (
    Discriminative as Discriminative,
    EveryKth as EveryKth,
    Explicit as Explicit,
    Half as Half,
    RandomSites as RandomSites,
    TopK as TopK,
    Uniform as Uniform,
)
from .core.errors import UserError as UserError
from .datasets.contrastive import (
    ContrastiveDataset as ContrastiveDataset,
    load_dataset as load_dataset,
)
from .experiments.ablations.config import AblationConfig as AblationConfig
from .experiments.ablations.result import (
    AblationResult as AblationResult,
    load_ablations as load_ablations,
)
from .experiments.ablations.run import run_ablations as run_ablations
from .experiments.choose_angle import (
    AngleChoice as AngleChoice,
    AngleCriterion as AngleCriterion,
    choose_angle as choose_angle,
)
from .experiments.config import SweepConfig as SweepConfig, load_sweep_config as load_sweep_config
from .experiments.dial.config import RunConfig as RunConfig
from .experiments.dial.folder import load_run as load_run
from .experiments.dial.run import Run as Run
from .experiments.main_run import run_main_job as run_main_job
from .experiments.sweeps.result import SweepResult as SweepResult, load_sweep as load_sweep
from .experiments.sweeps.run import run_sweep as run_sweep
from .exports.export import export as export
from .exports.verify import Export as Export, verify_export as verify_export
from .generation.angle_batch import sweep_angles as sweep_angles
from .generation.generate import generate as generate
from .generation.stream import stream as stream
from .geometry.operators import (
    Ablate as Ablate,
    ActAdd as ActAdd,
    Add as Add,
    Reflect as Reflect,
    RotateBy as RotateBy,
    RotateScale as RotateScale,
    RotateTo as RotateTo,
    RotateToIfAligned as RotateToIfAligned,
    RotateToward as RotateToward,
    SetAngle as SetAngle,
)
from .geometry.plane import Plane as Plane
from .integrations.llama_cpp import verify_server as verify_server
from .models.chat import ChatFormat as ChatFormat
from .models.load import load_model as load_model
from .models.sites import Site as Site
from .scoring.refusal_classifier.classify import classify_refusal as classify_refusal
from .steering.gates import Gate as Gate
from .steering.positions import (
    AllPositions as AllPositions,
    GeneratedOnly as GeneratedOnly,
    LastPrompt as LastPrompt,
    PromptOnly as PromptOnly,
)
from .steering.prompt_sites import PromptSites as PromptSites
from .steering.steer import steer as steer, steer_all as steer_all
from .steering.trace import Trace as Trace
