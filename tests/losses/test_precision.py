import pytest
import torch

from fmct.losses.precision import as_float, full_precision


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_half_precision_is_raised_and_double_is_kept(given, expected):
    assert as_float(torch.ones(2, dtype=given)).dtype == expected


def test_products_inside_autocast_stay_fp32():
    x = torch.randn(8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with full_precision(x):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
