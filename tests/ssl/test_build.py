import pytest

from fmct.config import build
from fmct.errors import ConfigError
from fmct.models.heads import ReconstructionDecoder, ReconstructionHead
from fmct.ssl.build import PixelConfig, SelfDistillationConfig, WeightsConfig, build_self_distillation
from tests.ssl.small_runs import HEAD, JOINT, VALUES, batch_of, small_task, tiny_encoder


def test_only_what_has_a_weight_is_built():
    task = small_task(weights=WeightsConfig(dino=0.0, ibot=0.0, koleo=0.0, pixel=1.0))
    assert task.dino_head is None
    assert task.ibot_head is None
    assert isinstance(task.reconstruction_head, ReconstructionHead)
    assert {name.split(".")[0] for name in task.run_state()["teacher"]} == {"encoder"}


def test_a_scheduled_weight_builds_its_part():
    config = SelfDistillationConfig(weights=WeightsConfig(dino=0.0, ibot=0.0, koleo=1.0), dino_head=HEAD)
    task = build_self_distillation(tiny_encoder(), config, scheduled=["dino"])
    assert task.dino_head is not None
    assert list(task(batch_of(0), {**VALUES, "weight/dino": 0.5}).terms) == ["dino", "koleo"]
    with pytest.raises(ConfigError, match="'dina'"):
        build_self_distillation(tiny_encoder(), config, scheduled=["dina"])


def test_a_shared_head_serves_both_terms():
    task = small_task(share_head=True)
    assert task.ibot_head is None
    output = task(batch_of(0), VALUES)
    output.loss.backward()
    assert set(output.terms) == {"dino", "ibot", "koleo"}
    alone = small_task(share_head=True, weights=WeightsConfig(dino=0.0, ibot=1.0, koleo=0.0))
    alone(batch_of(0), VALUES).loss.backward()
    gradients = [p.grad for name, p in alone.named_parameters() if name.startswith("dino_head")]
    assert gradients
    assert all(g is not None and g.any() for g in gradients)


def test_a_decoder_can_reconstruct():
    task = small_task(weights=JOINT, pixel=PixelConfig(decoder_depth=1, decoder_dim=24, decoder_heads=2))
    assert isinstance(task.reconstruction_head, ReconstructionDecoder)
    task(batch_of(0), VALUES).loss.backward()


def test_the_configuration_is_typed_yaml():
    tree = {"weights": {"pixel": 2}, "targets": {"method": "centring"}, "health": {"patience": 5}}
    config = build(SelfDistillationConfig, tree)
    assert (config.weights.pixel, config.targets.method, config.health.patience) == (2.0, "centring", 5)
    with pytest.raises(ConfigError, match=r"weights\.koleo"):
        build(SelfDistillationConfig, {"weights": {"kolao": 1}})


@pytest.mark.parametrize(
    "settings", [{"weights": WeightsConfig(dino=-1.0)}, {"student_temperature": 0.0}, {"masked_bound": 1.5}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ConfigError):
        small_task(**settings)
