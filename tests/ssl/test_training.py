"""Short runs: a healthy one learns and stays quiet; broken ones collapse and are named."""

import math
from dataclasses import replace

import pytest
import torch

from fmct.ssl.build import TargetsConfig, WeightsConfig
from fmct.ssl.monitor import HealthConfig
from tests.ssl.small_runs import HEAD, JOINT, VALUES, batch_of, small_task, train

WATCH = HealthConfig(every=5, grace=20, patience=3, marginal_rows=128)


def test_eight_volumes_are_learned_without_an_alarm():
    task = small_task(weights=JOINT, health=WATCH)
    outputs = list(train(task, range(100), learning_rate=3e-3))
    assert [alarm for output in outputs for alarm in output.alarms] == []
    chance = math.log(HEAD.num_prototypes)
    last = {name: sum(float(o.terms[name]) for o in outputs[-10:]) / 10 for name in outputs[0].terms}
    assert float(outputs[0].terms["dino"]) == pytest.approx(chance, rel=0.02)
    assert last["dino"] < chance - 0.5
    assert last["ibot"] < chance / 2 - 0.15  # half of the views are masked
    assert last["pixel"] < 0.7 * float(outputs[0].terms["pixel"])
    assert float(outputs[-1].health["rank_me"]) > 4
    assert float(outputs[-1].health["feature_std"]) > 0.5


def test_without_centring_and_momentum_it_collapses_to_a_point():
    task = small_task(
        weights=WeightsConfig(dino=1.0, ibot=0.0, koleo=0.0),
        targets=TargetsConfig("centring", centre_momentum=1.0),
        health=replace(WATCH, point_entropy=0.3),
    )
    outputs = list(train(task, range(90), values={**VALUES, "momentum": 0.0}, learning_rate=3e-3))
    alarms = [alarm for output in outputs for alarm in output.alarms]
    assert "point-collapse" in {alarm.split()[0] for alarm in alarms}
    assert float(outputs[-1].terms["dino"]) < 0.1
    assert float(outputs[-1].health["alarms"]) >= 1


def test_equal_images_collapse_uniformly():
    task = small_task(health=WATCH)
    optimiser = torch.optim.AdamW(task.parameters(), lr=1e-3)
    alarms: list[str] = []
    batch = batch_of(0)
    assert batch.local_views is not None
    grey = replace(
        batch, global_views=torch.ones_like(batch.global_views), local_views=torch.ones_like(batch.local_views)
    )
    grey = replace(grey, masks=torch.zeros_like(grey.masks))
    for _ in range(40):
        output = task(grey, VALUES)
        alarms += output.alarms
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        task.after_update(VALUES)
    names = {alarm.split()[0] for alarm in alarms}
    assert {"uniform-collapse", "constant-features"} <= names
    assert "point-collapse" not in names
    assert output.terms["dino"].item() == pytest.approx(math.log(HEAD.num_prototypes), rel=0.01)
