import pytest
import torch
from torch import nn
from torch.nn import functional

from fmct.errors import ConfigError
from fmct.models.heads import ProjectionHead, ReconstructionDecoder, ReconstructionHead
from fmct.models.patches import unpatchify


def test_projection_is_mlp_then_unit_sphere_then_prototypes():
    torch.manual_seed(0)
    head = ProjectionHead(24, 40, 16, 100).double()
    linears = [m for m in head.mlp if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(24, 40), (40, 40), (40, 16)]
    x = torch.randn(5, 24, dtype=torch.float64)
    y = x
    for linear in linears[:-1]:
        y = functional.gelu(linear(y))
    y = linears[-1](y)
    expected = (y / y.norm(dim=1, keepdim=True)) @ head.prototypes.weight.T
    torch.testing.assert_close(head(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(head.project(x).norm(dim=1), torch.ones(5, dtype=torch.float64))


def test_the_head_ct_models_head_has_its_parameter_count():
    """3 layers 768-2048-2048-256 and 65 536 prototypes; theirs adds one weight-norm gain for each prototype."""
    with torch.device("meta"):
        head = ProjectionHead(768)
    assert sum(p.numel() for p in head.parameters()) == 23_138_560 - 65_536
    assert head.prototypes.bias is None


@pytest.mark.parametrize(("layers", "widths"), [(1, [(24, 16)]), (2, [(24, 40), (40, 16)])])
def test_fewer_layers(layers: int, widths: list[tuple[int, int]]):
    head = ProjectionHead(24, 40, 16, 10, layers=layers)
    assert [(m.in_features, m.out_features) for m in head.mlp if isinstance(m, nn.Linear)] == widths
    assert head(torch.randn(3, 24)).shape == (3, 10)


def test_initial_logits_have_the_spread_of_the_prototypes():
    torch.manual_seed(0)
    head = ProjectionHead(64, 128, 64, 4096)
    assert head(torch.randn(32, 64)).std().item() == pytest.approx(0.02, rel=0.1)
    assert all(m.bias.abs().max() == 0 for m in head.mlp if isinstance(m, nn.Linear))


def test_the_sphere_is_reached_in_float32_under_autocast():
    torch.manual_seed(0)
    head = ProjectionHead(32, 64, 48, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        unit = head.project(torch.randn(20, 32))
        assert head(torch.randn(20, 32)).dtype == torch.bfloat16
    assert unit.dtype == torch.float32
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(20), rtol=0, atol=1e-5)


def test_a_zero_bottleneck_gives_finite_gradients():
    head = ProjectionHead(8, 8, 8, 4)
    with torch.no_grad():
        for parameter in head.mlp.parameters():
            parameter.zero_()
    x = torch.randn(2, 8, requires_grad=True)
    head(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_a_reconstruction_is_in_the_order_of_patchify():
    head = ReconstructionHead(12, (2, 4, 4), 3)
    voxels = head(torch.randn(2 * 8, 12)).reshape(2, 8, -1)
    assert voxels.shape == (2, 8, 96)
    assert unpatchify(voxels, (2, 4, 4), (2, 2, 2)).shape == (2, 3, 4, 8, 8)


def test_the_decoder_rebuilds_masked_patches_from_visible_ones_only():
    torch.manual_seed(0)
    decoder = ReconstructionDecoder(20, (2, 2, 2), 1, decoder_dim=24, depth=2, num_heads=2).double()
    tokens = torch.randn(2, 12, 20, dtype=torch.float64)
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[:, ::3] = True
    out = decoder(tokens, (3, 2, 2), mask)
    assert out.shape == (2, 12, 8)
    hidden_changed = torch.where(mask[..., None], tokens + 1, tokens)
    torch.testing.assert_close(decoder(hidden_changed, (3, 2, 2), mask), out, rtol=0, atol=0)
    visible_changed = torch.where(mask[..., None], tokens, tokens + torch.randn_like(tokens))
    assert (decoder(visible_changed, (3, 2, 2), mask) - out)[mask].abs().max() > 1e-6
    assert not torch.allclose(out[0, 0], out[0, 3])  # both hidden: positions tell them apart
    torch.testing.assert_close(decoder(tokens[1:], (3, 2, 2), mask[1:]), out[1:], rtol=0, atol=1e-12)


def test_every_parameter_of_the_decoder_has_a_gradient_without_a_mask():
    decoder = ReconstructionDecoder(12, 2, 1, decoder_dim=24, depth=1, num_heads=2)
    decoder(torch.randn(1, 8, 12), (2, 2, 2)).sum().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None] == []


def test_misfits_are_named():
    with pytest.raises(ConfigError, match="tokens"):
        ReconstructionDecoder(12, 2, 1, decoder_dim=24, num_heads=2)(torch.randn(1, 7, 12), (2, 2, 2))
    with pytest.raises(ConfigError, match="layer"):
        ProjectionHead(8, layers=0)
