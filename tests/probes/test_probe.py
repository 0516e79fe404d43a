import json
from pathlib import Path

import numpy as np
import pytest

from fmct.artefacts import read_json
from fmct.cli import main
from fmct.errors import DataError
from fmct.probes.comparison import FORMAT
from fmct.probes.location import PAIRS_FILE
from fmct.probes.masks import encoded
from fmct.probes.probe import probe
from fmct.publish.facts import corpus_facts
from fmct.publish.load import load_encoder
from fmct.store.ingest import IngestConfig, ingest
from fmct.store.reader import Store
from fmct.volume import Volume
from tests.publish.tiny import FACTS, body, tiny_encoder, write_nifti

COUNT = 9


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine trunks, one a patient, each with a mask on the upper or lower half of its abdomen; and an encoder."""
    root = tmp_path_factory.mktemp("probe")
    for number in range(COUNT):
        scan = body(number)
        write_nifti(root / "scans" / f"P{number}" / "ct.nii.gz", scan)
        mask = np.zeros(scan.shape, np.int16)
        mask[2:14, 4:-4, 4 : 16 + number] = 1
        write_nifti(root / "masks" / f"P{number}" / "ct_gtv.nii.gz", Volume(mask, scan.affine))
    ingest([root / "scans"], root / "store", config=IngestConfig(workers=1, patient_regex=r"(P\d)"))
    tiny_encoder(root / "encoder")
    return root


@pytest.fixture
def store(root: Path) -> Store:
    return Store.open(root / "store")


def run(root: Path, *arguments: str) -> int:
    return main(["probe", str(root / "encoder"), str(root / "store"), "--seeds", "2", *arguments])


def test_dense_probe_from_the_command_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "--masks", str(root / "masks"), "--output", str(tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    for row in ("encoder", "random initialisation (2 seeds)", "HU statistics of the token", "mean HU of the token"):
        assert row in printed
    assert (tmp_path / "out" / "probe-dense.txt").read_text() == printed
    result = read_json(tmp_path / "out" / "probe-dense.json", *FORMAT)
    assert len(result["values"]["encoder"]) == COUNT
    assert result["rows"][1]["gain"]["n"] == COUNT
    assert result["store"] == Store.open(root / "store").fingerprint()
    assert sorted(p for fold in result["facts"]["folds"] for p in fold["test"]) == sorted(result["values"]["encoder"])
    assert run(root, "--masks", str(root / "masks"), "--output", str(tmp_path / "again")) == 0
    assert (tmp_path / "again" / "probe-dense.json").read_bytes() == (
        tmp_path / "out" / "probe-dense.json"
    ).read_bytes()


def test_location_probe_keeps_its_pairs(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, "--output", str(tmp_path)) == 0
    assert "location probe" in capsys.readouterr().out
    first = (tmp_path / "probe-location.json").read_bytes()
    pairs = (tmp_path / PAIRS_FILE).read_bytes()
    assert json.loads(first)["format"]["name"] == "fmct-probe"
    assert run(root, "--output", str(tmp_path)) == 0
    assert (tmp_path / "probe-location.json").read_bytes() == first
    assert (tmp_path / PAIRS_FILE).read_bytes() == pairs
    capsys.readouterr()
    assert run(root, "--output", str(tmp_path), "--seed", "1") == 2
    assert "drawn from another store or with other settings" in capsys.readouterr().err


def test_label_probe_and_patients(root: Path, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{e.id},{'' if k == 0 else k % 2}" for k, e in enumerate(store.entries)]
    table = tmp_path / "labels.csv"
    table.write_text("id,sex\n" + "\n".join(rows) + "\n")
    assert run(root, "--labels", str(table), "--target", "sex", "--resamples", "150") == 0
    printed = capsys.readouterr().out
    for row in ("linear: encoder", "5-NN: random initialisation (2 seeds)", "linear: HU statistics of the series"):
        assert row in printed
    assert "1 series have no known label" in printed
    assert run(root, "--labels", str(table)) == 2
    assert "--target" in capsys.readouterr().err


def test_patients_of_pretraining_are_not_scored(root: Path, store: Store, tmp_path: Path) -> None:
    seen = store.entries[:2]
    facts = {**FACTS, "corpus": corpus_facts(seen)}
    encoder = load_encoder(tiny_encoder(tmp_path / "encoder", facts=facts))
    (report,) = probe(encoder, store, masks=root / "masks", seeds=1)
    assert len(report.values["encoder"]) == COUNT - 2
    assert not {e.patient for e in seen} & set(report.values["encoder"])
    assert any(seen[0].patient in note for note in report.notes)
    (report,) = probe(encoder, store, masks=root / "masks", seeds=1, test=[e.patient for e in store.entries[1:4]])
    assert set(report.values["encoder"]) == {e.patient for e in store.entries[2:4]}


def test_split_and_lists_name_who_is_scored(
    root: Path, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = ["--masks", str(root / "masks"), "--output", str(tmp_path)]
    assert run(root, *masks, "--split", "test") == 2
    assert "fmct split" in capsys.readouterr().err
    chosen = [e.patient for e in store.entries[:3]]
    (tmp_path / "list.txt").write_text("\n".join(chosen) + "\n")
    for argument in (",".join(chosen), str(tmp_path / "list.txt")):
        assert run(root, *masks, "--patients", argument) == 0
        result = read_json(tmp_path / "probe-dense.json", *FORMAT)
        assert set(result["values"]["encoder"]) == set(chosen)
        assert "3 patients: no interval below 6" in capsys.readouterr().out
    splits = root / "store" / "splits.csv"
    splits.write_text("patient,split\n" + "\n".join(f"{p},test" for p in chosen) + "\n")
    try:
        assert run(root, *masks, "--split", "test") == 0
        assert set(read_json(tmp_path / "probe-dense.json", *FORMAT)["values"]["encoder"]) == set(chosen)
    finally:
        splits.unlink()


def test_layers_join_the_tokens_of_several_blocks(root: Path, store: Store) -> None:
    encoder = load_encoder(root / "encoder")
    (report,) = probe(encoder, store, masks=root / "masks", seeds=1, layers=[0, -1])
    assert report.facts["layers"] == [0, -1]
    from fmct.data.mask_files import match_masks
    from fmct.probes.dense import draw_tokens
    from fmct.probes.dense_cases import dense_cases

    cases = dense_cases(store, store.entries[:1], match_masks(store, root / "masks"), encoder.preprocessing)
    tokens = draw_tokens(cases, size=(16, 16, 16), patch=(4, 4, 4), positions=2)
    (joined,), (last,) = encoded(encoder, tokens, [0, -1]).values(), encoded(encoder, tokens).values()
    assert joined.shape == (len(last), 128)
    np.testing.assert_allclose(joined[:, 64:], last, atol=1e-5)


def test_mistakes_are_explained(root: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = load_encoder(root / "encoder")
    with pytest.raises(DataError, match="at least one random"):
        probe(encoder, store, seeds=0)
    assert run(root, "--masks", str(root / "masks"), "--layers", "one") == 2
    assert "block numbers" in capsys.readouterr().err
