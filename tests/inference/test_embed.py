import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fmct.cli import main
from fmct.errors import ArtefactError, DataError
from fmct.inference.embed import embed, scan_of_entry, write_features, write_sources
from fmct.preprocess import InputSpec
from fmct.publish.load import PublishedEncoder, load_encoder
from fmct.store import Store
from fmct.store.fingerprint import PseudonymKey
from fmct.store.ingest import ingest
from tests.publish.tiny import PREPROCESSING, body, tiny_encoder, write_nifti


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans, a text file and a mask in a folder, a store of the scans, and an encoder."""
    root = tmp_path_factory.mktemp("embed")
    for number in range(2):
        write_nifti(root / "scans" / "ZZPHI^CANARY" / f"{number}.nii.gz", body(number))
    (root / "scans" / "notes.txt").write_text("MRN 0815")
    with ThreadPoolExecutor(1) as executor:
        ingest([root / "scans"], root / "store", executor=executor)
    mask = body()
    write_nifti(root / "scans" / "mask.nii.gz", replace(mask, voxels=(mask.voxels > 0).astype(np.int16)))
    tiny_encoder(root / "encoder")
    return root


@pytest.fixture
def encoder(root: Path) -> PublishedEncoder:
    return load_encoder(root / "encoder")


def test_scans_and_store_give_the_features_of_each_series(root: Path, encoder: PublishedEncoder) -> None:
    expected = [encoder.embed(body(number)) for number in range(2)]
    scans = embed(encoder, root / "scans")
    np.testing.assert_allclose(scans.matrix, np.stack(expected), atol=1e-6)
    assert len(set(scans.ids)) == len(set(scans.patients)) == 2
    assert {code for _, code, _ in scans.refused} == {"not-an-image", "implausible-hu"}
    stored = embed(encoder, root / "store")
    entries = Store.open(root / "store").entries
    assert stored.ids == [entry.id for entry in entries]
    assert stored.patients == [entry.patient for entry in entries]
    order = [int(np.abs(stored.matrix - vector).sum(1).argmin()) for vector in expected]
    assert sorted(order) == [0, 1]
    np.testing.assert_allclose(stored.matrix[order], np.stack(expected), atol=1e-6)
    single = embed(encoder, root / "scans" / "ZZPHI^CANARY" / "1.nii.gz")
    np.testing.assert_allclose(single.matrix[0], expected[1], atol=1e-6)


@pytest.mark.parametrize("orientation", ["SPL", "RAS"])
@pytest.mark.parametrize("percentiles", [None, (1.0, 99.0)])
def test_a_stores_level_is_cut_as_the_volumes(
    root: Path, orientation: str, percentiles: tuple[float, float] | None
) -> None:
    spec = InputSpec(size_voxels=(8, 8, 8), spacing_mm=(24.0, 21.0, 22.0), foreground_above=None)
    windows = () if percentiles else PREPROCESSING.windows
    preprocessing = replace(
        PREPROCESSING, input=spec, orientation=orientation, windows=windows, percentiles=percentiles
    )
    store = Store.open(root / "store")
    for entry in store.entries:
        expected = preprocessing.tiles(store.volume(entry))
        scan = scan_of_entry(preprocessing, store, entry)
        found = next(preprocessing.batches(scan, batch_size=1000))
        assert max(scan.factor) > 1
        assert torch.equal(found.tensor, expected.tensor)
        np.testing.assert_array_equal(found.start_mm, expected.start_mm)


def test_patients_keep_a_stores_pseudonyms_with_its_key_only(encoder: PublishedEncoder, root: Path) -> None:
    key = PseudonymKey(b"0" * 32)
    first, again = (embed(encoder, root / "scans", key=key) for _ in range(2))
    assert first.patients == again.patients
    assert not set(first.patients) & set(embed(encoder, root / "scans").patients)


def test_the_file_opens_without_pickle_and_holds_the_tiles(
    root: Path, encoder: PublishedEncoder, tmp_path: Path
) -> None:
    features = embed(encoder, root / "store")
    write_features(tmp_path / "f.npz", features, encoder, tiles=True)
    write_features(tmp_path / "g.npz", features, encoder, tiles=True)
    assert (tmp_path / "f.npz").read_bytes() == (tmp_path / "g.npz").read_bytes()
    with np.load(tmp_path / "f.npz", allow_pickle=False) as file:
        assert file["ids"].tolist() == features.ids
        np.testing.assert_array_equal(file["embedding"], features.matrix)
        meta = json.loads(str(file["meta"]))
        assert meta["format"] == {"name": "fmct-embedding", "version": "1.0"}
        for number, part in enumerate(features.embeddings):
            chosen = file["tile_series"] == number
            np.testing.assert_array_equal(file["tile_features"][chosen], part.tiles)
            np.testing.assert_array_equal(file["tile_start_mm"][chosen], part.start_mm)
            weights = file["tile_foreground"][chosen]
            mean = (part.tiles * weights[:, None]).sum(0) / weights.sum()
            np.testing.assert_allclose(mean, file["embedding"][number], atol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"f.npz", "g.npz"}
    with pytest.raises(ArtefactError, match="cannot be written"):
        write_features(tmp_path / "absent" / "f.npz", features, encoder)


def test_nothing_to_embed_is_an_error(root: Path, encoder: PublishedEncoder) -> None:
    with pytest.raises(DataError, match=r"nothing to embed for an encoder of CT .*implausible-hu"):
        embed(encoder, root / "scans" / "mask.nii.gz")
    other = PublishedEncoder(encoder.model, encoder.config, replace(encoder.preprocessing, modality="MR"))
    with pytest.raises(DataError, match=r"takes MR, and the series is CT"):
        embed(other, root / "store")


def test_the_command_line_embeds_and_names_nobody(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "f.npz"
    arguments = ["embed", str(root / "encoder"), str(root / "scans"), str(out), "--tiles", "--device", "cpu"]
    assert main([*arguments, "--sources", str(tmp_path / "sources.csv")]) == 0
    said = capsys.readouterr()
    assert "2 series of 2 patients, 128 features each" in said.out
    assert "not taken: 1 × implausible-hu" in said.err
    for text in (said.out, said.err, out.read_bytes().decode("latin-1")):
        assert "ZZPHI" not in text
        assert "CANARY" not in text
    assert "ZZPHI^CANARY" in (tmp_path / "sources.csv").read_text()
    assert main(["embed", str(root / "encoder"), str(root / "absent"), str(out)]) == 2
    assert main(["embed", str(root / "encoder"), str(root / "scans"), str(tmp_path / "f.csv")]) == 2
    assert main([*arguments, "--key", str(tmp_path / "absent.key")]) == 2
    assert "no such key file" in capsys.readouterr().err


def test_sources_table_maps_ids_to_paths(root: Path, encoder: PublishedEncoder, tmp_path: Path) -> None:
    features = embed(encoder, root / "scans")
    write_sources(tmp_path / "s.csv", features)
    rows = [line.split(",") for line in (tmp_path / "s.csv").read_text().splitlines()[1:]]
    assert {name: Path(path).name for name, path in rows} == dict(
        zip(features.ids, ("0.nii.gz", "1.nii.gz"), strict=True)
    )
