"""The plain way to a view shows the same view, so that its time is a fair comparison."""

import dataclasses

import torch

from fmct.bench.views import PLAIN, SIZE, interpolated_views, plain_views, views_of
from fmct.bench.workbench import recipe_config
from fmct.data.foreground import find_body
from fmct.data.render import render
from fmct.data.view_config import Chance
from fmct.data.views import sample_parameters
from fmct.phantoms import body as phantom
from fmct.pyramid import build
from fmct.store.manifest import Entry, Level


def entry_of(volume):
    spacing = tuple(volume.spacing.tolist())
    levels = build(volume.voxels, spacing)
    described = tuple(
        Level(factor, voxels.shape, tuple(s * f for s, f in zip(spacing, factor, strict=True)))
        for factor, voxels in levels
    )
    entry = Entry("a", "p", "CT", "HU", volume.shape, spacing, (), (), (-1024.0, 3071.0), "", "", described)
    return entry, [voxels for _, voxels in levels]


def inside(view):
    """Return where a view lies between the centres of its crop's outermost voxels: no rule of edges acts there."""
    axes = []
    for axis in range(3):
        position = view.first[axis] + view.step[axis] * torch.arange(view.size[axis])
        axes.append((position >= 0) & (position <= view.shape[axis] - 1))
    return axes[0][:, None, None] & axes[1][None, :, None] & axes[2][None, None, :]


def test_grid_sample_shows_what_render_shows():
    entry, levels = entry_of(phantom.body(0, (48, 96, 96), (5.0, 4.0, 4.0)))
    config = recipe_config("pretrain/fmhct_vit_base", ["store=unused"])[1].views
    views = views_of(config, dataclasses.replace(PLAIN, shift_hu=Chance(), gain=Chance(), flip=[0.5, 0.5, 0.5]))
    assert (views.global_views.count, views.local_views.count) == (2, 2)
    coarse = find_body(levels[-1], entry.levels[-1].factor, entry.shape, above=-500.0)
    parameters = sample_parameters(views, entry, coarse, seed=0, draw=0)
    assert any(step < 0 for view in parameters for step in view.step), "a flip is among them"
    crops = [
        torch.from_numpy(levels[p.level][tuple(slice(a, a + n) for a, n in zip(p.start, p.shape, strict=True))].copy())
        for p in parameters
    ]
    ours = render(crops, parameters, windows=views.windows)
    plain = torch.empty(4, len(views.windows), *SIZE)
    plain_views(crops, parameters, views.windows, plain)
    for view, shown, expected in zip(parameters, ours, plain, strict=True):
        where = inside(view)
        assert where.float().mean() > 0.5
        assert torch.allclose(shown[:, where], expected[:, where], atol=2e-3)


def test_interpolate_fills_every_window():
    config = recipe_config("pretrain/fmhct_vit_base", ["store=unused"])[1].views
    crops = [torch.full((5, 6, 7), 40, dtype=torch.int16)]
    out = torch.full((1, 3, 8, 8, 8), float("nan"))
    interpolated_views(crops, config.windows, out)
    for window, channel in zip(config.windows, out[0], strict=True):
        shift, scale = window.offset_and_scale
        assert torch.allclose(channel, torch.tensor((min(max(40, window.low), window.high) - shift) / scale))
