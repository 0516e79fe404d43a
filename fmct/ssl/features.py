"""The encoder features of one step: the student on all views, the teacher on the global ones, and the masked tokens."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from fmct.models.encoder import EncoderOutput, VisionTransformer
from fmct.models.patches import patchify

MOST_VIEWS = 64  # of one sample; makes (draw, view) one integer


class Batch(Protocol):
    """What self-distillation reads of a batch, such as `fmct.data.pretrain.ViewBatch`. Views come before samples."""

    @property
    def global_views(self) -> Tensor:
        """(G, B, C, D, H, W) windowed voxels."""
        ...

    @property
    def local_views(self) -> Tensor | None:
        """(L, B, C, d, h, w) windowed voxels, or None."""
        ...

    @property
    def global_spacing(self) -> Tensor:
        """(G, B, 3) mm, z y x."""
        ...

    @property
    def local_spacing(self) -> Tensor | None:
        """(L, B, 3) mm, z y x, or None."""
        ...

    @property
    def masks(self) -> Tensor:
        """(G, B, N) bool, true where the student does not see the patch."""
        ...

    @property
    def draws(self) -> Tensor:
        """(B,) int64, the global sample counter."""
        ...

    @property
    def entries(self) -> list[str]:
        """The ids of the B volumes."""
        ...


@dataclass(frozen=True)
class Features:
    """What the terms are computed from. Rows of `·B` run view by view, all samples of view 0 first.

    student: the G·B masked global views; student_local: the L·B local views, or None. teacher: the G·B global views,
    unmasked, or None. patches: (G·B, N, C·p³), the global views' own voxels. mask: (G·B, N). index: positions of the
    masked tokens in the flattened mask, row-major, padded with 0 to a fixed bound on accelerators. masked: how many of
    them are real.
    """

    views: int
    student: EncoderOutput
    student_local: EncoderOutput | None
    teacher: EncoderOutput | None
    patches: Tensor
    mask: Tensor
    index: Tensor
    masked: int

    def masked_tokens(self, patches: Tensor) -> Tensor:
        """Return the (bound, E) masked tokens of (G·B, N, E) patches; only the first `masked` rows count."""
        return patches.flatten(0, 1).index_select(0, self.index)


def encode(
    batch: Batch,
    student: VisionTransformer,
    teacher: VisionTransformer | None,
    *,
    masking: bool,
    local: bool,
    masked_bound: float,
) -> Features:
    """Return the features of a batch. `teacher` None: no teacher pass. `local` False: the local views are left out.

    masked_bound: share of all patch tokens that the buffer of masked tokens holds on accelerators, where static shapes
    pay; a batch with more is taken whole. On CPUs the buffer is exact.
    """
    views = len(batch.global_views)
    crops, spacing = batch.global_views.flatten(0, 1), batch.global_spacing.flatten(0, 1)
    patches = patchify(crops, student.patch_size)  # once for teacher, student and what is reconstructed
    mask = batch.masks.flatten(0, 1)
    index, masked = masked_index(mask, bound=masked_bound if crops.device.type != "cpu" else 0.0)
    teacher_output = None
    if teacher is not None:
        with torch.no_grad():
            teacher_output = teacher(crops, spacing, patches=patches)
    groups, spacings, masks = [crops], [spacing], [mask if masking else None]
    cut: list[Tensor | None] = [patches]
    keys = [view_keys(batch.draws, range(views))]
    if local and batch.local_views is not None and batch.local_spacing is not None:
        groups.append(batch.local_views.flatten(0, 1))
        spacings.append(batch.local_spacing.flatten(0, 1))
        masks.append(None)
        cut.append(None)
        keys.append(view_keys(batch.draws, range(views, views + len(batch.local_views))))
    outputs = student.forward_crops(groups, spacings, masks, drop_path_keys=keys, patches=cut)
    return Features(
        views=views,
        student=outputs[0],
        student_local=outputs[1] if len(outputs) > 1 else None,
        teacher=teacher_output,
        patches=patches,
        mask=mask,
        index=index,
        masked=masked,
    )


def masked_index(mask: Tensor, *, bound: float) -> tuple[Tensor, int]:
    """Return the row-major positions of the true entries of `mask`, padded with 0, and their number.

    The length is the share `bound` of all entries, or the number itself where that is more.
    """
    index = mask.flatten().nonzero().squeeze(1)
    masked = len(index)
    return functional.pad(index, (0, max(0, int(bound * mask.numel()) - masked))), masked


def view_keys(draws: Tensor, views: Iterable[int]) -> Tensor:
    """Return one int64 key for each (view, draw), view by view: the names of drop-path's random numbers."""
    numbers = torch.tensor(list(views), device=draws.device)
    return (draws[None, :] * MOST_VIEWS + numbers[:, None]).flatten()
