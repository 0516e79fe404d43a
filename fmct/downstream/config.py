"""The configuration that every fine-tuning recipe shares: what to start from, on which patients, for how long."""

from dataclasses import dataclass, field, replace

from fmct.config import MISSING
from fmct.data.cohort import CohortConfig
from fmct.data.window_config import WindowsConfig
from fmct.downstream.repeat import RepeatConfig
from fmct.errors import ConfigError
from fmct.models.encoder import EncoderConfig
from fmct.models.unet import UNetConfig
from fmct.normalise import Normalisation
from fmct.tasks.backbone import LoraConfig
from fmct.train.engine import EngineConfig
from fmct.train.optim import OptimConfig
from fmct.train.schedule import ScheduleConfig, constant
from fmct.train.session import RunConfig
from fmct.windows import Window

DECISIONS = ("cls", "volume", "fusion")
UNITS = ("patient", "series")


@dataclass(frozen=True)
class InputConfig:
    """How a series becomes input where no encoder folder says so. See fmct.preprocess.InputSpec and Window.

    normalisation: of MR, in place of windows (fmct.normalise). lesion_sign: of a run that looks for lesions.
    """

    windows: list[Window] = field(default_factory=list)
    spacing_mm: list[float] | None = None
    overlap: float = 0.25
    skip_air: float = 0.05
    modality: str = "CT"
    normalisation: Normalisation = field(default_factory=Normalisation)
    lesion_sign: str = ""


@dataclass(frozen=True)
class ShotsConfig:
    """A draw of few training patients. patients: how many; 0 takes all.

    Draws of one `seed` are nested: the patients of a smaller draw are in every larger one. balanced: that many patients
    with and as many without the first target, which needs labels.
    """

    patients: int = 0
    seed: int = 0
    balanced: bool = False

    def __post_init__(self) -> None:
        if self.patients < 0 or self.seed < 0:
            raise ConfigError(f"shots: patients and seed are not negative; got {self.patients} and {self.seed}.")


@dataclass(frozen=True)
class SchedulesConfig:
    """What changes over the run. ramp: the share of the terms between and within phases, 0 to 1 (nct_pe alone)."""

    learning_rate: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(peak=1e-4, start=0.0, end=1e-6, warmup=0.05)
    )
    weight_decay: ScheduleConfig = field(default_factory=lambda: constant(0.05))
    ramp: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(peak=1.0, start=0.0, warmup=0.1, kind="constant")
    )


@dataclass(frozen=True)
class ValidationConfig:
    """What follows the last update (and every `every` updates, 0: only the last): predictions for a split.

    They choose the operating point, which is then frozen in RUN/decision.json; an empty split leaves all of it out.
    decision: what a patient's score is:
    `cls` (probability), `volume` (mm³ of components), `fusion` of both. rule: how the threshold is chosen among the
    patients of `split`: `sensitivity` (highest specificity with at least `level` of it), `specificity`, `youden`.
    midway: put the threshold between two scores, not at one (fmct.metrics.operating_point.midway; rule cls alone).
    targets: those that get a threshold, all where empty. unit: what is one case, `patient` (the largest score and label
    of its series) or `series`. calibrate: fit a temperature on the split first (rule cls alone). abstain: [low, high]
    of the probability in which a call is uncertain, widened where the threshold lies outside; [] for none.
    component_probability, min_volume_mm3: a component of the mask counts when its mean probability and volume reach
    them; without the former, the probability that the split chose for the mask, every component of that volume counts.
    """

    every: int = 0
    split: str = "validation"
    decision: str = "cls"
    rule: str = "sensitivity"
    level: float = 0.95
    targets: list[str] = field(default_factory=list)
    unit: str = "patient"
    calibrate: bool = False
    midway: bool = False
    abstain: list[float] = field(default_factory=list)
    component_probability: float | None = None
    min_volume_mm3: float = 20.0

    def __post_init__(self) -> None:
        band = self.abstain
        if self.unit not in UNITS or (band and not (len(band) == 2 and 0 < band[0] <= band[1] < 1)):
            raise ConfigError(
                f"validation: unit is one of {', '.join(UNITS)}, and abstain [low, high] within 0 to 1 or []; got "
                f"{self.unit!r} and {list(band)}."
            )
        if (self.calibrate or self.midway or band) and self.decision != "cls":
            raise ConfigError(
                f"validation: calibrate, midway and abstain are of probabilities; decision is {self.decision!r}."
            )
        if self.every < 0 or self.decision not in DECISIONS:
            raise ConfigError(
                f"validation: every is not negative, and decision one of {', '.join(DECISIONS)}; got {self.every} and "
                f"{self.decision!r}."
            )


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning run. A recipe's Config adds its network and its objective.

    encoder: folder or hub id of a published encoder; its preprocessing is the run's. from_scratch: the control: the
    same network, data and budget from random weights. mode: `frozen` (heads only), `lora`, `full` (layer-wise decay:
    optim.layer_decay). architecture and input: of a run without an encoder folder. unet: a convolutional network
    in the encoder's place, always from scratch. allow_overlap: train although the encoder has seen series of the test
    split; the run then says so wherever it reports.
    steps, batch_size: updates, and windows per update over all ranks. data: the cohort; windows: what is cut of it.
    scratch_layer_scale: initial LayerScale of a transformer from scratch; 1 is a transformer without it, as the small
    values that help long pretraining keep a short run from moving.
    repeat: the same over several seeds, or draws of few patients, each in a folder below output.
    """

    recipe: str = MISSING
    output: str = MISSING
    seed: int = 0
    steps: int = MISSING
    batch_size: int = MISSING
    encoder: str = ""
    from_scratch: bool = False
    mode: str = "full"
    lora: LoraConfig = field(default_factory=LoraConfig)
    architecture: EncoderConfig | None = None
    unet: UNetConfig | None = None
    input: InputConfig | None = None
    scratch_layer_scale: float | None = 1.0
    allow_overlap: bool = False
    data: CohortConfig = field(default_factory=CohortConfig)
    windows: WindowsConfig = field(default_factory=WindowsConfig)
    workers: int = 2
    shots: ShotsConfig = field(default_factory=ShotsConfig)
    schedules: SchedulesConfig = field(default_factory=SchedulesConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(layer_decay=0.75, encoder_multiplier=0.1, last_layer="", clip=1.0)
    )
    engine: EngineConfig = field(default_factory=EngineConfig)
    run: RunConfig = field(default_factory=RunConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    repeat: RepeatConfig = field(default_factory=RepeatConfig)

    @property
    def pretrained(self) -> bool:
        """Whether the run begins with an encoder's weights."""
        return bool(self.encoder) and not self.from_scratch and self.unet is None


def rates_of(config: FineTuning) -> OptimConfig:
    """Return the optimiser's settings: without pretrained weights there is nothing to spare, so no layer is slowed."""
    if config.pretrained:
        return config.optim
    return replace(config.optim, layer_decay=1.0, encoder_multiplier=1.0, patch_embed_multiplier=1.0)
