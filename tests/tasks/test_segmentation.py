"""Segmentation: what contributes, and that what is exported is what was trained, for a transformer and a U-Net."""

import pytest
import torch

from fmct.errors import ArtefactError, CheckpointError
from fmct.models.encoder import EncoderConfig
from fmct.models.segmenter import SegmenterConfig
from fmct.models.unet import UNetConfig
from fmct.tasks import segmentation
from fmct.tasks.backbone import describe
from fmct.tasks.kinds import KINDS, kind_named
from fmct.tasks.segmentation import Segmentation
from tests.tasks.batches import ENCODER, batch

SPACING = (3.0, 3.0, 3.0)
DECODER = SegmenterConfig(taps=2, width=16, stem_channels=8)
UNET = UNetConfig(filters=[4, 8, 8])


@pytest.mark.parametrize("backbone", [ENCODER, UNET], ids=["transformer", "unet"])
def test_the_exported_network_is_the_trained_one(backbone: EncoderConfig | UNetConfig) -> None:
    architecture = segmentation.describe_network(describe(backbone), DECODER)
    network = segmentation.build_network(architecture, in_channels=1, spacing_mm=SPACING)
    task = Segmentation(network)
    given = batch([1, 0, 1], has_mask=[True, True, False])
    output = task(given, {})
    assert output.health["count/segmentation"] == 2
    output.loss.backward()
    predictor, slim = segmentation.trained_predictor(architecture, task.state_dict(), in_channels=1, spacing_mm=SPACING)
    assert slim == architecture
    with torch.no_grad():
        own, theirs = (net.eval()(given.volumes, given.spacing).logits for net in (network, predictor))
    assert torch.equal(own, theirs)


def test_foreign_parameters_and_state_are_refused() -> None:
    architecture = segmentation.describe_network(describe(ENCODER), DECODER)
    with pytest.raises(ArtefactError, match="do not fit"):
        segmentation.trained_predictor(architecture, {}, in_channels=1, spacing_mm=SPACING)
    with pytest.raises(ArtefactError, match="neither an encoder nor a unet"):
        segmentation.build_network({**architecture, "encoder": {}}, in_channels=1, spacing_mm=SPACING)
    task = Segmentation(segmentation.build_network(architecture, in_channels=1, spacing_mm=SPACING))
    assert task.run_state() == {}
    with pytest.raises(CheckpointError, match="another task"):
        task.load_run_state({"teacher": {}})


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_can_be_built_again(kind: str) -> None:
    module = kind_named(kind, "here")
    assert callable(module.build_predictor)
    assert callable(module.trained_predictor)
