import dataclasses

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from fmct.data.appearance import Appearance
from fmct.data.render import render
from fmct.data.view_config import AppearanceConfig, Chance, ViewConfig, ViewsConfig
from fmct.data.views import ViewParameters, sample_parameters, view_affine
from fmct.phantoms import body as phantom
from fmct.volume import Volume
from fmct.windows import Window
from tests.data.references_render import reference_view
from tests.data.scans import Scan, full_of, scan_of

WINDOWS = [Window(-160, 240), Window(-1000, 200), Window(-500, 1300, shift=400, scale=900)]
WIDE = [Window(-2000, 4000, shift=0, scale=1)]
OFF = {"shift_hu": Chance(), "gain": Chance(), "blur": Chance(), "noise_hu": Chance()}
GRIDS = {
    "isotropic": ((90, 96, 100), (1.0, 1.0, 1.0)),
    "thick": ((24, 160, 150), (5.0, 0.8, 0.7)),
    "coronal": ((120, 40, 110), (0.9, 2.7, 0.9)),
}


def views_of(
    scan: Scan, appearance: AppearanceConfig, *, draw: int = 0, mm: float = 70, size: int = 32
) -> list[ViewParameters]:
    low, high = [0.6 * mm, mm], [0.6 * mm, mm]
    kind = ViewConfig(2, [size, size + 4, size], low, high, aspect=[0.9, 1.1], appearance=[appearance])
    turning = any(appearance.turn)
    if turning:
        kind = dataclasses.replace(kind, size=[size] * 3)
    local = dataclasses.replace(kind, size=[16] * 3, in_plane_mm=[20, 40], through_plane_mm=[20, 40], overlap=1.0)
    return sample_parameters(ViewsConfig(kind, local), scan, scan.coarse(), seed=5, draw=draw)


def crops_of(scan: Scan, views: list[ViewParameters]) -> list[torch.Tensor]:
    return [torch.from_numpy(scan.read(v.level, v.start, v.shape)) for v in views]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("blur", [0.0, 0.8])
def test_views_agree_with_the_slow_reference(grid: str, blur: float) -> None:
    shape, spacing = GRIDS[grid]
    scan = scan_of(phantom.body(1, shape, spacing))
    look = AppearanceConfig(
        flip=[0.5, 0.5, 0.5], shift_hu=Chance(1, [5, 9]), gain=Chance(1, [0.9, 1.1]), blur=Chance(1, [blur, blur]),
        noise_hu=Chance(),
    )  # fmt: skip
    seen = set()
    for draw in range(6):
        for view in views_of(scan, look, draw=draw, mm=[40, 120, 200][draw % 3]):
            crop = crops_of(scan, [view])
            ours = render(crop, [view], windows=WINDOWS)[0].numpy()
            expected = reference_view(scan.voxels[view.level], view, WINDOWS)
            assert ours.shape == expected.shape
            assert np.abs(ours - expected).max() < 2e-4
            seen.add(view.level)
    assert len(seen) > 1, "the views come from more than one level"


@pytest.mark.parametrize("grid", GRIDS)
def test_views_agree_with_simpleitk_in_world_coordinates(grid: str) -> None:
    shape, spacing = GRIDS[grid]
    scan = scan_of(phantom.body(2, shape, spacing))
    for view in views_of(scan, AppearanceConfig(flip=[0.5] * 3, turn=[0.5] * 3, **OFF), mm=60, draw=3):
        level = Volume(scan.voxels[view.level], level_affine(scan, view.level))
        affine = view_affine(view, scan.affine, scan.levels[view.level].factor)
        index = np.stack(np.meshgrid(*[np.arange(0, n, 5) for n in ours_shape(view)], indexing="ij"), -1).reshape(-1, 3)
        points = index @ affine[:3, :3].T + affine[:3, 3]
        inside = ((level.index(points) >= 0) & (level.index(points) <= np.array(level.shape) - 1)).all(axis=1)
        image = to_sitk(level)
        expected = [image.EvaluateAtPhysicalPoint((-p[0], -p[1], p[2]), sitk.sitkLinear) for p in points[inside]]
        ours = render(crops_of(scan, [view]), [view], windows=WIDE)[0, 0].numpy()
        assert np.abs(ours[tuple(index[inside].T)] - expected).max() < 0.05
        assert inside.sum() > 50


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("turn", [0.0, 0.7])
def test_blobs_come_back_at_their_world_points_at_every_level(grid: str, turn: float) -> None:
    shape, spacing = GRIDS[grid]
    affine = phantom.axial_affine(shape, spacing)
    empty = full_of(0, shape, spacing)
    look = AppearanceConfig(flip=[0.5] * 3, turn=[turn] * 3, **OFF)
    random = np.random.default_rng(0)
    levels: set[int] = set()
    orientations = set()
    for mm in (35, 60, 110, 200, 200, 200):
        for view in views_of(empty, look, draw=mm, mm=mm):
            factor = empty.levels[view.level].factor
            matrix = view_affine(view, affine, factor)
            # A blob that both grids can show, near the view's middle; a view at the scan's border may have no room.
            sigma = max(1.2 * max(view.spacing_mm), 0.9 * max(np.array(factor) * spacing))
            expected = (np.array(ours_shape(view)) - 1) / 2 + random.uniform(-2, 2, 3)
            point = matrix[:3, :3] @ expected + matrix[:3, 3]
            room = np.minimum(
                *(sign * (affine[:3, :3].T @ (point - corner)) for sign, corner in corners(affine, shape))
            )
            if (room / spacing < 3.5 * sigma).any() or (
                3.5 * sigma / np.array(view.spacing_mm) > np.array(ours_shape(view)) / 2 - 2
            ).any():
                continue
            scan = scan_of(phantom.blobs(point, shape, affine, sigma, background=-300))
            image = render(crops_of(scan, [view]), [view], windows=WIDE)[0, 0].double().numpy()
            weight = np.maximum(image + 300, 0)
            index = np.meshgrid(*[np.arange(n) for n in image.shape], indexing="ij")
            centre = [(weight * i).sum() / weight.sum() for i in index]
            assert np.abs(np.array(centre) - expected).max() < 0.1
            levels.add(view.level)
            orientations.add((view.order, tuple(step < 0 for step in view.step)))
    assert len(levels) >= 2
    assert len(orientations) >= 4


def corners(affine: np.ndarray, shape: tuple[int, ...]) -> list[tuple[int, np.ndarray]]:
    return [(1, affine[:3, 3]), (-1, affine[:3, :3] @ (np.array(shape) - 1) + affine[:3, 3])]


def test_out_of_the_scan_is_air() -> None:
    scan = scan_of(Volume(np.full((10, 40, 40), 50, np.int16), phantom.axial_affine((10, 40, 40), (1.0, 1.0, 1.0))))
    view = views_of(scan, AppearanceConfig(**OFF), mm=60)[0]
    image = render(crops_of(scan, [view]), [view], windows=WIDE)[0, 0]
    assert set(image.round().unique().tolist()) == {-1000.0, 50.0}
    expected = 10 / (view.size[0] * view.spacing_mm[0])
    assert abs(((image - 50).abs() < 1e-3).float().amax(dim=(1, 2)).mean().item() - expected) < 1.5 / view.size[0]


def test_a_view_does_not_depend_on_its_batch() -> None:
    scan = scan_of(phantom.body(3, (40, 60, 60), (3.0, 3.0, 3.0)))
    views = [views_of(scan, AppearanceConfig(), draw=d)[0] for d in range(3)]
    together = render(crops_of(scan, views), views, windows=WINDOWS)
    out = torch.full_like(together, float("nan"))
    assert render(crops_of(scan, views), views, windows=WINDOWS, out=out) is out
    assert torch.equal(out, together)
    for number, view in enumerate(views):
        assert torch.equal(render(crops_of(scan, [view]), [view], windows=WINDOWS)[0], together[number])


def rendered(scan: Scan, appearance: Appearance, windows: list[Window] | None = None) -> torch.Tensor:
    view = dataclasses.replace(views_of(scan, AppearanceConfig(flip=[0, 0, 0], **OFF))[0], appearance=appearance)
    return render(crops_of(scan, [view]), [view], windows=windows or WIDE)[0, 0].double()


def test_noise_is_in_hu_and_comes_before_the_windows() -> None:
    scan = scan_of(Volume(np.full((64, 64, 64), 40, np.int16), phantom.axial_affine((64, 64, 64), (2.0, 2.0, 2.0))))
    noisy = rendered(scan, Appearance(noise=15.0, noise_key=3))
    inside = noisy[noisy > -500]
    assert inside.std().item() == pytest.approx(15, rel=0.03)
    assert inside.mean().item() == pytest.approx(40, abs=0.5)
    windowed = rendered(scan, Appearance(noise=15.0, noise_key=3), [Window(30, 50)])
    assert torch.allclose(windowed, ((noisy - 30) / 20).clamp(0, 1), atol=1e-4)


def test_curves_act_on_window_values() -> None:
    scan = scan_of(phantom.body(3, (40, 60, 60), (3.0, 3.0, 3.0)))
    plain = rendered(scan, Appearance(), [Window(-200, 300)])
    assert torch.allclose(rendered(scan, Appearance(gamma=0.5), [Window(-200, 300)]), plain.sqrt(), atol=1e-3)
    curve = (0.0, 0.1, 0.7, 1.0)
    expected = np.interp(plain.numpy(), np.linspace(0, 1, 4), curve)
    assert np.allclose(rendered(scan, Appearance(histogram=curve), [Window(-200, 300)]), expected, atol=1e-4)


def test_sharpening_is_unsharp_masking_and_ringing_overshoots() -> None:
    scan = scan_of(phantom.body(3, (40, 60, 60), (3.0, 3.0, 3.0)))
    plain, blurry = rendered(scan, Appearance()), rendered(scan, Appearance(blur=1.0))
    assert torch.allclose(rendered(scan, Appearance(sharpen=0.7)), plain + 0.7 * (plain - blurry), atol=1e-2)
    ringing = rendered(scan, Appearance(ringing=0.4))
    assert ringing.mean().item() == pytest.approx(plain.mean().item(), rel=0.02)
    assert ringing.min() < plain.min() - 20


def test_percentiles_become_one_channel_from_minus_one_to_one() -> None:
    scan = scan_of(phantom.body(3, (40, 60, 60), (3.0, 3.0, 3.0)))
    view = dataclasses.replace(views_of(scan, AppearanceConfig(**OFF))[0], values=(-900.0, 300.0))
    image = render(crops_of(scan, [view]), [view], windows=[])
    hu = render(crops_of(scan, [view]), [view], windows=WIDE)
    assert torch.allclose(image, (hu + 300).div(600).clamp(-1, 1), atol=1e-4)


def ours_shape(view: ViewParameters) -> tuple[int, ...]:
    return tuple(view.size[axis] for axis in view.order)


def level_affine(scan: Scan, level: int) -> np.ndarray:
    f = np.array(scan.levels[level].factor, dtype=float)
    inner = np.diag([*f, 1.0])
    inner[:3, 3] = (f - 1) / 2
    return scan.affine @ inner


def to_sitk(volume: Volume) -> sitk.Image:
    """SimpleITK names axes x, y, z and points LPS."""
    image = sitk.GetImageFromArray(volume.voxels.astype(np.float64))
    flip = np.diag([-1.0, -1.0, 1.0])
    axes = (flip @ volume.affine[:3, :3])[:, ::-1]
    spacing = np.linalg.norm(axes, axis=0)
    image.SetSpacing([float(s) for s in spacing])
    image.SetDirection((axes / spacing).reshape(-1).tolist())
    image.SetOrigin((flip @ volume.affine[:3, 3]).tolist())
    return image
