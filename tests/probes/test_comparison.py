import json

import numpy as np
import pytest
import torch

from fmct.metrics.intervals import t_interval
from fmct.probes.comparison import ProbeReport, compare_patients, random_encoder, random_model
from fmct.publish.load import load_encoder
from tests.publish.tiny import tiny_encoder

PATIENTS = [f"p{k}" for k in range(8)]


def values(seed: int, mean: float) -> dict[str, float]:
    return dict(zip(PATIENTS, np.random.default_rng(seed).normal(mean, 0.1, 8).tolist(), strict=True))


def test_seeds_are_averaged_within_patients_first() -> None:
    own = [values(0, 0.8), values(1, 0.8)]
    random = [values(seed, 0.7) for seed in (2, 3, 4)]
    rows, means = compare_patients(own, random, {"HU": values(5, 0.5)})
    assert [row.name for row in rows] == ["encoder", "random initialisation (3 seeds)", "HU"]
    difference = [np.mean([v[p] for v in own]) - np.mean([v[p] for v in random]) for p in PATIENTS]
    expected = t_interval(difference)
    gain = rows[1].gain
    assert gain is not None
    assert (gain.estimate, gain.low, gain.high) == pytest.approx((expected.estimate, expected.low, expected.high))
    assert gain.n == 8
    assert rows[0].gain is None
    assert means["encoder"]["p0"] == pytest.approx(np.mean([v["p0"] for v in own]))


def test_only_patients_that_all_score_count() -> None:
    random = values(1, 0.7)
    del random["p3"]
    rows, means = compare_patients([values(0, 0.8)], [random], {})
    assert rows[0].score.n == 7
    assert "p3" not in means["encoder"]


def test_report_reads_and_is_json() -> None:
    rows, means = compare_patients([values(0, 0.8)], [values(1, 0.7)], {})
    report = ProbeReport("dense", "AUROC", rows, {"seed": 0}, ["left out: p9."], means)
    text = str(report)
    assert "encoder minus this" in text
    assert "random initialisation (1 seed)" in text
    assert "note: left out: p9." in text
    tree = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert tree["rows"][1]["gain"]["n"] == 8
    assert tree["values"]["encoder"]["p0"] == means["encoder"]["p0"]


def test_random_encoders_differ_by_seed_only(tmp_path) -> None:
    encoder = load_encoder(tiny_encoder(tmp_path / "encoder"))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = random_model(encoder, 0), random_model(encoder, 0), random_model(encoder, 1)
    assert torch.equal(torch.get_rng_state(), before)
    same = [torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True)]
    assert all(same)
    assert {k: v.shape for k, v in first.state_dict().items()} == {
        k: v.shape for k, v in encoder.model.state_dict().items()
    }
    name = (
        "patch_embed.proj.weight" if "patch_embed.proj.weight" in first.state_dict() else next(iter(first.state_dict()))
    )
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    assert random_encoder(encoder, 0).preprocessing == encoder.preprocessing
