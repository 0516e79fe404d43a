"""The gate after a short training on SYNTHETIC vessels: what moves it, what must not, and what it does not judge."""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest

from fmct.contrast.gate import ContrastCall, ContrastGate, why_not
from fmct.contrast.tile_reader import read_contrast
from fmct.errors import ArtefactError, DataError
from fmct.publish.decision import Decision
from fmct.volume import Volume
from tests.contrast import bright_vessels
from tests.contrast.conftest import Trained
from tests.publish import tiny_models


def changed(volume: Volume, voxels: np.ndarray) -> Volume:
    return dataclasses.replace(volume, voxels=voxels)


def test_probability_rises_with_enhancement(trained: Trained) -> None:
    """Reference A.12 item 8: p rises monotonically over 0, 50, 100, 150, 250 HU inside the tube, on new bodies."""
    for seed in (900, 901, 902):
        calls = [trained.gate.predict(bright_vessels.volume(seed, rise=hu)) for hu in (0, 50, 100, 150, 250)]
        found = [call.probability for call in calls]
        assert all(low < high for low, high in pairwise(found)), found
        assert calls[0].decision == "no"
        assert found[-1] > 0.5 > found[0]


def test_hu_matter_and_sides_do_not(trained: Trained) -> None:
    """Reference A.12 item 7: a constant added to all HU changes the prediction; left and right exchanged do not."""
    volume = bright_vessels.volume(910, "portal")
    call = trained.gate.predict(volume)
    darker = np.where(volume.voxels > -500, volume.voxels - 120, volume.voxels).astype(np.int16)
    assert call.probability - trained.gate.predict(changed(volume, darker)).probability > 0.2
    turned = trained.gate.predict(changed(volume, np.ascontiguousarray(volume.voxels[:, :, ::-1])))
    assert turned.probability == pytest.approx(call.probability, abs=0.05)
    assert turned.decision == call.decision == "yes"


def test_any_coverage_will_do_and_tiles_say_where(trained: Trained) -> None:
    """Tiles go from feet to head with half of each shared, weights sum to one; a scan of one tile is that tile."""
    long = trained.gate.predict(bright_vessels.volume(920, "arterial", slices=60))
    short = trained.gate.predict(bright_vessels.volume(920, "arterial", slices=12))
    assert (long.decision, short.decision) == ("yes", "yes")
    assert len(short.tiles) == 1
    assert short.tiles[0][2] == pytest.approx(short.probability, abs=1e-6)
    assert short.tiles[0][3] == pytest.approx(1)
    assert sum(weight for _, _, _, weight in long.tiles) == pytest.approx(1, abs=1e-6)
    ends = [(low, high) for low, high, _, _ in long.tiles]
    assert ends[0][0] == pytest.approx(-60 * 6 / 2 - 3 + 3, abs=6)
    assert ends[-1][1] - ends[0][0] == pytest.approx(60 * 6, abs=1e-6)
    assert all(before[1] - after[0] >= 16 * 6 / 2 for before, after in pairwise(ends))


def test_the_same_scan_gives_the_same_call(trained: Trained) -> None:
    """Reference A.12 item 6: bit-equal alone or after others; no scan is a template for another."""
    volume = bright_vessels.volume(930, "delayed")
    gate = trained.gate
    first = gate.predict(volume)
    gate.predict(bright_vessels.volume(931))
    assert gate.predict(volume) == first
    upside_down = dataclasses.replace(volume, voxels=volume.voxels).oriented("IAR")
    assert gate.predict(upside_down) == first


@pytest.mark.parametrize(
    ("voxels", "says"),
    [
        (np.full((2, 40, 40), 40, np.int16), "a localiser or a few slices"),
        (np.full((20, 3, 40), 40, np.int16), "a localiser or a few slices"),
        (np.full((20, 20, 20), 40, np.int16), "every voxel is 40 HU"),
        (np.full((20, 20, 20), -1000, np.int16) + np.arange(20, dtype=np.int16), "no body"),
        (np.where(np.arange(8000).reshape(20, 20, 20) == 7, np.nan, 40.0).astype(np.float32), "1 voxels are NaN"),
    ],
    ids=["two slices", "localiser", "constant", "air", "NaN"],
)
def test_what_cannot_be_judged_is_uncertain_with_a_reason(trained: Trained, voxels: np.ndarray, says: str) -> None:
    """Reference A.12 item 13: 2 slices, a localiser, a constant volume, NaN: a status, never a silent probability."""
    affine = bright_vessels.volume(1).affine
    call = trained.gate.predict(Volume(voxels, affine))
    assert call.decision == "uncertain"
    assert says in call.reason
    assert math.isnan(call.probability)
    assert call.tiles == []


def test_another_modality_is_an_error(trained: Trained) -> None:
    """Reference A.12 item 13: an MR is refused by name."""
    volume = bright_vessels.volume(1)
    mr = Volume(volume.voxels.astype(np.float32), volume.affine, modality="MR", units="arbitrary")
    with pytest.raises(DataError, match="takes CT, and the series is MR"):
        trained.gate.predict(mr)


def test_the_band_makes_a_call_uncertain(trained: Trained) -> None:
    gate = trained.gate
    volume = bright_vessels.volume(940, "portal")
    p = gate.predict(volume).probability
    gate.model.decision = Decision(thresholds={"contrast": p}, abstain={"contrast": (p - 0.01, min(p + 0.01, 1.0))})
    assert gate.predict(volume).decision == "uncertain"
    gate.model.decision = Decision(thresholds={"contrast": p})
    assert gate.predict(volume).decision == "yes"  # a probability at its threshold is positive
    gate.model.decision = None
    assert gate.predict(volume).decision == "uncertain"  # no operating point: nothing is claimed


def test_the_temperature_divides_every_logit(trained: Trained) -> None:
    gate = trained.gate
    volume = bright_vessels.volume(941, "arterial")
    logit = float(read_contrast(gate.model, gate.model.preprocessing.scan(volume), precision="fp32").logits[0])
    gate.model.decision = Decision(thresholds={"contrast": 0.5}, temperature={"contrast": 3.0})
    assert gate.predict(volume).probability == pytest.approx(1 / (1 + math.exp(-logit / 3)), rel=1e-9)
    assert gate.predict(volume).baseline_probability is not None


def test_phase_and_time_come_along(trained: Trained) -> None:
    call = trained.gate.predict(bright_vessels.volume(950))
    assert isinstance(call, ContrastCall)
    assert call.phase == "native"
    assert call.seconds is not None
    assert sum(call.phases.values()) == pytest.approx(1, abs=1e-6)


def test_another_kind_of_model_is_refused() -> None:
    with pytest.raises(ArtefactError, match="cannot say whether there is contrast"):
        ContrastGate(tiny_models.in_memory("classifier"))


def test_a_scan_that_can_be_judged_has_no_reason() -> None:
    volume = bright_vessels.volume(2)
    assert why_not(volume.voxels, volume.spacing) == ""
    assert why_not(volume.voxels // 2, volume.spacing, scale=2.0) == ""
