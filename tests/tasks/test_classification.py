"""Classification: known labels, bags, MIL heads, and the exported network."""

import torch

from fmct.models.adaptation import adapt
from fmct.models.classifier import ClassifierConfig
from fmct.tasks import classification
from fmct.tasks.backbone import LoraConfig, describe
from fmct.tasks.classification import Classification, ClassificationConfig
from tests.tasks.batches import ENCODER, NAN, batch, tiny_vit

SPACING = (3.0, 3.0, 3.0)


def test_known_labels_and_bags_are_apart() -> None:
    """A window with a label is in one term, a positive patient's window without one in the other, others in none."""
    architecture = classification.describe_network(describe(ENCODER), ClassifierConfig(), outputs=1)
    network = classification.build_network(architecture, in_channels=1, spacing_mm=SPACING, encoder=tiny_vit())
    given = batch([1, 0, NAN, NAN, NAN], patient_labels=[1, 0, 1, 1, NAN], bags=torch.tensor([0, 1, 2, 2, 3]))
    output = Classification(network, ClassificationConfig(bag=0.5))(given, {})
    assert output.health["count/classification"] == 2
    assert output.health["count/bag"] == 1
    torch.testing.assert_close(output.loss.detach(), output.terms["classification"] + 0.5 * output.terms["bag"])


def test_a_positive_weight_multiplies_the_cost_of_positives() -> None:
    architecture = classification.describe_network(describe(ENCODER), ClassifierConfig(), outputs=1)
    network = classification.build_network(architecture, in_channels=1, spacing_mm=SPACING, encoder=tiny_vit())
    plain = Classification(network)(batch([1]), {}).loss
    heavy = Classification(network, ClassificationConfig(positive_weight=[3.0]))(batch([1]), {}).loss
    torch.testing.assert_close(heavy, 3 * plain)


def test_a_mil_head_decides_once_a_patient() -> None:
    config = ClassifierConfig(head="mil", hidden=8)
    architecture = classification.describe_network(describe(ENCODER), config, outputs=1)
    network = classification.build_network(architecture, in_channels=1, spacing_mm=SPACING, encoder=tiny_vit())
    given = batch([NAN] * 4, patient_labels=[1, NAN, 0, 0], bags=torch.tensor([5, 5, 2, 2]))
    output = Classification(network)(given, {})
    assert output.health["count/classification"] == 2
    bags = torch.tensor([1, 1, 0, 0])
    with torch.no_grad():
        logits = network(given.volumes, given.spacing, bags, num_bags=2).logits
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor([[0.0], [1.0]]))
    torch.testing.assert_close(output.loss.detach(), expected)


def test_an_adapted_network_is_exported_with_its_adapters_merged() -> None:
    backbone = describe(ENCODER, mode="lora", lora=LoraConfig(rank=2, alpha=4.0))
    architecture = classification.describe_network(backbone, ClassifierConfig(head="attentive"), outputs=2)
    network = classification.build_network(architecture, in_channels=1, spacing_mm=SPACING, encoder=tiny_vit())
    adapt(network, "lora", rank=2, alpha=4.0)
    for name, parameter in network.named_parameters():
        if "lora_b" in name:
            torch.nn.init.normal_(parameter)
    task = Classification(network).eval()
    predictor, slim = classification.trained_predictor(
        architecture, task.state_dict(), in_channels=1, spacing_mm=SPACING
    )
    assert "lora" not in slim
    assert not [name for name in predictor.state_dict() if "lora" in name]
    given = batch([0, 1])
    with torch.no_grad():
        torch.testing.assert_close(
            predictor(given.volumes, spacing=given.spacing).logits,
            network(given.volumes, spacing=given.spacing).logits,
            rtol=1e-4,
            atol=1e-5,
        )
