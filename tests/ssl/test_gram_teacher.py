import pytest
import torch

from fmct.errors import ConfigError
from fmct.losses.gram import gram_loss
from fmct.ssl.gram_teacher import GramConfig, GramTeacher
from tests.ssl.small_runs import tiny_encoder


def weights(encoder: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in encoder.parameters()])


def test_the_snapshot_is_refreshed_on_schedule_and_no_more_often_than_allowed():
    encoder, moving = tiny_encoder(), tiny_encoder()
    gram = GramTeacher(encoder, GramConfig(first_refresh=4, refresh_every=3, max_refreshes=2))
    assert gram.encoder is not None
    refreshed = []
    for update in range(1, 15):
        with torch.no_grad():
            moving.cls_token.add_(1)
        gram.after_update(update, moving)
        if torch.equal(weights(gram.encoder), weights(moving)):
            refreshed.append(update)
    assert refreshed == [4, 7]
    assert gram.refreshes == 2


def test_the_count_and_the_snapshot_are_run_state():
    encoder, moving = tiny_encoder(), tiny_encoder()
    config = GramConfig(refresh_every=1, max_refreshes=1)
    gram, other = GramTeacher(encoder, config), GramTeacher(tiny_encoder(), config)
    gram.after_update(1, moving)
    other.load(gram.state())
    other.after_update(2, encoder)  # spent: nothing happens
    assert other.refreshes == 1
    assert gram.encoder is not None
    assert other.encoder is not None
    assert torch.equal(weights(other.encoder), weights(moving))


@pytest.mark.parametrize("source", ["snapshot", "ema"])
def test_the_anchor_is_the_snapshot_or_the_teacher_of_this_step(source):
    encoder = tiny_encoder().eval()
    gram = GramTeacher(encoder, GramConfig(source=source, level="batch", negatives="clip"))
    views, spacing = torch.randn(2, 2, 8, 8, 8), torch.ones(2, 3)
    student, teacher = torch.randn(2, 8, 32), torch.randn(2, 8, 32)
    anchor = encoder(views, spacing).patches if source == "snapshot" else teacher
    expected = gram_loss(student, anchor, level="batch", negatives="clip")
    torch.testing.assert_close(gram.loss(student, teacher, views, spacing), expected)


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="snapshot or ema"):
        GramTeacher(tiny_encoder(), GramConfig(source="teacher"))
    with pytest.raises(ConfigError, match="refresh_every"):
        GramTeacher(tiny_encoder(), GramConfig(refresh_every=0))
