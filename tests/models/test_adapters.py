"""Published layouts in tiny, from files: exact against slow independent forwards, and refused for any wrong tensor."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fmct.errors import ConfigError, WeightsError
from fmct.models.adapters import load_3dino, load_adapted, load_fmhct, load_voxelfm
from tests.models.published_layouts import PATCH, SIDE, WIDTH, Weights, fmhct, randomly


def fmhct_tokens(w: Weights, x: Tensor) -> Tensor:
    """Return FM-HCT's normalised tokens (1 + R + N, E) of x (C, R, A, S), one patch and one head at a time."""
    grid = [n // PATCH for n in x.shape[1:]]
    patches = []
    for i in range(grid[0]):
        for j in range(grid[1]):
            for k in range(grid[2]):
                cut = x[:, i * PATCH : (i + 1) * PATCH, j * PATCH : (j + 1) * PATCH, k * PATCH : (k + 1) * PATCH]
                weight = w["patch_embedding.patch_embeddings.weight"]
                patches.append((weight * cut).sum((1, 2, 3, 4)) + w["patch_embedding.patch_embeddings.bias"])
    tokens = torch.stack(patches) + w["patch_embedding.position_embeddings"][0]
    h = torch.cat([w["cls_token"][0], *([w["register_tokens"][0]] if "register_tokens" in w else []), tokens])

    def norm(rows: Tensor, name: str, eps: float) -> Tensor:
        centred = rows - rows.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + eps).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    for layer in range(12):
        at = f"blocks.{layer}"
        n = norm(h, f"{at}.att_norm", 1e-5)
        qkv = n @ w[f"{at}.attn.qkv.weight"].T + w.get(f"{at}.attn.qkv.bias", torch.zeros(3 * WIDTH))
        heads = []
        for head in range(12):
            rows = slice(head * WIDTH // 12, (head + 1) * WIDTH // 12)
            q, k, v = (qkv[:, part * WIDTH : (part + 1) * WIDTH][:, rows] for part in range(3))
            heads.append(torch.softmax(q @ k.T / math.sqrt(WIDTH / 12), dim=1) @ v)
        h = h + torch.cat(heads, dim=1) @ w[f"{at}.attn.proj.weight"].T + w[f"{at}.attn.proj.bias"]
        n = norm(h, f"{at}.ffn_norm", 1e-5)
        hidden = functional.gelu(n @ w[f"{at}.mlp.linear1.weight"].T + w[f"{at}.mlp.linear1.bias"])
        h = h + hidden @ w[f"{at}.mlp.linear2.weight"].T + w[f"{at}.mlp.linear2.bias"]
    return norm(h, "norm", 1e-6)


def all_tokens(model: Any, x: Tensor) -> Tensor:
    out = model(x[None])
    return torch.cat([out.cls[:, None], out.registers, out.patches], dim=1)[0]


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("bias", "registers", "count"), [(False, 0, 138), (True, 0, 150), (True, 4, 151), (False, 4, 139)]
)
def test_every_variant_of_fmhct_computes_what_a_slow_forward_does(
    tmp_path: Path, bias: bool, registers: int, count: int
) -> None:
    weights = fmhct(bias=bias, registers=registers)
    assert len(weights) == count
    found = load_fmhct(save(tmp_path / "model_weights.pth", weights))
    x = torch.randn(3, *(SIDE * PATCH,) * 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(all_tokens(found.model, x), fmhct_tokens(weights, x), atol=2e-4, rtol=1e-4)
    assert sum(p.numel() for p in found.model.parameters()) == sum(v.numel() for v in weights.values())


@pytest.mark.parametrize("swapped", [(1, 2), (1, 3), (2, 3)])
def test_a_swap_of_two_axes_does_not_go_unseen(tmp_path: Path, swapped: tuple[int, int]) -> None:
    weights = fmhct()
    model = load_fmhct(save(tmp_path / "w.pth", weights)).model
    x = torch.randn(3, *(SIDE * PATCH,) * 3, generator=torch.Generator().manual_seed(1))
    assert (all_tokens(model, x.transpose(*swapped)) - fmhct_tokens(weights, x)).abs().max() > 0.05


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone.", "_orig_mod.", "_orig_mod.module.backbone."])
@pytest.mark.parametrize("key", [None, "state_dict"])
def test_prefixes_and_wrapping_change_nothing(tmp_path: Path, prefix: str, key: str | None) -> None:
    weights = fmhct()
    named = {f"{prefix}{name}": value for name, value in weights.items()}
    content = named if key is None else {"epoch": 3, "best_loss": 0.5, key: named, "momentum_model_state_dict": None}
    state = load_fmhct(save(tmp_path / "w.pt", content)).model.state_dict()
    torch.testing.assert_close(state["blocks.7.mlp.fc1.weight"], weights["blocks.7.mlp.linear1.weight"])


def training_checkpoint() -> tuple[dict[str, Any], Weights, Weights]:
    student, teacher = fmhct(), {name: value + 1 for name, value in fmhct().items()}
    head = {f"module.head.mlp.{n}.weight": torch.zeros(2, 2) for n in (0, 2, 4)}
    content = {"epoch": 9, "state_dict": {**{f"module.backbone.{n}": v for n, v in student.items()}, **head}}
    content["momentum_model_state_dict"] = {**{f"module.backbone.{n}": v for n, v in teacher.items()}, **head}
    return content, student, teacher


def test_a_training_checkpoint_gives_the_role_that_is_asked_for_and_none_by_guess(tmp_path: Path) -> None:
    content, student, teacher = training_checkpoint()
    path = save(tmp_path / "last_dino.pt", content)
    for role, weights in (("student", student), ("teacher", teacher)):
        found = load_fmhct(path, role=role)
        torch.testing.assert_close(found.model.state_dict()["cls_token"], weights["cls_token"])
        assert (found.facts["source"], found.facts["heads_left_out"]) == (role, 3)
    with pytest.raises(WeightsError, match=r"role=teacher or role=student"):
        load_fmhct(path)
    with pytest.raises(WeightsError, match="does not say whether"):
        load_fmhct(save(tmp_path / "flat.pth", student), role="teacher")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.pop("blocks.4.mlp.linear1.bias"), "missing: blocks.4.mlp.linear1.bias"),
        (lambda w: w.update({"extra": torch.zeros(1)}), "unexpected: extra"),
        (lambda w: w.update({"blocks.3.attn.qkv.bias": torch.zeros(3 * WIDTH)}), "missing: blocks.0.attn.qkv.bias"),
        (lambda w: w.update({"norm.weight": torch.zeros(7)}), r"norm.weight would be \(48,\)"),
        (lambda w: w.update({"norm.weight": torch.full((WIDTH,), math.nan)}), "not finite"),
        (lambda w: w.update({"head.last_layer.weight_g": torch.zeros(1)}), "training checkpoint"),
        (lambda w: w.update({"blocks.0.attn.lora_q.lora_matrix_A": torch.zeros(1)}), "LoRA"),
        (lambda w: w.update({"decoder_norm.weight": torch.zeros(1)}), "masked autoencoder"),
        (lambda w: w.update({"module.cls_token": w["cls_token"]}), "two tensors are called cls_token"),
        (lambda w: [w.pop(n) for n in list(w) if n.startswith("blocks.11.")], "11 blocks"),
    ],
)
def test_anything_that_is_not_exactly_the_layout_is_an_error(tmp_path: Path, change: Any, told: str) -> None:
    weights = fmhct()
    change(weights)
    with pytest.raises(WeightsError, match=told):
        load_fmhct(save(tmp_path / "w.pth", weights))


def test_insisting_on_the_other_bias_variant_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="has no bias"):
        load_fmhct(save(tmp_path / "w.pth", fmhct()), qkv_bias=True)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("/tmp/never-made-by-a-checkpoint"),)


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    path = save(tmp_path / "w.pth", {"cls_token": torch.zeros(1), "x": Payload()})
    with pytest.raises(WeightsError, match="not opened"):
        load_fmhct(path)
    assert not Path("/tmp/never-made-by-a-checkpoint").exists()


def dinov2(e: int, patch: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes that VoxelFM and 3DINO share, blocks under their plain numbers."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, e), "mask_token": (1, e), "norm.weight": (e,), "norm.bias": (e,),
        "patch_embed.proj.weight": (e, 1, patch, patch, patch), "patch_embed.proj.bias": (e,),
    }  # fmt: skip
    for layer in range(depth):
        for name, shape in {
            "norm1.weight": (e,), "norm1.bias": (e,), "norm2.weight": (e,), "norm2.bias": (e,),
            "attn.qkv.weight": (3 * e, e), "attn.qkv.bias": (3 * e,), "attn.proj.weight": (e, e),
            "attn.proj.bias": (e,), "ls1.gamma": (e,), "ls2.gamma": (e,), "mlp.fc1.weight": (4 * e, e),
            "mlp.fc1.bias": (4 * e,), "mlp.fc2.weight": (e, 4 * e), "mlp.fc2.bias": (e,),
        }.items():  # fmt: skip
            shapes[f"blocks.{layer}.{name}"] = shape
    return shapes


def turned(rows: Tensor, coordinates: Tensor, periods: Tensor) -> Tensor:
    """Return one head's patch rows with neighbouring pairs turned, axis by axis in its own third, pair by pair."""
    result = rows.clone()
    third = rows.shape[1] // 3
    for token in range(len(rows)):
        for axis in range(3):
            for pair in range(third // 2):
                angle = 2 * math.pi * float(coordinates[token, axis]) / float(periods[pair])
                first = axis * third + 2 * pair
                a, b = rows[token, first], rows[token, first + 1]
                result[token, first] = a * math.cos(angle) - b * math.sin(angle)
                result[token, first + 1] = a * math.sin(angle) + b * math.cos(angle)
    return result


def dinov2_tokens(w: Weights, x: Tensor, *, heads: int, patch: int, depth: int, eps: float, special: int) -> Tensor:
    """Return normalised tokens of x (D, H, W): `special` leading ones, rotary where periods are in the weights."""
    e = w["cls_token"].shape[-1]
    conv = functional.conv3d(x[None, None], w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch)[0]
    grid = conv.shape[1:]
    tokens = conv.flatten(1).T
    h = torch.cat([w["cls_token"][0], *([w["register_tokens"][0]] if "register_tokens" in w else []), tokens])
    if "pos_embed" in w:
        h = h + w["pos_embed"][0]
    axes = [2 * (torch.arange(n) + 0.5) / n - 1 for n in grid]
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    for layer in range(depth):
        at = f"blocks.{layer}"
        n = functional.layer_norm(h, (e,), w[f"{at}.norm1.weight"], w[f"{at}.norm1.bias"], eps)
        qkv = (n @ w[f"{at}.attn.qkv.weight"].T + w[f"{at}.attn.qkv.bias"]).split(e, dim=1)
        outs = []
        for head in range(heads):
            q, k, v = (part[:, head * e // heads : (head + 1) * e // heads] for part in qkv)
            if "rope_embed.periods" in w:
                periods = w["rope_embed.periods"]
                q = torch.cat([q[:special], turned(q[special:], coordinates, periods)])
                k = torch.cat([k[:special], turned(k[special:], coordinates, periods)])
            outs.append(torch.softmax(q @ k.T / math.sqrt(e / heads), dim=1) @ v)
        attended = torch.cat(outs, dim=1) @ w[f"{at}.attn.proj.weight"].T + w[f"{at}.attn.proj.bias"]
        h = h + attended * w[f"{at}.ls1.gamma"]
        n = functional.layer_norm(h, (e,), w[f"{at}.norm2.weight"], w[f"{at}.norm2.bias"], eps)
        hidden = functional.gelu(n @ w[f"{at}.mlp.fc1.weight"].T + w[f"{at}.mlp.fc1.bias"])
        h = h + (hidden @ w[f"{at}.mlp.fc2.weight"].T + w[f"{at}.mlp.fc2.bias"]) * w[f"{at}.ls2.gamma"]
    return functional.layer_norm(h, (e,), w["norm.weight"], w["norm.bias"], eps)


def voxelfm() -> Weights:
    weights = randomly({**dinov2(144, 3, 2), "register_tokens": (1, 4, 144)})
    return {**weights, "rope_embed.periods": 100.0 ** (2 * torch.arange(2) / 4)}


def test_voxelfm_computes_what_a_slow_forward_does_on_any_grid(tmp_path: Path) -> None:
    weights = voxelfm()
    teacher = {f"module.backbone.{n}": v for n, v in weights.items()} | {"dino_head.mlp.0.weight": torch.zeros(2, 2)}
    found = load_voxelfm(save(tmp_path / "99999.pth", {"teacher": teacher}))
    for size in ((6, 9, 12), (9, 3, 6)):
        x = torch.randn(size, generator=torch.Generator().manual_seed(2))
        slow = dinov2_tokens(weights, x, heads=12, patch=3, depth=2, eps=1e-5, special=5)
        torch.testing.assert_close(all_tokens(found.model, x[None]), slow, atol=2e-4, rtol=1e-4)
        flipped = all_tokens(found.model, x[None].transpose(2, 3).contiguous().reshape(1, *size))
        assert (flipped - slow).abs().max() > 0.05


def test_voxelfm_with_other_rotary_periods_is_refused(tmp_path: Path) -> None:
    weights = voxelfm()
    weights["rope_embed.periods"] = weights["rope_embed.periods"] * 2
    with pytest.raises(WeightsError, match="another run's positions"):
        load_voxelfm(save(tmp_path / "w.pth", {"teacher": weights}))


def threedino(*, chunks: int = 2, depth: int = 4) -> tuple[Weights, Weights]:
    """Return (weights under plain numbers, the same as the published file has them, in chunks)."""
    weights = randomly({**dinov2(64, 4, depth), "pos_embed": (1, 1 + SIDE**3, 64)})
    size = depth // chunks
    named = {}
    for name, value in weights.items():
        parts = name.split(".")
        chunk = [str(int(parts[1]) // size)] if parts[0] == "blocks" else []
        named[".".join([parts[0], *chunk, *parts[1:]])] = value
    return weights, named


def test_3dino_computes_what_a_slow_forward_does_chunked_or_not(tmp_path: Path) -> None:
    weights, chunked = threedino()
    x = torch.randn((12, 12, 12), generator=torch.Generator().manual_seed(3))
    slow = dinov2_tokens(weights, x, heads=1, patch=4, depth=4, eps=1e-6, special=1)
    for content in ({"teacher": {f"backbone.{n}": v for n, v in chunked.items()}}, weights):
        found = load_3dino(save(tmp_path / "teacher_checkpoint.pth", content))
        torch.testing.assert_close(all_tokens(found.model, x[None]), slow, atol=2e-4, rtol=1e-4)


def test_3dino_interpolates_its_positions_by_the_factor_that_it_was_trained_with(tmp_path: Path) -> None:
    weights, chunked = threedino()
    model = load_3dino(save(tmp_path / "w.pth", {"teacher": chunked})).model
    table = weights["pos_embed"][:, 1:].reshape(1, 3, 3, 3, 64).permute(0, 4, 1, 2, 3)
    factors = tuple((n + 0.1) / 27 ** (1 / 3) for n in (4, 2, 5))
    wanted = functional.interpolate(table, scale_factor=factors, mode="trilinear").permute(0, 2, 3, 4, 1)
    got = model.positions((4, 2, 5), None, torch.device("cpu"))
    torch.testing.assert_close(got, wanted.reshape(1, -1, 64), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("loader", [load_voxelfm, load_3dino])
def test_a_missing_or_unexpected_tensor_of_the_others_is_an_error_too(tmp_path: Path, loader: Any) -> None:
    weights = voxelfm() if loader is load_voxelfm else threedino()[1]
    name = next(n for n in weights if n.endswith("1.mlp.fc1.bias"))
    with pytest.raises(WeightsError, match=r"missing: blocks\.1\.mlp\.fc1\.bias"):
        loader(save(tmp_path / "a.pth", {"teacher": {n: v for n, v in weights.items() if n != name}}))
    with pytest.raises(WeightsError, match="unexpected: odd"):
        loader(save(tmp_path / "b.pth", {"teacher": {**weights, "odd": torch.zeros(1)}}))


def test_an_unknown_layout_or_option_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fmhct, voxelfm, 3dino"):
        load_adapted("merlin", tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="no option roles; it knows role, qkv_bias, window_order"):
        load_adapted("fmhct", tmp_path / "w.pth", roles="student")


def test_published_preprocessing_goes_with_the_weights(tmp_path: Path) -> None:
    found = load_fmhct(save(tmp_path / "w.pth", fmhct()))
    spec = found.preprocessing.input
    assert (found.preprocessing.orientation, spec.size_voxels, spec.mode) == ("RAS", (12, 12, 12), "resize")
    assert [(w.low, w.high) for w in found.preprocessing.windows] == [(0, 80), (-20, 180), (-800, 2000)]
    one = load_fmhct(save(tmp_path / "one.pth", fmhct(channels=1)), window_order="resize-window")
    assert [(w.low, w.high) for w in one.preprocessing.windows] == [(-110, 190)]
    assert one.preprocessing.input.steps is not None
    assert not one.preprocessing.input.steps.windows_first
    assert np.isclose(
        load_voxelfm(save(tmp_path / "v.pth", {"teacher": voxelfm()})).preprocessing.windows[0].low, -1000
    )
