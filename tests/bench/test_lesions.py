from pathlib import Path

import numpy as np

from fmct.bench.lesions import CANDIDATES, bench_lesions, phantom
from fmct.bench.targets import TARGETS
from fmct.bench.workbench import QUICK, Workbench
from fmct.lesions.cleanup import clean
from fmct.lesions.symmetry import symmetry_map


def test_figures_have_floors_and_targets_that_small_sizes_are_not_held_against(tmp_path: Path) -> None:
    said: list[str] = []
    figures = bench_lesions(Workbench(tmp_path, QUICK, say=said.append))
    assert [figure.name for figure in figures] == ["lesions/symmetry", "lesions/cleanup", "lesions/cleanup/paper"]
    for figure in figures:
        assert figure.floor is not None
        assert 0 < figure.floor < figure.value
        assert figure.name in TARGETS
        assert figure.to_dict()["met"] is None
    assert said == ["lesions: 64³ voxels"]


def test_the_phantoms_balls_are_what_the_map_finds_and_the_clean_up_keeps() -> None:
    image, labels, brain = phantom(64)
    assert len(np.unique(labels)) > CANDIDATES // 2
    found = symmetry_map(image, (1.0,) * 3, radii_mm=[2.0, 3.0], sign="dark")
    assert found[labels > 0].mean() > 5 * found[labels == 0].mean()
    kept, verdicts = clean(labels, brain, (1.0,) * 3)
    assert 0 < sum(verdict.kept for verdict in verdicts) < len(verdicts)
    assert kept.max() > 0
