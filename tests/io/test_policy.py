"""The read policy: wrong values are told at once, tables and patterns name modalities."""

import pytest

from fmct import config
from fmct.errors import ConfigError
from fmct.io import ReadPolicy


@pytest.mark.parametrize(
    "wrong",
    [
        {"tilt": "mend"},
        {"spacing": "yes"},
        {"kernels": "merge"},
        {"duplicates": "keep"},
        {"nifti_affine": "both"},
        {"series_scope": "file"},
        {"modalities": ("US",)},
        {"modalities": ()},
        {"modality_patterns": {"*": "XX"}},
        {"min_slices": 1},
        {"max_voxels": 0},
    ],
)
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ConfigError):
        ReadPolicy(**wrong)


def test_it_is_built_from_a_config_tree():
    policy = config.build(
        ReadPolicy, {"tilt": "resample", "modalities": ["CT", "PT"], "modality_patterns": {"*pet*": "PT"}}
    )
    assert policy.tilt == "resample"
    assert tuple(policy.modalities) == ("CT", "PT")
    assert policy.named_modality("a/b_pet.nii") == "PT"
    assert policy.named_modality("a/b_ct.nii") is None


def test_tables_that_are_not_usable(tmp_path):
    with pytest.raises(ConfigError, match="not readable"):
        ReadPolicy(modality_table=str(tmp_path / "gone.csv")).named_modality("x")
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="columns file and modality"):
        ReadPolicy(modality_table=str(tmp_path / "columns.csv")).named_modality("x")
    (tmp_path / "unknown.csv").write_text("file,modality\nx.nii,US\n")
    with pytest.raises(ConfigError, match="expected CT, PT or MR"):
        ReadPolicy(modality_table=str(tmp_path / "unknown.csv")).named_modality("x")
    (tmp_path / "good.csv").write_text("file,modality\nsub/x.nii,mr\n")
    assert ReadPolicy(modality_table=str(tmp_path / "good.csv")).named_modality("sub/x.nii") == "MR"
