import torch

from fmct.ssl.features import encode, masked_index, view_keys
from tests.ssl.small_runs import batch_of, tiny_encoder


def test_masked_positions_are_row_major_and_padded_to_the_bound():
    mask = torch.tensor([[False, True, True], [True, False, False]])
    index, masked = masked_index(mask, bound=0.0)
    assert (index.tolist(), masked) == ([1, 2, 3], 3)
    index, masked = masked_index(mask, bound=0.9)
    assert (index.tolist(), masked) == ([1, 2, 3, 0, 0], 3)
    index, masked = masked_index(torch.zeros(2, 3, dtype=torch.bool), bound=0.5)
    assert (index.tolist(), masked) == ([0, 0, 0], 0)
    index, masked = masked_index(mask, bound=0.1)  # more than the bound: taken whole
    assert (index.tolist(), masked) == ([1, 2, 3], 3)


def test_every_view_of_every_draw_has_its_own_key():
    keys = view_keys(torch.tensor([0, 1, 10**12]), range(2, 5))
    assert len(set(keys.tolist())) == 9
    # View by view, as the crops are laid out; the key of a draw and view is the same in any batch.
    assert keys[3] == view_keys(torch.tensor([0]), range(3, 4))[0]


def test_passes_agree_with_one_forward_per_view():
    student, teacher = tiny_encoder().double().eval(), tiny_encoder().double().eval()
    batch = batch_of(0, samples=3).double()
    features = encode(batch, student, teacher, masking=True, local=True, masked_bound=0.5)
    assert features.teacher is not None
    assert features.student_local is not None
    for view in range(2):
        rows = slice(3 * view, 3 * view + 3)
        crops, spacing = batch.global_views[view], batch.global_spacing[view]
        masked = student(crops, spacing, batch.masks[view])
        torch.testing.assert_close(features.student.cls[rows], masked.cls)
        torch.testing.assert_close(features.student.patches[rows], masked.patches)
        torch.testing.assert_close(features.teacher.cls[rows], teacher(crops, spacing).cls)
    assert batch.local_views is not None
    local = student(batch.local_views[1], batch.global_spacing[1])
    torch.testing.assert_close(features.student_local.cls[3:], local.cls)
    tokens = features.masked_tokens(features.student.patches)[: features.masked]
    torch.testing.assert_close(tokens, features.student.patches[batch.masks.flatten(0, 1)])


def test_what_no_term_needs_is_not_computed():
    student = tiny_encoder()
    batch = batch_of(0, samples=2)
    features = encode(batch, student, None, masking=False, local=False, masked_bound=0.5)
    assert features.teacher is None
    assert features.student_local is None
    whole = student(batch.global_views.flatten(0, 1), batch.global_spacing.flatten(0, 1))
    torch.testing.assert_close(features.student.cls, whole.cls)
