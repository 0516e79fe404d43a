"""Is there intravenous contrast, which phase, how many seconds after injection: one decision on tiles along the body.

    fmct finetune configs/finetune/contrast.yaml encoder=ENCODER data.store=STORE data.labels=labels.csv output=RUN

labels.csv has the columns patient, series, contrast (0, 1 or empty), phase (native, arterial, portal, delayed or empty)
and seconds. Tiles lie along the body's long axis alone, so that any body part and coverage will do: random places in
training, sliding with `overlap` in prediction. Research only, not a medical device.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from fmct import distributed
from fmct.contrast.labels import with_phases
from fmct.contrast.run_tables import conclude
from fmct.downstream.config import FineTuning
from fmct.downstream.run import Prepared, adapted, fine_tune, prepare
from fmct.downstream.validation import predictor_of
from fmct.errors import ConfigError
from fmct.models.contrast import ContrastNetworkConfig, targets_of
from fmct.publish.decision import read_decision
from fmct.publish.load_model import PublishedModel
from fmct.tasks.contrast import LABELS, Contrast, ContrastConfig, build_network, describe_network
from fmct.train.session import Options


@dataclass(frozen=True)
class Config(FineTuning):
    """A contrast run. network: pooling over tiles (attention, or mean as a baseline) and its outputs.

    overlap: share of a tile that the next one along the body shares with it, in prediction. test: the split that is
    predicted at the end beside validation's, by the model and the HU baseline.
    """

    recipe: str = "finetune.contrast"
    network: ContrastNetworkConfig = field(default_factory=ContrastNetworkConfig)
    objective: ContrastConfig = field(default_factory=ContrastConfig)
    overlap: float = 0.5
    test: str = "test"


def main(config: Config, options: Options, device: torch.device) -> int:
    """Train, and return the exit code."""
    prepared = _prepared(config)
    architecture = describe_network(prepared.backbone, config.network)
    network = prepared.build(build_network, architecture)
    adapted(network, config)
    task = Contrast(network, config.objective, tiles=config.windows.per_series)
    record = prepared.record("contrast", architecture, targets_of(config.network.phase), pool="bag")
    code = fine_tune(config, task, record, prepared, options, device)
    if code == 0 and config.validation.split and not options.replay and distributed.rank() == 0:
        _conclude(config, predictor_of(task, record, device), prepared)
    return code


def _conclude(config: Config, model: PublishedModel, prepared: Prepared) -> None:
    """Fit the HU baseline on the same splits, write both models' predictions, and print the table."""
    model.decision = read_decision(Path(config.output))
    rules = config.validation
    text = conclude(
        config.output, model, prepared.cohort, splits=[rules.split, config.test],
        rule=rules.rule, level=rules.level, abstain=rules.abstain,
    )  # fmt: skip
    print(text)


def _prepared(config: Config) -> Prepared:
    """Return the data with phases and times, and a beginning whose series become tiles along the body."""
    if config.unet is not None:
        raise ConfigError("unet: contrast is read off a transformer's tokens; leave `unet` out.")
    if list(config.data.targets) != [LABELS[0]] or config.data.masks:
        raise ConfigError(
            f"data.targets: this recipe learns [{LABELS[0]}] from labels alone; got {config.data.targets}."
        )
    prepared = prepare(config)
    start = replace(prepared.start, preprocessing=prepared.start.preprocessing.axial(config.overlap))
    return replace(prepared, start=start, cohort=with_phases(prepared.cohort, config.data.labels))
