"""Both stages' losses, where the mask comes to the attention's cells, and networks built again from a description."""

import pytest
import torch

from fmct.data.labelled import LabelledBatch
from fmct.data.sample import Sample
from fmct.data.series_features import padded, series_feature_batches
from fmct.errors import ArtefactError, ConfigError, DataError
from fmct.models.adaptation import adapt
from fmct.models.conv_lstm import SeriesReaderConfig
from fmct.models.slab_network import SlabNetwork, SlabNetworkConfig
from fmct.models.slab_series import SlabSeriesNetwork
from fmct.tasks import attention_pe
from fmct.tasks.attention_pe import SeriesReading, SlabAttention, SlabObjective, pooled_mask

SMALL = SlabNetworkConfig(layers=[1, 1, 1, 1], channels=[8, 8, 8, 16], norm="group")
READER = SeriesReaderConfig(reduce=4, hidden=4)


def slab_batch() -> LabelledBatch:
    """Return an annotated slab, one of a negative patient, and an unannotated one of a positive patient."""
    torch.manual_seed(0)
    mask = torch.zeros(3, 5, 32, 32)
    mask[0, 2, 4:9, 20:24] = 1
    nan = float("nan")
    return LabelledBatch(
        volumes=torch.rand(3, 1, 5, 32, 32), spacing=torch.ones(3, 3), labels=torch.tensor([[1.0], [0.0], [nan]]),
        patient_labels=torch.tensor([[1.0], [0.0], [1.0]]), mask=mask, valid=torch.ones_like(mask),
        has_mask=torch.tensor([True, True, False]), paired=None, has_pair=torch.zeros(3, dtype=torch.bool),
        pair_weight=torch.zeros(3), bags=torch.arange(3), draws=torch.arange(3), entries=["a", "b", "c"],
        kinds=["positive", "uniform", "positive"],
    )  # fmt: skip


def network() -> SlabNetwork:
    built = attention_pe.build_network(
        attention_pe.describe_slabs(SMALL, slices=5), in_channels=1, spacing_mm=(2.5, 1, 1)
    )
    assert isinstance(built, SlabNetwork)
    return built


def test_an_unknown_slab_moves_nothing() -> None:
    """S4: a slab of a positive patient without annotation adds to no term, whatever it shows."""
    torch.manual_seed(1)
    task, batch = SlabAttention(network()), slab_batch()
    output = task(batch, {})
    assert float(output.health["count/classification"]) == 2
    assert float(output.health["count/attention"]) == 2
    volumes = batch.volumes.clone().requires_grad_(True)
    task(LabelledBatch(**{**vars(batch), "volumes": volumes}), {}).loss.backward()
    assert volumes.grad is not None
    assert float(volumes.grad[2].abs().max()) == 0
    assert float(volumes.grad[:2].abs().max()) > 0


def test_the_attention_term_is_dice_of_map_and_mask_and_can_be_left_out() -> None:
    torch.manual_seed(1)
    task, batch = SlabAttention(network(), SlabObjective(attention=2.0, negatives=False)), slab_batch()
    output = task(batch, {})
    attention = task.network(batch.volumes).attention[0, 0].double()
    truth = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)  # cells of 16: rows 4-8, columns 20-23
    dice = 2 * (attention * truth).sum() / (attention.sum() + truth.sum())
    torch.testing.assert_close(output.terms["attention"].double(), (1 - dice).detach(), rtol=1e-5, atol=1e-6)
    total = output.terms["classification"] + 2 * output.terms["attention"]
    torch.testing.assert_close(output.loss.detach(), total)
    alone = SlabAttention(task.network, SlabObjective(attention=0.0))(batch, {})
    assert "attention" not in alone.terms
    torch.testing.assert_close(alone.loss.detach(), output.terms["classification"])


def test_the_mask_is_the_largest_along_z_and_pooled_in_plane() -> None:
    mask = torch.zeros(1, 5, 4, 4)
    mask[0, 1, 0, 0], mask[0, 3, 0, 1] = 1.0, 0.5
    area, most = (pooled_mask(mask, (1, 2, 2), pooling=how)[0, 0] for how in ("area", "max"))
    torch.testing.assert_close(area, torch.tensor([[0.375, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(most, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(ConfigError, match="mask_pooling"):
        SlabObjective(mask_pooling="median")


def series_network() -> SlabSeriesNetwork:
    architecture = attention_pe.describe_series(attention_pe.describe_slabs(SMALL, slices=5), READER)
    built = attention_pe.build_network(architecture, in_channels=1, spacing_mm=(2.5, 1, 1))
    assert isinstance(built, SlabSeriesNetwork)
    adapt(built, "frozen")
    return built


def test_stage_two_trains_the_reader_alone_and_padding_counts_for_nothing() -> None:
    """S3 in the task: the loss of a padded batch is the mean of the series' own losses."""
    torch.manual_seed(2)
    task = SeriesReading(series_network())
    features = [torch.randn(2, 16, 2, 2), torch.randn(5, 16, 2, 2)]
    samples = [sample("a", 1.0), sample("b", 0.0)]
    batch = padded(features, samples, [0, 1], torch.device("cpu"))
    assert batch.features.shape == (2, 5, 16, 2, 2)
    assert batch.valid.sum(1).tolist() == [2, 5]
    output = task(batch, {})
    single = [task(padded([f], [s], [0], torch.device("cpu")), {}).loss for f, s in zip(features, samples, strict=True)]
    torch.testing.assert_close(output.loss, torch.stack(single).mean())
    output.loss.backward()
    moved = {name for name, p in task.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}
    assert moved
    assert all(name.startswith("network.reader.") for name in moved)
    assert not any(p.requires_grad for name, p in task.named_parameters() if name.startswith("network.slabs."))
    assert not task.train().network.slabs.training


def test_series_are_drawn_by_number_and_balanced() -> None:
    samples = [sample(str(n), float(n < 2)) for n in range(8)] + [sample("unknown", float("nan"))]

    def features(one: Sample) -> torch.Tensor:
        return torch.full((1 + int(one.entry.id), 1, 1, 1), float(one.entry.id))

    batches = series_feature_batches(samples, features, seed=3, batch_size=4, positive=0.5)
    first, second = next(batches), next(batches)
    assert first.labels.sum() == 2
    later = next(series_feature_batches(samples, features, seed=3, batch_size=4, positive=0.5, start_draw=4))
    assert later.entries == second.entries
    assert torch.equal(later.features, second.features)
    natural = series_feature_batches(samples, features, seed=3, batch_size=8, positive=None)
    assert sorted(next(natural).entries) == [str(n) for n in range(8)]  # an epoch, the unknown one left out
    with pytest.raises(DataError, match="both classes"):
        next(series_feature_batches(samples[2:], features, seed=3, batch_size=4))
    with pytest.raises(ConfigError, match=r"series\.positive"):
        next(series_feature_batches(samples, features, seed=3, batch_size=4, positive=1.5))


def test_a_predictor_is_built_again_from_its_description() -> None:
    task = SeriesReading(series_network())
    architecture = attention_pe.describe_series(attention_pe.describe_slabs(SMALL, slices=5), READER)
    module, described = attention_pe.trained_predictor(
        architecture, task.state_dict(), in_channels=1, spacing_mm=(2.5, 1.0, 1.0)
    )
    again = attention_pe.build_predictor(described, in_channels=1, spacing_mm=(2.5, 1.0, 1.0))
    again.load_state_dict(module.state_dict())
    x = torch.rand(1, 1, 5, 32, 32)
    assert torch.equal(again(x).logits, task.network.eval()(x).logits)
    with pytest.raises(ArtefactError, match="do not fit"):
        attention_pe.trained_predictor(architecture, {}, in_channels=1, spacing_mm=(2.5, 1.0, 1.0))


class _Entry:
    """As much of a store's entry as batches of series look at."""

    def __init__(self, name: str) -> None:
        self.id = name


def sample(name: str, label: float) -> Sample:
    return Sample(_Entry(name), name, "train", (label,))  # type: ignore[arg-type]
