"""A detector on a published encoder: its weights are taken over; another modality is refused unless it is meant."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fmct.errors import ConfigError, DataError
from fmct.lesions.networks import build_detector, with_encoder
from fmct.lesions.settings import LesionConfig
from fmct.models.lesion_segmenter import LesionNetworkConfig
from fmct.preprocess import InputSpec, Preprocessing
from fmct.publish.folder import write_encoder
from fmct.windows import Window
from tests.lesions.small_brains import config
from tests.publish.tiny import CONFIG, FACTS, PREPROCESSING, tiny_weights

SPEC = InputSpec(size_voxels=(16, 16, 16), spacing_mm=(3.0, 3.0, 3.0))
ONE = Preprocessing((Window(-160, 240),), SPEC)


def published(folder: Path, preprocessing: Preprocessing) -> Path:
    weights = tiny_weights(channels=preprocessing.channels)
    return write_encoder(folder, weights, CONFIG, preprocessing, facts=FACTS)


def on(encoder: Path, *, kind: str = "encoder", domain_jump: bool = False) -> LesionConfig:
    made = config(encoder.parent / "run")
    network = LesionNetworkConfig(kind=kind, decoder_width=8, stem_channels=4)
    return replace(made, propose=replace(made.propose, network=network, encoder=str(encoder), domain_jump=domain_jump))


def test_a_ct_encoder_is_for_mr_only_where_that_is_meant(tmp_path: Path) -> None:
    """Issue: CT and MR models can never be mixed up; a domain jump has to be said."""
    ct = published(tmp_path / "ct", ONE)
    with pytest.raises(DataError, match="takes CT, and the series is MR"):
        with_encoder(on(ct))
    known, encoder = with_encoder(on(ct, domain_jump=True))
    assert encoder is not None
    detector = build_detector(known.propose, 0, encoder=encoder)
    weights = tiny_weights(channels=1)
    assert all(torch.equal(value, weights[name]) for name, value in detector.encoder.state_dict().items())
    output = detector(torch.rand(1, 2, 16, 16, 16), torch.full((1, 3), 3.0))
    assert output.voxels.shape == (1, 1, 16, 16, 16)


def test_an_encoder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    two = published(tmp_path / "two", PREPROCESSING)
    with pytest.raises(ConfigError, match="has to take one channel; it takes 2"):
        with_encoder(on(two, domain_jump=True))
    one = published(tmp_path / "one", ONE)
    with pytest.raises(ConfigError, match=r"goes with propose\.network\.kind=encoder"):
        with_encoder(on(one, kind="conv", domain_jump=True))
    plainly = config(tmp_path / "run")
    assert with_encoder(plainly) == (plainly, None)
