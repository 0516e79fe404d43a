"""Intensity normalisation of series without a unit of their own (MR): a registry of kinds, and what was done is kept.

A kind fits a `Curve` to one series: a piecewise-linear map from its values to the network's. CT has HU and fixed
windows (`none`). A volume that was normalised says so in its facts, so that nothing is normalised twice.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fmct.errors import ConfigError, DataError
from fmct.volume import Volume
from fmct.windows import Curve

SIGNS = ("dark", "bright")
FACT = "normalised"
UNITS_NORMALISED = "normalised"
LANDMARKS = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0)
_SIGNED_SHARE = 0.01  # more negative values than interpolation at the head's edge makes
_FEWEST = 64  # voxels that a curve is fitted to
_BINS = 1024


@dataclass(frozen=True)
class Normalisation:
    """How the values of a series become a network's input; see KINDS.

    kind: `none` (windows of HU), `zscore_mask`, `percentile`, `nyul`, `white_stripe` or `max_invert`. Each is fitted to
    the voxels of a mask; without one, to those above `above` (null: above the series' mean). percentiles: of kind
    percentile, mapped to 0 and 1 and clipped there. landmarks, standard: of kind nyul: percentiles, and the heights
    they go to, fitted once on training series (`fit_nyul`). peak, width: of white stripe: which peak of the histogram
    is white matter (`last` in T1, `highest` in T2, T2* and FLAIR, `first`), and the stripe's half width as share of the
    voxels. signed: values may be negative (QSM); else a series with many negative ones is refused: a CT, a phase image,
    or one normalised elsewhere.
    """

    kind: str = "none"
    percentiles: list[float] = dataclasses.field(default_factory=lambda: [0.5, 99.5])
    landmarks: list[float] = dataclasses.field(default_factory=lambda: list(LANDMARKS))
    standard: list[float] = dataclasses.field(default_factory=list)
    peak: str = "highest"
    width: float = 0.05
    above: float | None = None
    signed: bool = False

    def __post_init__(self) -> None:
        if self.kind != "none" and self.kind not in KINDS:
            raise ConfigError(f"normalisation: kind is none or one of {', '.join(KINDS)}; got {self.kind!r}.")
        for name in ("percentiles", "landmarks"):
            given = getattr(self, name)
            if len(given) < 2 or sorted(set(given)) != list(given) or not 0 <= given[0] < given[-1] <= 100:
                raise ConfigError(f"normalisation: {name} are two or more rising numbers in 0 … 100; got {given}.")
        if self.standard and (len(self.standard) != len(self.landmarks) or sorted(self.standard) != self.standard):
            raise ConfigError("normalisation: standard holds one height for each of the landmarks, rising.")
        if self.peak not in _PEAKS or not 0 < self.width < 0.5:
            raise ConfigError(f"normalisation: peak is one of {', '.join(_PEAKS)}, and width lies in (0, 0.5).")
        if self.signed and self.kind in ("max_invert", "white_stripe"):
            raise ConfigError(f"normalisation: {self.kind} is of magnitudes; signed values (QSM) take another kind.")

    @property
    def ready(self) -> bool:
        """Whether a series can be normalised: Nyúl's standard scale has been fitted, where that is the kind."""
        return self.kind != "nyul" or bool(self.standard)

    def fitted(self, values: np.ndarray, mask: np.ndarray | None = None, *, where: str = "") -> Curve:
        """Return the curve of one series. values: any shape; mask: bool, of that shape.

        Raises DataError that begins with `where` for values that are not finite, of the wrong sign, constant, or too
        few.
        """
        if self.kind == "none":
            raise ConfigError("normalisation: kind none has no curve; CT is shown through windows of HU.")
        if not self.ready:
            raise ConfigError(
                "normalisation: kind nyul needs its standard scale, fitted on training series (fit_nyul)."
            )
        inside = self.inside(values, mask, where=where)
        return KINDS[self.kind](inside, self, where)

    def inside(self, values: np.ndarray, mask: np.ndarray | None = None, *, where: str = "") -> np.ndarray:
        """Return the voxels that count, (N,) float64, checked; see `fitted`."""
        if not np.isfinite(values).all():
            raise DataError(f"{_at(where)}the series holds NaN or infinite values; mend or leave it out.")
        if mask is not None and mask.shape != values.shape:
            raise DataError(
                f"{_at(where)}the mask has {mask.shape} voxels and the series {values.shape}: another grid."
            )
        if mask is None:
            chosen = values[values > (values.mean(dtype=np.float64) if self.above is None else self.above)]
        else:
            chosen = values[mask]
        chosen = chosen.astype(np.float64)
        everything = values if mask is None else chosen
        negative = float(np.mean(everything < 0)) if everything.size else 0.0
        if not self.signed and negative > _SIGNED_SHARE:
            raise DataError(
                f"{_at(where)}{negative:.0%} of the voxels are negative, and kind {self.kind} takes magnitudes: this "
                "looks like a CT, a phase image, a signed QSM or a series normalised elsewhere. Give magnitudes, "
                "or say that values are signed: normalisation.signed=true."
            )
        if chosen.size < _FEWEST:
            what = "mask" if mask is not None else "foreground"
            raise DataError(f"{_at(where)}the {what} has {chosen.size} voxels, fewer than the {_FEWEST} a curve needs.")
        return chosen

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: what preprocess.json and a volume's facts hold."""
        return dataclasses.asdict(self)


def check_sign(sign: str, where: str = "lesion_sign") -> str:
    """Return `dark` or `bright`. Raises ConfigError for anything else; there is no default."""
    if sign not in SIGNS:
        raise ConfigError(
            f"{where}: say whether lesions are darker or brighter than what is around them: dark (T2*, SWI) or bright "
            f"(QSM, nodules in CT); got {sign!r}. A wrong sign finds nothing, so none is assumed."
        )
    return sign


def normalise_volume(
    volume: Volume, normalisation: Normalisation, mask: np.ndarray | None = None, *, where: str = ""
) -> Volume:
    """Return a volume in the network's values, float32, whose facts say how it was made; one that already is, as it is.

    mask: bool, on the volume's grid (the brain): what the curve is fitted to. With kind max_invert what lies outside it
    becomes 0, as in the paper. Raises DataError for a CT, and for a volume that was normalised in another way.
    """
    if already_normalised(volume.facts, normalisation, where=where):
        return volume
    if volume.modality == "CT":
        raise DataError(f"{_at(where)}a CT has HU and takes fixed windows; normalisation is of MR. Use kind none.")
    curve = normalisation.fitted(volume.voxels, mask, where=where)
    values = curve.of_array(volume.voxels)
    if mask is not None and normalisation.kind == "max_invert":
        values = values * mask
    record = {"settings": normalisation.to_dict(), "curve": curve.to_dict(), "masked": mask is not None}
    return replace(volume, voxels=values, units=UNITS_NORMALISED, facts={**volume.facts, FACT: record})


def already_normalised(facts: Mapping[str, Any], normalisation: Normalisation, *, where: str = "") -> bool:
    """Return whether a volume's facts say that it was normalised like this.

    Raises DataError where it was normalised in another way: values are not normalised a second time.
    """
    record = facts.get(FACT)
    if record is None:
        return False
    settings = record.get("settings") if isinstance(record, Mapping) else None
    if settings == normalisation.to_dict():
        return True
    kind = settings.get("kind") if isinstance(settings, Mapping) else "an unknown kind"
    raise DataError(
        f"{_at(where)}this series was normalised already ({kind}), and here kind {normalisation.kind} with its own "
        "settings is asked for: a second pass would invert or stretch it again. Give the series as it was acquired."
    )


def fit_nyul(series: Iterable[np.ndarray], normalisation: Normalisation) -> Normalisation:
    """Return the normalisation with the standard scale of Nyúl and Udupa (2000), fitted to training series.

    series: the voxels that count, (N,) each (`Normalisation.inside`). Each series' landmarks, with the outer ones put
    at 0 and 1, are averaged. Raises DataError for a constant series, or none.
    """
    rows = []
    for number, values in enumerate(series):
        found = _landmarks(values, normalisation, f"training series {number}")
        rows.append((found - found[0]) / (found[-1] - found[0]))
    if not rows:
        raise DataError("normalisation: no training series to fit Nyúl's standard scale to.")
    return replace(normalisation, standard=[float(height) for height in np.mean(rows, axis=0)])


def _zscore(values: np.ndarray, settings: Normalisation, where: str) -> Curve:
    mean, deviation = float(values.mean()), float(values.std())
    if not deviation > 0:
        raise _constant(values, where)
    return Curve((mean, mean + deviation), (0.0, 1.0))


def _percentile(values: np.ndarray, settings: Normalisation, where: str) -> Curve:
    low, high = (float(v) for v in np.percentile(values, [settings.percentiles[0], settings.percentiles[-1]]))
    if not low < high:
        raise _constant(values, where)
    return Curve((low, high), (0.0, 1.0), clip=True)


def _nyul(values: np.ndarray, settings: Normalisation, where: str) -> Curve:
    knots, heights = _landmarks(values, settings, where), np.asarray(settings.standard)
    kept = np.concatenate([[True], np.diff(knots) > 0])  # landmarks that fall together (8-bit data) are one
    return Curve(tuple(map(float, knots[kept])), tuple(map(float, heights[kept])))


def _white_stripe(values: np.ndarray, settings: Normalisation, where: str) -> Curve:
    """Return the curve of Shinohara et al. (2014): mean and spread of the voxels whose rank is near the peak's."""
    peak = histogram_peak(values, settings.peak, where=where)
    rank = float(np.mean(values <= peak))
    low, high = np.quantile(values, [max(rank - settings.width, 0.0), min(rank + settings.width, 1.0)])
    stripe = values[(values >= low) & (values <= high)]
    if not stripe.size or not stripe.std() > 0:
        raise _constant(values, where)
    return Curve((float(stripe.mean()), float(stripe.mean() + stripe.std())), (0.0, 1.0))


def _max_invert(values: np.ndarray, settings: Normalisation, where: str) -> Curve:
    """Return the inversion of Sundaresan et al. (2023): 1 − value / largest; lesions become bright."""
    largest = float(values.max())
    if not largest > 0:
        raise _constant(values, where)
    return Curve((0.0, largest), (1.0, 0.0), clip=True)


def histogram_peak(values: np.ndarray, which: str, *, where: str = "") -> float:
    """Return the value at a peak of the smoothed histogram: the `first`, `last` or `highest` one.

    Smoothing is Gaussian with Silverman's width over the central 99 % of the values; peaks under a tenth of the highest
    one are noise.
    """
    low, high = np.quantile(values, [0.005, 0.995])
    if not low < high:
        raise _constant(values, where)
    quartiles = np.quantile(values, [0.25, 0.75])
    spread = min(float(values.std()), float(quartiles[1] - quartiles[0]) / 1.349) or float(values.std())
    width = 0.9 * spread * values.size**-0.2
    counts, edges = np.histogram(values, bins=_BINS, range=(low - 3 * width, high + 3 * width))
    centres = (edges[1:] + edges[:-1]) / 2
    reach = np.arange(-_BINS, _BINS + 1) * (edges[1] - edges[0]) / width
    density = np.convolve(counts, np.exp(-0.5 * reach**2), mode="same" if len(reach) < _BINS else "full")
    density = density[len(reach) // 2 : len(reach) // 2 + _BINS]
    inner = np.flatnonzero((density[1:-1] >= density[:-2]) & (density[1:-1] > density[2:])) + 1
    peaks = inner[density[inner] > 0.1 * density.max()]
    if not len(peaks):
        peaks = np.array([int(density.argmax())])
    return float(centres[_PEAKS[which](peaks, density)])


_PEAKS: dict[str, Callable[[np.ndarray, np.ndarray], int]] = {
    "first": lambda peaks, density: int(peaks[0]),
    "last": lambda peaks, density: int(peaks[-1]),
    "highest": lambda peaks, density: int(peaks[density[peaks].argmax()]),
}
KINDS: dict[str, Callable[[np.ndarray, Normalisation, str], Curve]] = {
    "zscore_mask": _zscore,
    "percentile": _percentile,
    "nyul": _nyul,
    "white_stripe": _white_stripe,
    "max_invert": _max_invert,
}


def _landmarks(values: np.ndarray, settings: Normalisation, where: str) -> np.ndarray:
    found = np.percentile(values, settings.landmarks)
    if not found[0] < found[-1]:
        raise _constant(values, where)
    return found


def _constant(values: np.ndarray, where: str) -> DataError:
    return DataError(
        f"{_at(where)}the voxels that count are all near {float(np.median(values)):g}: nothing to normalise."
    )


def _at(where: str) -> str:
    return f"{where}: " if where else ""


def settings_from(tree: Mapping[str, Any] | None) -> Normalisation:
    """Return the normalisation of `to_dict`'s tree; None is kind none. Raises TypeError or ConfigError."""
    return Normalisation(**tree) if tree else Normalisation()
