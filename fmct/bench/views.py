"""Rendering views from a head's crops: one thread, crops in memory, geometry and windows; blur and noise apart."""

import dataclasses
import statistics
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from fmct.bench.figures import Figure
from fmct.bench.timing import Cost, copy_rate, cost_of, median_ms, spread_ms
from fmct.bench.workbench import Workbench, recipe_config
from fmct.data.crops import read_coarse
from fmct.data.render import empty_image, render
from fmct.data.view_config import AppearanceConfig, Chance, ViewsConfig
from fmct.data.views import ViewParameters, sample_parameters
from fmct.shapes import Triple
from fmct.threads import torch_threads
from fmct.windows import Window

SIZE = [96, 96, 96]
PLAIN = AppearanceConfig(blur=Chance(), noise_hu=Chance())
VARIANTS = {
    "sample": PLAIN,
    "blur": dataclasses.replace(PLAIN, blur=Chance(1.0, [0.5, 1.0])),
    "noise": dataclasses.replace(PLAIN, noise_hu=Chance(1.0, [2.0, 20.0])),
}


def bench_views(bench: Workbench) -> list[Figure]:
    """Return the cost of 2 global and 2 local views of 3 × 96³, beside the plain way and the bytes' floor."""
    config = recipe_config("pretrain/fmhct_vit_base", ["store=unused"])[1].views
    with torch_threads(1), bench.store() as store:
        entry = bench.entry_of(store, "head")
        variants = {name: views_of(config, look) for name, look in VARIANTS.items()}
        coarse = read_coarse(store, entry, config)
        out = empty_image((4, len(config.windows), *SIZE), "cpu")
        costs: dict[str, list[Cost]] = {}
        moved = []
        for draw in range(-2, bench.sizes.view_draws):  # the first two warm up
            for name, views in variants.items():
                parameters = sample_parameters(views, entry, coarse, seed=0, draw=max(0, draw))
                crops = [torch.from_numpy(store.read(entry, p.level, p.start, p.shape)) for p in parameters]
                found = _costs_of_draw(name, crops, parameters, config.windows, out)
                if name == "sample":
                    sampling = partial(sample_parameters, views, entry, coarse, seed=0, draw=max(0, draw))
                    found["sampling"] = cost_of(sampling)
                    moved.append(out.nbytes + sum(crop.nbytes for crop in crops))
                for key, cost in found.items() if draw >= 0 else ():
                    costs.setdefault(key, []).append(cost)
        rate = copy_rate(out.nbytes)
    return _figures(bench, costs, statistics.median(moved), rate)


def _costs_of_draw(
    name: str,
    crops: Sequence[torch.Tensor],
    parameters: Sequence[ViewParameters],
    windows: Sequence[Window],
    out: torch.Tensor,
) -> dict[str, Cost]:
    """Return the cost of one draw's views, and for the plain look those of the other ways to them."""
    found = {name: cost_of(lambda: render(crops, parameters, windows=windows, out=out))}
    if name == "sample":
        found["grid_sample"] = cost_of(lambda: plain_views(crops, parameters, windows, out))
        found["interpolate"] = cost_of(lambda: interpolated_views(crops, windows, out))
    return found


def views_of(config: ViewsConfig, look: AppearanceConfig) -> ViewsConfig:
    """Return the head recipe's fields of view and windows, all views of SIZE, two of each kind, all looking alike."""
    wide = dataclasses.replace(config.global_views, count=2, size=SIZE, appearance=[look])
    narrow = dataclasses.replace(config.local_views, count=2, size=SIZE, appearance=[look])
    return dataclasses.replace(config, global_views=wide, local_views=narrow)


def plain_views(
    crops: Sequence[torch.Tensor], parameters: Sequence[ViewParameters], windows: Sequence[Window], out: torch.Tensor
) -> None:
    """Write the same fields of view the plain way: affine_grid, grid_sample, windows; flips too, no edge to air."""
    for crop, view, target in zip(crops, parameters, out, strict=True):
        theta = torch.zeros(1, 3, 4)
        for axis in range(3):
            z = 2 - axis  # torch's grids run x, y, z
            inputs, outputs = view.shape[z], view.size[z]
            middle = view.first[z] + view.step[z] * (outputs - 1) / 2
            theta[0, axis, axis] = view.step[z] * outputs / inputs
            theta[0, axis, 3] = (2 * middle + 1) / inputs - 1
        grid = functional.affine_grid(theta, [1, 1, *view.size], align_corners=False)
        source = crop[None, None].float()
        image = functional.grid_sample(source, grid, padding_mode="border", align_corners=False)[0, 0]
        write_windows(image, windows, target)


def interpolated_views(crops: Sequence[torch.Tensor], windows: Sequence[Window], out: torch.Tensor) -> None:
    """Write the whole crops at the views' size, torch's trilinear interpolation, then windows: no sub-voxel place."""
    for crop, target in zip(crops, out, strict=True):
        size: Triple = tuple(target.shape[1:])  # type: ignore[assignment]
        image = functional.interpolate(crop[None, None].float(), size, mode="trilinear", align_corners=False)[0, 0]
        write_windows(image, windows, target)


def write_windows(image: torch.Tensor, windows: Sequence[Window], target: torch.Tensor) -> None:
    """Write each window's values of an image in HU to target (C, D, H, W), the plain way."""
    for window, channel in zip(windows, target, strict=True):
        shift, scale = window.offset_and_scale
        clipped = image.clamp(window.low, window.high)
        channel.copy_(clipped.sub_(shift).div_(scale))


def _figures(bench: Workbench, costs: dict[str, list[Cost]], moved: float, rate: float) -> list[Figure]:
    ours = median_ms(costs["sample"])
    floor = 1e3 * moved / rate
    said = f"bytes of crops and views at the copy rate, {rate / 1e9:.1f} GB/s"
    about = {"scan": bench.describe("head"), "mb_moved": moved / 1e6, "copy_gb_per_s": rate / 1e9}
    figures = [
        Figure(
            "views/sample",
            "2 + 2 views of 3 × 96³, geometry and windows",
            ours,
            "ms",
            floor,
            said,
            details=spread_ms(costs["sample"]) | about,
        )
    ]
    for name in ("blur", "noise"):
        extra = float(np.median([c.cpu - p.cpu for c, p in zip(costs[name], costs["sample"], strict=True)])) * 1e3
        says = f"{name} in every view, on top"
        figures.append(Figure(f"views/{name}", says, extra, "ms", details=spread_ms(costs[name])))
    figures.append(
        Figure(
            "views/sampling",
            "sampling the parameters of 4 views",
            median_ms(costs["sampling"]),
            "ms",
            details=spread_ms(costs["sampling"]),
        )
    )
    for name, says in (("grid_sample", "crop, grid_sample, windows"), ("interpolate", "crop, interpolate, windows")):
        plain = median_ms(costs[name])
        details = {"times_ours": plain / ours, **spread_ms(costs[name])}
        figures.append(Figure(f"views/{name}", f"the plain way: {says}", plain, "ms", floor, said, details=details))
    ratios = [view.cpu / plainly.cpu for view, plainly in zip(costs["sample"], costs["interpolate"], strict=True)]
    says = "2 + 2 views to crop, interpolate, windows of the same crops, median of draws"
    details = {"least": min(ratios), "most": max(ratios)}
    judged = bench.sizes.comparable
    figures.append(Figure("views/ratio", says, statistics.median(ratios), "×", judged=judged, details=details))
    return figures
