from dataclasses import replace

import pytest
import torch

from fmct.errors import ConfigError
from fmct.losses.histogram import neighbourhood_histograms, patch_histograms
from fmct.models.heads import ReconstructionDecoder, ReconstructionHead
from fmct.models.patches import patchify
from fmct.ssl.features import encode
from fmct.ssl.pixels import PixelConfig, PixelTerm
from tests.ssl.small_runs import PATCH, batch_of, tiny_encoder


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("target", ["windows", "normalised"])
def test_the_error_is_that_of_the_masked_patches(decoder, target):
    encoder, batch = tiny_encoder().eval(), batch_of(0, samples=2)
    features = encode(batch, encoder, None, masking=True, local=False, masked_bound=0.5)
    head = ReconstructionDecoder(32, PATCH, 2, decoder_dim=24, depth=1, num_heads=2) if decoder else None
    head = head or ReconstructionHead(32, PATCH, 2)
    term = PixelTerm(head, PixelConfig(target=target, distance="l2", floor=0.05), channels=2, width=32)
    volumes, mask = batch.global_views.flatten(0, 1), batch.masks.flatten(0, 1)
    if isinstance(head, ReconstructionDecoder):
        prediction = head(features.student.patches, features.student.grid, mask)
    else:
        prediction = head(features.student.patches)
    wanted = patchify(volumes, PATCH)
    if target == "normalised":
        voxels = wanted.unflatten(-1, (2, -1))
        wanted = (voxels - voxels.mean(-1, keepdim=True)) / (
            voxels.var(-1, unbiased=False, keepdim=True) + 0.05**2
        ).sqrt()
        wanted = wanted.flatten(-2)
    expected = (prediction - wanted)[mask].square().mean()
    torch.testing.assert_close(term.loss(features), expected)


def test_the_histogram_term_is_about_each_neighbourhood_of_hidden_and_visible_patches():
    encoder, batch = tiny_encoder().eval(), batch_of(0, samples=2)
    features = encode(batch, encoder, None, masking=True, local=False, masked_bound=0.5)
    mask, patches = batch.masks.flatten(0, 1), features.patches.clamp(0, 1)
    features = replace(features, patches=patches)
    plain = PixelTerm(ReconstructionHead(32, PATCH, 2), PixelConfig(), channels=2, width=32)
    config = PixelConfig(histogram=2.0, bins=4, neighbourhoods=[1, 3], visible=0.25)
    term = PixelTerm(plain.voxels, config, channels=2, width=32)
    assert term.histogram is not None
    grid = features.student.grid
    own = patch_histograms(patches, channels=2, bins=4)
    logits = term.histogram(features.student.patches).view(*mask.shape, 2, 2, 4).log_softmax(-1)
    error = 0.5 * sum(
        -(neighbourhood_histograms(own, grid, side) * logits[:, :, place]).sum(-1).mean(-1)
        for place, side in enumerate((1, 3))
    )
    wanted = 2.0 * (0.75 * error[mask].mean() + 0.25 * error[~mask].mean())
    found = term.loss(features) - plain.loss(features)
    torch.testing.assert_close(found, wanted)


def test_impossible_settings_are_refused():
    head = ReconstructionHead(32, PATCH, 2)
    with pytest.raises(ConfigError, match="windows or normalised"):
        PixelTerm(head, PixelConfig(target="hu"), channels=2, width=32)
    with pytest.raises(ConfigError, match="odd sides"):
        PixelTerm(head, PixelConfig(histogram=1.0, neighbourhoods=[1, 2]), channels=2, width=32)
    with pytest.raises(ConfigError, match="floor"):
        PixelTerm(head, PixelConfig(floor=0.0), channels=2, width=32)
