"""The dual-pathway network: what is shared, what a missing CTPA leaves alone, and what is exported (T1, N1-N3)."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fmct.errors import ConfigError, DataError
from fmct.models.adaptation import adapt
from fmct.models.dual_phase import DualPhase, DualPhaseConfig, build_dual_phase
from fmct.models.phase_heads import PhaseOutput
from fmct.models.single_phase import SinglePhase
from fmct.models.taps import tap
from fmct.models.unet import ConvEncoder
from tests.models.networks import noise, tiny_encoder

SMALL = {"width": 16, "stem_channels": 4, "hidden": 8}
X, Y = noise(3, 1, 5, 8, 8), noise(3, 1, 5, 8, 8, seed=1)
SOME = torch.tensor([True, False, True])


def conv_encoder() -> ConvEncoder:
    torch.manual_seed(3)
    return ConvEncoder(1, filters=[4, 8, 12], strides=[[1, 2, 2], [2, 2, 2]])


def network(share: str = "encoder", make: Callable[[], nn.Module] = tiny_encoder, **settings: object) -> DualPhase:
    """Return a seeded network whose phase embedding has moved from zero."""
    encoder = make()
    torch.manual_seed(4)
    model = DualPhase(encoder, share=share, **{**SMALL, **settings})  # type: ignore[arg-type]
    if model.phase_embedding is not None:
        model.phase_embedding.data.copy_(0.3 * noise(*model.phase_embedding.shape, seed=2))
    return model


def tensors(output: PhaseOutput) -> list[torch.Tensor]:
    return [
        output.segmentation,
        output.classification,
        *output.taps,
        *output.aligned,
        output.neck,
        *([] if output.attention is None else [output.attention]),
    ]


def same(a: PhaseOutput, b: PhaseOutput) -> bool:
    """Return whether every tensor of two outputs is equal bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


CASES = [(share, make) for make in (tiny_encoder, conv_encoder) for share in ("encoder", "none", "all")]
cases = pytest.mark.parametrize(("share", "make"), CASES, ids=lambda v: v if isinstance(v, str) else v.__name__)


def test_step_0_is_the_pretrained_encoder_bit_for_bit() -> None:
    encoder = tiny_encoder()
    model, x = DualPhase(encoder, **SMALL).eval(), noise(2, 1, 4, 8, 8)
    expected = tap(encoder, x, taps=4)
    assert model.phase_embedding is not None
    assert model.phase_embedding.shape == (2, 24)
    output = model(x, x)
    for phase in (output.nct, output.ctpa):
        assert all(torch.equal(a, b) for a, b in zip(phase.taps, expected.maps, strict=True))


@cases
def test_shapes_of_both_phases(share: str, make: Callable[[], nn.Module]) -> None:
    model = network(share, make, projector_dim=6)
    output = model(X, Y, has_pair=SOME)
    assert output.pair_rows.tolist() == [0, 2]
    for phase, rows in ((output.nct, 3), (output.ctpa, 2)):
        assert phase.segmentation.shape == (rows, 1, 5, 8, 8)
        assert phase.classification.shape == (rows, 1)
        size = model.padded((5, 8, 8))
        for map_, stride in zip(phase.taps, model.tap_strides, strict=True):
            assert [n * s for n, s in zip(map_.shape[2:], stride, strict=True)] == list(size)
        assert [m.shape[:2] for m in phase.aligned] == [(rows, 6), (rows, 6)]
        for map_, stride in zip(phase.aligned, model.aligned_strides, strict=True):
            assert [n * s for n, s in zip(map_.shape[2:], stride, strict=True)] == list(size)
        assert [n * s for n, s in zip(phase.neck.shape[2:], model.neck_stride, strict=True)] == list(size)
        assert max(model.neck_stride) <= 4
        if make is tiny_encoder:
            assert phase.attention.shape == (rows, 12)
            torch.testing.assert_close(phase.attention.sum(1), torch.ones(rows))
        else:
            assert phase.attention is None


@cases
def test_the_non_contrast_answer_does_not_change_by_a_bit_n1(share: str, make: Callable[[], nn.Module]) -> None:
    """N1: with a CTPA, without one, with some, in training or evaluation, and after export."""
    model = network(share, make)
    for mode in (True, False):
        model.train(mode)
        alone = model(X).nct
        assert same(alone, model(X, Y).nct)
        assert same(alone, model(X, Y, has_pair=SOME).nct)
    assert same(model.eval()(X).nct, model.export_nct()(X).nct)


@cases
def test_the_export_holds_nothing_of_the_ctpa_n2(share: str, make: Callable[[], nn.Module]) -> None:
    """N2: no CTPA parameter, and a CTPA offered is a TypeError that says so."""
    model = network(share, make)
    exported = model.export_nct()
    assert not [name for name in exported.state_dict() if "ctpa" in name]
    if share == "encoder":
        assert model.phase_embedding is not None
        assert exported.phase_embedding is not None
        assert torch.equal(exported.phase_embedding, model.phase_embedding[:1])
    own = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("ctpa"))
    own -= 0 if model.phase_embedding is None else model.phase_embedding.shape[1]
    assert sum(p.numel() for p in exported.parameters()) == own
    assert not exported.training
    with pytest.raises(TypeError, match="non-contrast series alone"):
        exported(X, Y)
    with pytest.raises(TypeError, match="non-contrast series alone"):
        exported(X, x_c=Y, has_pair=SOME)
    assert exported.encoder is not model.encoder, "the export is a copy"


@cases
def test_no_ctpa_module_runs_without_a_ctpa_n3(share: str, make: Callable[[], nn.Module]) -> None:
    """N3, by hooks on every module of the CTPA pathway; with a pair they do run, so the hooks can fire."""
    model, ran = network(share, make, in_channels_b=None if share == "all" else 1).eval(), []
    for name, module in model.named_modules():
        if name.startswith("ctpa"):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    model(X)
    model(X, Y, has_pair=torch.zeros(3, dtype=torch.bool))
    assert ran == []
    model(X, Y, has_pair=SOME)
    assert bool(ran) == (share != "all")


@cases
def test_rows_without_a_pair_never_touch_the_ctpa_path(share: str, make: Callable[[], nn.Module]) -> None:
    """Their voxels may be anything, also NaN; the others come out as if they had come alone."""
    model = network(share, make).train()
    broken = Y.clone()
    broken[1] = torch.nan
    output = model(X, broken, has_pair=SOME)
    assert all(torch.isfinite(t).all() for t in tensors(output.ctpa))
    assert same(output.ctpa, model(X[SOME], Y[SOME]).ctpa)
    sum(t.sum() for t in tensors(output.ctpa)).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_spacing_and_keys_follow_their_rows() -> None:
    model = network(make=lambda: tiny_encoder(drop_path=0.5)).train()
    spacing = torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 1.0], [3.0, 1.0, 2.0]])
    keys = torch.tensor([5, 6, 7])
    output = model(X, Y, spacing=spacing, drop_path_keys=keys, has_pair=SOME).ctpa
    alone = model(X[2:], Y[2:], spacing=spacing[2:], drop_path_keys=keys[2:]).ctpa
    torch.testing.assert_close(output.taps[-1][1:], alone.taps[-1])


@pytest.mark.parametrize("make", [tiny_encoder, conv_encoder])
def test_a_skipped_ctpa_is_the_baseline_to_the_bit_t1(make: Callable[[], nn.Module]) -> None:
    """T1: the same seed gives the same first pathway; updates without a CTPA are those of the non-contrast network."""
    encoders = make(), make()
    torch.manual_seed(9)
    single = SinglePhase(encoders[0], **SMALL)  # type: ignore[arg-type]
    torch.manual_seed(9)
    dual = DualPhase(encoders[1], **SMALL)  # type: ignore[arg-type]
    for model in (single, dual):
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for step in range(2):
            output = model.train()(noise(2, 1, 5, 8, 8, seed=step))
            loss = output.nct.segmentation.square().mean() + output.nct.classification.square().mean() + output.idle
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    theirs = dict(dual.named_parameters())
    for name, parameter in single.named_parameters():
        expected = theirs[name][:1] if name == "phase_embedding" else theirs[name]
        assert torch.equal(parameter, expected), name
    assert single.phase_embedding is not None
    assert single.phase_embedding.abs().max() > 0


@pytest.mark.parametrize("share", ["encoder", "none"])
def test_a_batch_without_pairs_has_a_zero_gradient_for_each_ctpa_parameter(share: str) -> None:
    model = network(share, in_channels_b=2, projector_dim=4).train()
    output = model(X)
    assert output.ctpa is None
    (output.nct.classification.sum() + output.idle).backward()
    mine = {name: p for name, p in model.named_parameters() if name.startswith("ctpa")}
    second = {"ctpa_encoder"} if share == "none" else set()
    assert {name.split(".")[0] for name in mine} == {"ctpa", "ctpa_entrance"} | second
    for name, parameter in mine.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() == 0, name
    assert not model.eval()(X).idle.requires_grad


def test_sharing() -> None:
    shared, apart, one = network("encoder"), network("none"), network("all")
    assert {n.split(".")[0] for n, _ in shared.named_parameters() if n.startswith("ctpa")} == {"ctpa"}
    assert {n.split(".")[0] for n, _ in apart.named_parameters() if n.startswith("ctpa")} == {"ctpa", "ctpa_encoder"}
    assert not [n for n, _ in one.named_parameters() if n.startswith("ctpa")]
    assert len(shared.encoders()) == len(one.encoders()) == 1
    assert len(apart.encoders()) == 2

    output = one(X, X)
    assert same(output.nct, output.ctpa), "everything shared: the network is not told the phase"
    output = shared(X, X)
    assert not torch.equal(output.nct.taps[-1], output.ctpa.taps[-1]), "the phase embedding tells"
    output = apart(X, X)
    assert torch.equal(output.nct.taps[-1], output.ctpa.taps[-1]), "the second encoder begins as a copy"
    output.ctpa.taps[-1].sum().backward()
    assert apart.encoder.get_parameter("patch_embed.weight").grad is None, "and is another"
    assert apart.ctpa_encoder is not None
    assert apart.ctpa_encoder.get_parameter("patch_embed.weight").grad is not None


@pytest.mark.parametrize("make", [tiny_encoder, conv_encoder])
@pytest.mark.parametrize("share", ["encoder", "none"])
def test_another_kind_of_image_has_its_own_entrance(share: str, make: Callable[[], nn.Module]) -> None:
    """It begins as the first pathway's: an image repeated in every channel gives what it gave there."""
    encoder = make()
    for channels in (1, 3):
        model = DualPhase(encoder, share=share, in_channels_b=channels, **SMALL)  # type: ignore[arg-type]
        output = model(X, X.expand(-1, channels, -1, -1, -1))
        torch.testing.assert_close(output.ctpa.taps[-1], output.nct.taps[-1], rtol=1e-4, atol=1e-5)
        assert output.ctpa.segmentation.shape == output.nct.segmentation.shape
    assert [n for n, _ in model.named_parameters() if n.startswith("ctpa_entrance")]


def test_low_rank_and_frozen_networks_export_plain_ones() -> None:
    model = adapt(network("none"), "lora", rank=2)
    for name, parameter in model.named_parameters():
        if "lora_b" in name:
            nn.init.normal_(parameter, std=0.1)
    assert sum("lora_a" in name for name, _ in model.named_parameters()) == 2 * 4 * 2, "both encoders are adapted"
    exported = model.eval().export_nct()  # type: ignore[operator]
    assert not [name for name in exported.state_dict() if "lora" in name]
    torch.testing.assert_close(exported(X).nct.segmentation, model(X).nct.segmentation, rtol=1e-3, atol=1e-4)
    frozen = adapt(network("none"), "frozen").train()
    assert not any(encoder.training for encoder in frozen.encoders())


def test_names_carry_no_wrapper() -> None:
    names = list(network().export_nct().state_dict())
    assert {name.split(".")[0] for name in names} == {"encoder", "nct", "phase_embedding"}
    assert [n.removeprefix("encoder.") for n in names if n.startswith("encoder.")] == list(tiny_encoder().state_dict())


def test_misuse_is_explained() -> None:
    with pytest.raises(ConfigError, match="encoder, none, all"):
        build_dual_phase(tiny_encoder(), DualPhaseConfig(share="half"))
    with pytest.raises(ConfigError, match="same kind of input"):
        DualPhase(tiny_encoder(), share="all", in_channels_b=2)
    model = network()
    with pytest.raises(DataError, match=r"\(5, 8, 8\) voxels, got 3 of \(5, 8, 4\)"):
        model(X, Y[..., :4])
    with pytest.raises(DataError, match="announces 2 CTPA volumes"):
        model(X, has_pair=SOME)
    with pytest.raises(DataError, match="bool"):
        model(X, Y, has_pair=torch.ones(3))
