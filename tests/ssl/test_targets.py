import pytest
import torch

from fmct.errors import ConfigError
from fmct.losses.dino import sinkhorn_knopp
from fmct.ssl.targets import Targets


def test_sinkhorn_targets_have_no_state():
    targets = Targets(5, iterations=4)
    logits = torch.randn(7, 5)
    assert torch.equal(targets(logits, 0.2), sinkhorn_knopp(logits, 0.2, 4))
    targets.after_update()
    assert targets.state() == {}
    targets.load({})


def test_centring_moves_after_the_update_only_and_is_restored():
    targets, other = Targets(5, method="centring", centre_momentum=0.5), Targets(5, method="centring")
    logits = torch.randn(7, 5)
    assert torch.equal(targets(logits, 0.2), (logits / 0.2).softmax(1))
    assert torch.equal(targets(logits, 0.2), (logits / 0.2).softmax(1))
    targets.after_update()
    centred = ((logits - 0.5 * logits.mean(0)) / 0.2).softmax(1)
    torch.testing.assert_close(targets(logits, 0.2), centred)
    other.load(targets.state())
    assert torch.equal(other(logits, 0.2), targets(logits, 0.2))


def test_an_unknown_method_is_refused():
    with pytest.raises(ConfigError, match="sinkhorn or centring"):
        Targets(5, method="softmax")  # type: ignore[arg-type]
