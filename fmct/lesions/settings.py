"""The configuration of a lesion detector: one block a stage. See the docstrings of each for its keys."""

from dataclasses import dataclass, field

from fmct.config import MISSING
from fmct.data.cohort import CohortConfig
from fmct.data.lesion_patches import Augmentation
from fmct.errors import ConfigError
from fmct.lesions.cleanup import CleanupRules
from fmct.lesions.preparation import PreparationConfig
from fmct.models.lesion_segmenter import LesionNetworkConfig
from fmct.tasks.lesion_discrimination import DistillationConfig, PatchObjective, TeacherObjective
from fmct.tasks.lesion_proposal import VoxelObjective
from fmct.train.engine import EngineConfig
from fmct.train.optim import OptimConfig
from fmct.train.schedule import ScheduleConfig
from fmct.train.session import RunConfig

POSITIVES = ("lesions", "tiles")


@dataclass(frozen=True)
class PhaseConfig:
    """How one network is trained. patch: voxels (z, y, x). negatives: drawn for each positive, an exact ratio."""

    steps: int = 400
    batch_size: int = 8
    patch: list[int] = field(default_factory=lambda: [24, 24, 24])
    negatives: int = 1
    learning_rate: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(peak=2e-3, start=0.0, end=1e-5, warmup=0.05)
    )
    weight_decay: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(peak=0.01, kind="constant"))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(clip=1.0))
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or len(self.patch) != 3 or min(self.patch) < 8:
            raise ConfigError(
                f"training: steps and batch_size are at least 1, patch three sides of at least 8; got {self.steps}, "
                f"{self.batch_size} and {self.patch}."
            )


def candidate_phase() -> PhaseConfig:
    """Return the training on candidates: they stay in the middle of their patch, as that is what is judged."""
    return PhaseConfig(augmentation=Augmentation(shift=[1, 1, 1]))


@dataclass(frozen=True)
class ProposeConfig:
    """The detector. encoder: folder of a published encoder of one channel for network.kind encoder, else from scratch;
    domain_jump lets it be of another modality. positives: patches around `lesions`, or all `tiles` of the patch's size,
    positive where one holds a lesion voxel. mining: rounds in which its own false positives on the training series are
    added to the negatives, of whose draws they get hard_share; mined: how many of a series. threshold: of a candidate's
    voxels; overlap: of tiles in prediction; connectivity: of a candidate.
    """

    network: LesionNetworkConfig = field(default_factory=LesionNetworkConfig)
    encoder: str = ""
    domain_jump: bool = False
    objective: VoxelObjective = field(default_factory=VoxelObjective)
    training: PhaseConfig = field(default_factory=lambda: PhaseConfig(patch=[32, 32, 32]))
    positives: str = "lesions"
    mining: int = 1
    hard_share: float = 0.5
    mined: int = 20
    threshold: float = 0.2
    overlap: float = 0.25
    connectivity: int = 26

    def __post_init__(self) -> None:
        if self.positives not in POSITIVES:
            raise ConfigError(f"propose.positives: expected one of {', '.join(POSITIVES)}, got {self.positives!r}.")
        if not 0 < self.threshold < 1 or not 0 <= self.overlap < 1 or self.mining < 0 or self.mined < 1:
            raise ConfigError(
                "propose: threshold lies between 0 and 1, overlap in [0, 1), mining is not negative, mined at least 1."
            )


@dataclass(frozen=True)
class DiscriminateConfig:
    """Teacher and student. teacher_items: patches to learn from: `candidates` of the detector (and lesions it missed),
    or, for the teacher alone, `tiles`. hard_share: of the negatives, those that are false candidates; the others are
    tissue without a lesion, as are all where the detector makes no false candidate. threshold: of the
    student's probability, at which a candidate stays.
    """

    teacher: LesionNetworkConfig = field(default_factory=LesionNetworkConfig)
    student: LesionNetworkConfig = field(default_factory=lambda: LesionNetworkConfig(width=8))
    teacher_items: str = "candidates"
    hard_share: float = 0.8
    objective: TeacherObjective = field(default_factory=TeacherObjective)
    student_objective: PatchObjective = field(default_factory=PatchObjective)
    distil: DistillationConfig = field(default_factory=DistillationConfig)
    teacher_training: PhaseConfig = field(default_factory=candidate_phase)
    student_training: PhaseConfig = field(default_factory=candidate_phase)
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.teacher_items not in ("candidates", "tiles"):
            raise ConfigError(f"discriminate.teacher_items: expected candidates or tiles, got {self.teacher_items!r}.")
        if self.teacher_training.patch != self.student_training.patch:
            raise ConfigError("discriminate: teacher and student see the same patches: give both the same patch.")


@dataclass(frozen=True)
class EvaluateConfig:
    """What counts as found; see fmct.metrics.lesions.MatchingRule. split: which series. ignore: a folder of masks,
    matched as the lesions' are, of regions that count neither way (doubtful findings, mimics), nor are negatives to
    learn from. resamples: of intervals.
    """

    split: str = "test"
    ignore: str = ""
    hit: str = "near"
    tolerance_mm: float = 0.0
    connectivity: int = 26
    one_to_one: bool = True
    duplicates: str = "ignore"
    resamples: int = 2000


@dataclass(frozen=True)
class LesionConfig:
    """A lesion detector. lesion_sign: `dark` (T2*, SWI) or `bright` (QSM, nodules in CT); there is no default.

    stage: `all`, or one of normalise, propose, discriminate, clean, evaluate. train_split: whom they learn from.
    """

    output: str = MISSING
    lesion_sign: str = MISSING
    data: CohortConfig = field(default_factory=CohortConfig)
    stage: str = "all"
    train_split: str = "train"
    seed: int = 0
    prepare: PreparationConfig = field(default_factory=PreparationConfig)
    propose: ProposeConfig = field(default_factory=ProposeConfig)
    discriminate: DiscriminateConfig = field(default_factory=DiscriminateConfig)
    clean: CleanupRules = field(default_factory=CleanupRules)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    title: str = "Lesions found"
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(kind="torch"))
    run: RunConfig = field(default_factory=lambda: RunConfig(save_every=200, measure_peak=False))
