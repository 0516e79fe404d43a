"""The pretraining hazard of contrast, measured: which views make an encoder blind to it?

  python -m fmct.experiment.contrast_hazard DATA OUT --minutes 15

DATA holds the three enhanced series (or others, named with --series). Two small encoders are pretrained on the embedded
CT without those patients, one with the default views and one whose views shift HU by up to ±300; both, random weights
and the mean HU then stand before fmct.contrast.hazard's pairs. OUT gets pairs, encoders, a JSON a cell, and table.md.
The same command again goes on. Research only, not a medical device.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmct.artefacts import write_json, write_text
from fmct.contrast.hazard import FALL, TARGET, Pair, features_of, make_pairs, mean_hu, probe_pairs, verdict, vessel_mask
from fmct.errors import told_to_the_user
from fmct.experiment.grid import Cell, cells_of, read_cells, run_cells
from fmct.experiment.pretraining import encoder_without
from fmct.io import read_volume
from fmct.probes.comparison import random_encoder
from fmct.publish.load import PublishedEncoder, load_encoder
from fmct.volume import Volume

FORMAT = ("fmct-contrast-hazard", "1.0")
SERIES = ("abdomen_ce_crlm1006.nii.gz", "abdomen_ce_jpeg2000_dicom", "cardiac_cta_ts1p5mm.nii.gz")
WITHOUT = ("CRLM_1006", "TS_ABDOMEN_CE", "TS_CARDIAC")
_JITTER = "{probability: 1.0, range: [-300.0, 300.0]}"
ARMS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "jitter": tuple(f"views.{kind}.appearance=[{{shift_hu: {_JITTER}}}]" for kind in ("global_views", "local_views")),
}
OBJECTIVE = ("objective.weights={dino: 1.0, ibot: 1.0, koleo: 0.1, pixel: 0.0}",)
"""Self-distillation alone: a pixel term shows the network the HU that the views are to make it forget."""


@dataclass(frozen=True)
class HazardConfig:
    """pairs: of each series. side_mm: of a crop. seeds: two encoders each. overrides: key=value of pretraining."""

    series: Sequence[str] = SERIES
    without: Sequence[str] = WITHOUT
    pairs: int = 60
    side_mm: float = 72.0
    seeds: Sequence[int] = (0,)
    overrides: Sequence[str] = ("steps=300",)


def run_hazard(data: Path, out: Path, config: HazardConfig, *, minutes: float = 0.0) -> str:
    """Run the cells that are left, write OUT/table.md and results.json, and return the table."""
    cells = cells_of({arm: [0] for arm in (*ARMS, "random", "mean HU")}, folds=[0], seeds=list(config.seeds))
    runner = _Runner(data, out, config)
    left = run_cells(cells, out, runner.run, minutes=minutes)
    done = read_cells(cells, out)
    text = table(done, left=len(left), pairs=config.pairs)
    aurocs = means(done)
    told = verdict(aurocs) if len(aurocs) == len(ARMS) + 2 and not left else []
    write_json(out / "results.json", *FORMAT, {"auroc": aurocs, "verdict": told, "left": len(left)})
    write_text(out / "table.md", text + "".join(f"\n- {line}" for line in told) + "\n")
    return text + "".join(f"\n- {line}" for line in told)


def means(cells: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return {arm: AUROC}, the mean over seeds of the mean over left-out series."""
    arms = list(dict.fromkeys(cell["arm"] for cell in cells))
    return {arm: float(np.mean([cell["auroc"] for cell in cells if cell["arm"] == arm])) for arm in arms}


def table(cells: Sequence[Mapping[str, Any]], *, left: int, pairs: int) -> str:
    """Return the arms with their AUROC, series by series; three series have no interval."""
    series = list(dict.fromkeys(name for cell in cells for name in cell["by_series"]))
    head = ["frozen features", "AUROC", "pairs in order", *(f"left out: {name}" for name in series)]
    lines = [
        f"Enhanced vessels against the same at 40 HU, {pairs} pairs a series, equal mean HU; target {TARGET}, and a "
        f"fall of {FALL} with jitter. {left} cells left.",
        "",
        "| " + " | ".join(head) + " |",
        "|---|" + "---:|" * (len(head) - 1),
    ]
    for arm, auroc in means(cells).items():
        own = [cell for cell in cells if cell["arm"] == arm]
        columns = [auroc, float(np.mean([cell["ordered"] for cell in own]))]
        columns += [float(np.mean([cell["by_series"][name] for cell in own])) for name in series]
        lines.append(f"| {arm} ({len(own)} seeds) | " + " | ".join(f"{value:.3f}" for value in columns) + " |")
    return "\n".join(lines) + "\n"


class _Runner:
    """Runs a cell: the arm's encoder, made or loaded, on pairs that are made once."""

    def __init__(self, data: Path, out: Path, config: HazardConfig) -> None:
        self._data, self._out, self._config = data, out, config
        self._pairs: list[Pair] = []

    def run(self, cell: Cell) -> dict[str, Any]:
        """Return what the probe finds on one arm's features."""
        embed = mean_hu if cell.arm == "mean HU" else self._encoder(cell).embed
        found: Callable[[Volume], np.ndarray] = embed  # type: ignore[assignment]
        return probe_pairs(features_of(self.pairs(), found))

    def pairs(self) -> list[Pair]:
        """Return the pairs of every series."""
        for name in self._config.series if not self._pairs else ():
            volume = read_volume(self._data / name)
            side = (self._config.side_mm,) * 3
            self._pairs += make_pairs(
                name, volume, side_mm=side, count=self._config.pairs, seed=0, mask=vessel_mask(volume)
            )
        return self._pairs

    def _encoder(self, cell: Cell) -> PublishedEncoder:
        arm = "default" if cell.arm == "random" else cell.arm
        words = [*OBJECTIVE, *ARMS[arm], f"seed={cell.seed}", *self._config.overrides]
        name = f"{arm}-seed{cell.seed}"
        folder = encoder_without(self._config.without, self._out / "encoders", overrides=words, name=name)
        encoder = load_encoder(str(folder))
        return random_encoder(encoder, cell.seed) if cell.arm == "random" else encoder


@told_to_the_user
def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the command line says; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m fmct.experiment.contrast_hazard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="the folder of the enhanced series")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of pretraining (default steps=300)")
    parser.add_argument("--series", action="append", help="a file or DICOM folder in DATA, enhanced; at least two")
    parser.add_argument("--pairs", type=int, default=60, help="of each series")
    parser.add_argument("--seeds", type=int, default=1, help="how many pairs of encoders")
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no cell after so long")
    chosen = parser.parse_args(arguments)
    config = HazardConfig(
        series=tuple(chosen.series or SERIES),
        pairs=chosen.pairs,
        seeds=tuple(range(chosen.seeds)),
        overrides=("steps=300", *chosen.overrides),
    )
    print(run_hazard(chosen.data, chosen.out, config, minutes=chosen.minutes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
