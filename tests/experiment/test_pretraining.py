"""Encoders of an experiment: trained once, without whom they are tested on, their preprocessing known beforehand."""

import pytest

from fmct.experiment import pretraining
from fmct.publish.load import load_encoder


def test_the_preprocessing_is_known_before_an_encoder_is_trained(tmp_path):
    words = [
        "steps=1",
        "batch_size=2",
        "data.workers=0",
        "engine.kind=torch",
        "views.global_views.size=[16,16,16]",
        "run.progress_s=1e9",
    ]
    folder = pretraining.encoder_without(["STS_001"], tmp_path, overrides=words)
    assert load_encoder(folder).preprocessing == pretraining.preprocessing_here(words)


def test_an_encoder_is_not_trained_again(tmp_path):
    (tmp_path / "fold-3").mkdir()
    assert pretraining.encoder_without(["STS_001"], tmp_path, overrides=[], fold=3) == tmp_path / "fold-3"


def test_a_patient_who_is_not_in_the_corpus_cannot_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining.corpus, "make_store", lambda path: None)
    monkeypatch.setattr(pretraining.corpus, "patients", lambda path: set())
    with pytest.raises(pretraining.DataError, match="no patient STS_999"):
        pretraining.encoder_without(["STS_999"], tmp_path, overrides=[], fold=0)
