from typing import Any

import pytest
import torch

from fmct.errors import ConfigError
from fmct.models.inputs import crop_groups, require_keys
from fmct.models.vision_transformer import VisionTransformer

X = torch.zeros(2, 1, 8, 8, 4)


def groups(**given: Any):
    parts = {"volumes": [X], "spacings": None, "masks": None, "keys": None, **given}
    return crop_groups(**parts, in_channels=1, patch_size=(4, 4, 4))


def test_a_group_knows_its_grid_and_what_was_given():
    first, second = groups(volumes=[X, X[:, :, :4]], masks=[torch.zeros(2, 4, dtype=torch.bool), None])
    assert (first.grid, second.grid) == ((2, 2, 1), (1, 2, 1))
    assert first.mask is not None
    assert second.mask is None
    assert first.spacing is None


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"volumes": []}, "at least one group"),
        ({"volumes": [X[:, 0]]}, "expected a volume"),
        ({"volumes": [X.repeat(1, 3, 1, 1, 1)]}, "expected a volume"),
        ({"volumes": [X[..., :3]]}, "does not divide"),
        ({"spacings": [torch.ones(3)]}, "spacing"),
        ({"spacings": [None, None]}, "spacings"),
        ({"masks": [torch.zeros(2, 5, dtype=torch.bool)]}, "mask"),
        ({"masks": [torch.zeros(2, 4)]}, "mask"),
        ({"keys": [torch.zeros(1, dtype=torch.int64)]}, "drop_path_keys"),
        ({"keys": [torch.zeros(2)]}, "drop_path_keys"),
    ],
)
def test_misfits_are_named(given: dict[str, Any], text: str):
    with pytest.raises(ConfigError, match=text):
        groups(**given)


def test_random_parts_need_keys_in_training():
    require_keys(groups(keys=[torch.arange(2)]))
    with pytest.raises(ConfigError, match="drop_path_keys"):
        require_keys(groups())
    encoder = VisionTransformer(in_channels=1, patch_size=4, embed_dim=24, depth=1, num_heads=2, drop_path=0.1)
    with pytest.raises(ConfigError, match="drop_path_keys"):
        encoder(X)
    encoder.eval()(X)


def test_a_mask_needs_a_mask_token():
    encoder = VisionTransformer(in_channels=1, patch_size=4, embed_dim=24, depth=1, num_heads=2, mask_token=False)
    with pytest.raises(ConfigError, match="mask_token"):
        encoder(X, None, torch.zeros(2, 4, dtype=torch.bool))
