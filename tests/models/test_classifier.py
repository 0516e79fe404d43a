import pytest
import torch

from fmct.errors import ConfigError
from fmct.models.classifier import Classifier, ClassifierConfig, build_classifier
from tests.models.networks import noise, tiny_encoder

X = noise(4, 1, 4, 8, 8)


@pytest.mark.parametrize("features", ["cls", "mean", "cls+mean"])
def test_the_linear_head_reads_what_it_says(features: str) -> None:
    encoder = tiny_encoder()
    model = Classifier(encoder, outputs=3, features=features)
    tokens = encoder(X)
    parts = {"cls": [tokens.cls], "mean": [tokens.patches.mean(1)]}
    expected = torch.cat([part for name in features.split("+") for part in parts[name]], dim=1)
    output = model(X)
    assert torch.equal(output.features, expected)
    torch.testing.assert_close(output.logits, expected @ model.head.linear.weight.T + model.head.linear.bias)
    assert output.attention is None


def test_the_attentive_head_pools_patch_tokens() -> None:
    model = build_classifier(tiny_encoder(), ClassifierConfig(head="attentive", norm="batch", num_heads=3), outputs=2)
    output = model(X)
    assert output.logits.shape == (4, 2)
    assert output.attention is not None
    assert output.attention.shape == (4, 3, 8)
    output.logits.sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if not n.startswith("encoder.register"))


def test_tiles_make_one_decision() -> None:
    model = Classifier(tiny_encoder(), outputs=2, head="mil", hidden=8)
    bags = torch.tensor([0, 1, 0, 0])
    output = model(X, bags=bags)
    assert output.logits.shape == (2, 2)
    assert output.attention is not None
    torch.testing.assert_close(output.attention[bags == 0].sum(), torch.tensor(1.0))
    assert model(X).logits.shape == (4, 2), "without bags every volume is one"


def test_kept_features_give_the_same_logits() -> None:
    model = Classifier(tiny_encoder(), outputs=2).eval()
    tokens = model.encoder(X)
    assert torch.equal(model.classify(tokens.cls, tokens.patches).logits, model(X).logits)


def test_spacing_reaches_the_encoder() -> None:
    model = Classifier(tiny_encoder(), outputs=2)
    assert not torch.equal(model(X).features, model(X, torch.full((4, 3), 3.0)).features)


def test_misuse_is_explained() -> None:
    with pytest.raises(ConfigError, match="head among"):
        Classifier(tiny_encoder(), outputs=1, head="mlp")
    with pytest.raises(ConfigError, match="bags need head 'mil'"):
        Classifier(tiny_encoder(), outputs=1)(X, bags=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ConfigError, match="any number of tiles"):
        Classifier(tiny_encoder(), outputs=1, head="mil", norm="batch")
