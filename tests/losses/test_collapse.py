import torch

from fmct.losses.alignment import inter_feature_alignment
from fmct.losses.collapse import AlignmentMonitor


def test_a13_the_monitor_fires_on_a_constant_field_and_is_silent_on_random_features():
    """A13: the alignment itself sees nothing wrong with a constant field."""
    random = torch.randn(2, 16, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    constant = random[:, :, :1, :1, :1].expand_as(random)
    assert abs(inter_feature_alignment(constant, constant).loss) < 1e-6
    monitor = AlignmentMonitor()
    assert monitor.observe({"nct": random, "ctpa": random}) == []
    assert monitor.health()["alignment_spread_nct"] > 0.8
    (alarm,) = monitor.observe({"nct": random, "ctpa": constant})
    assert alarm.startswith("alignment-collapse: the ctpa features")
    assert monitor.health()["alignment_spread_ctpa"] < 1e-3


def test_the_limit_is_a_tenth_of_one_over_root_c_on_the_mean_deviation():
    generator = torch.Generator().manual_seed(1)
    for noise, fires in ((0.02, True), (0.3, False)):
        field = torch.ones(1, 25, 4, 4, 4) + noise * torch.randn(1, 25, 4, 4, 4, generator=generator)
        unit = (field / field.norm(dim=1, keepdim=True)).flatten(2)
        deviation = unit.std(2, unbiased=False).mean().item()
        monitor = AlignmentMonitor()
        assert bool(monitor.observe({"nct": field})) is fires
        assert (deviation < 0.1 / 5) is fires
        torch.testing.assert_close(monitor.last["nct"], deviation * 5, rtol=1e-4, atol=0)


def test_only_valid_tokens_of_pairs_are_watched():
    random = torch.randn(2, 8, 2, 3, 3, generator=torch.Generator().manual_seed(2))
    half = random.clone()
    half[:, :, 0] = random[:, :, :1, :1, :1].squeeze(2)  # constant in the first layer
    valid = torch.zeros(2, 2, 3, 3)
    valid[:, 0] = 1
    assert AlignmentMonitor().observe({"nct": half}) == []
    assert AlignmentMonitor().observe({"nct": half}, valid=valid)
    pairs = torch.tensor([True, False])
    half[0] = random[0]
    assert AlignmentMonitor().observe({"nct": half}, valid=valid, has_pair=pairs) == []


def test_no_pair_changes_nothing_and_the_state_comes_back():
    random = torch.randn(1, 8, 2, 2, 2, generator=torch.Generator().manual_seed(3))
    constant = torch.ones(1, 8, 2, 2, 2)
    monitor = AlignmentMonitor(patience=2)
    assert monitor.observe({"nct": random[:0]}) == []
    assert monitor.health() == {}
    assert monitor.observe({"nct": constant}) == []
    again = AlignmentMonitor(patience=2)
    again.load(monitor.state())
    assert again.health() == monitor.health()
    assert len(again.observe({"nct": constant})) == 1
    assert again.observe({"nct": random}) == []
