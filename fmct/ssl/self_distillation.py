"""Self-distillation: DINO, iBOT, KoLeo, Gram anchoring and voxel reconstruction of one student, in one step.

The student sees the masked global views and the local views; the teacher, its moving average, sees the global views
whole. The teacher is run state, not a submodule: engines would broadcast, shard and save it as parameters.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fmct.errors import CheckpointError, ConfigError
from fmct.losses.dino import dino_loss
from fmct.losses.ibot import ibot_loss
from fmct.losses.koleo import koleo_loss
from fmct.models.encoder import VisionTransformer
from fmct.ssl.ema import copy_weights, update_average
from fmct.ssl.features import Batch, Features, encode
from fmct.ssl.gram_teacher import GramTeacher
from fmct.ssl.monitor import HealthMonitor
from fmct.ssl.pixels import PixelTerm
from fmct.ssl.targets import Targets
from fmct.train.task import TaskOutput

TERMS = ("dino", "ibot", "koleo", "gram", "pixel")


class Teacher(nn.Module):
    """The averaged encoder and heads, in evaluation mode, fp32, without gradients. Names equal the student's."""

    def __init__(self, encoder: VisionTransformer, dino_head: nn.Module | None, ibot_head: nn.Module | None) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.dino_head = copy.deepcopy(dino_head)
        self.ibot_head = copy.deepcopy(ibot_head)
        self.eval().requires_grad_(False)


@dataclass
class _Companions:
    """What goes beside the student and is no submodule of the task."""

    teacher: Teacher
    dino_targets: Targets | None
    ibot_targets: Targets | None
    pixel: PixelTerm | None
    gram: GramTeacher | None
    monitor: HealthMonitor | None


class SelfDistillation(nn.Module):
    """The task of pretraining: implements `fmct.train.task.Task`.

    Args:
        encoder: the student.
        dino_head, ibot_head: projections onto prototypes. With a DINO head alone, iBOT shares it.
        dino_targets, ibot_targets: from teacher logits to probabilities, one for each head in use.
        pixel: voxel reconstruction of the masked tokens. gram: the anchor. monitor: the collapse health.
        weights: of each of TERMS when the step's values hold no `weight/NAME`. A term of weight 0 is not computed.
        student_temperature: of the student's softmax.
        masked_bound: see `fmct.ssl.features.encode`.

    Raises ConfigError when a term has a weight but not the part it needs.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        *,
        weights: Mapping[str, float],
        dino_head: nn.Module | None = None,
        ibot_head: nn.Module | None = None,
        dino_targets: Targets | None = None,
        ibot_targets: Targets | None = None,
        pixel: PixelTerm | None = None,
        gram: GramTeacher | None = None,
        monitor: HealthMonitor | None = None,
        student_temperature: float = 0.1,
        masked_bound: float = 0.25,
    ) -> None:
        super().__init__()
        self.encoder, self.dino_head, self.ibot_head = encoder, dino_head, ibot_head
        self.reconstruction_head = None if pixel is None else pixel.head
        self.weights = {name: float(weights.get(name, 0.0)) for name in TERMS}
        self.student_temperature = student_temperature
        self.masked_bound = masked_bound
        self.updates = 0
        teacher = Teacher(encoder, dino_head, ibot_head)
        self._beside = _Companions(teacher, dino_targets, ibot_targets, pixel, gram, monitor)
        self._check_parts(self.weights)

    @property
    def teacher(self) -> Teacher:
        """The averaged encoder and heads."""
        return self._beside.teacher

    @property
    def monitor(self) -> HealthMonitor | None:
        """The watch over collapse, if there is one."""
        return self._beside.monitor

    def forward(self, batch: Batch, values: Mapping[str, float]) -> TaskOutput:
        """Return the weighted sum of the terms on this rank's batch.

        `values` holds `teacher_temperature` (when DINO or iBOT is on) and, where scheduled, `weight/NAME`. Raises
        ConfigError when a scheduled weight asks for a part that was not built, or all weights are 0.
        """
        beside = self._beside
        weights = {name: float(values.get(f"weight/{name}", self.weights[name])) for name in TERMS}
        self._check_parts(weights)
        features = self._encode(batch, weights)
        health: dict[str, Tensor | float] = {}
        terms = self._terms(features, batch, values, weights, health)
        loss = sum((weights[name] * term for name, term in terms.items()), self._gradient_path(weights))
        alarms: list[str] = []
        if beside.monitor is not None:
            beside.monitor.observe_features(_summary(features))
            alarms = beside.monitor.measure(self.teacher, self)
            health |= beside.monitor.health()
        samples = [f"{entry}@{draw}" for entry, draw in zip(batch.entries, batch.draws.tolist(), strict=True)]
        detached = {name: term.detach() for name, term in terms.items()}
        return TaskOutput(loss=loss, terms=detached, health=health, samples=samples, alarms=alarms)

    @torch.no_grad()
    def after_update(self, values: Mapping[str, float]) -> None:
        """Move the teacher by `values["momentum"]`, then the centres and, when due, the Gram teacher."""
        self.updates += 1
        update_average(self.teacher, self, values["momentum"])
        for targets in (self._beside.dino_targets, self._beside.ibot_targets):
            if targets is not None:
                targets.after_update()
        if self._beside.gram is not None:
            self._beside.gram.after_update(self.updates, self.teacher.encoder)

    def reset_teacher(self) -> None:
        """Make the teacher an exact copy of the student, as at the start: for weights loaded after construction."""
        copy_weights(self.teacher, self)
        if self._beside.gram is not None:
            self._beside.gram.reset(self.encoder)

    def run_state(self) -> dict[str, Any]:
        """Return teacher, centres, Gram teacher, health and the number of updates; see `fmct.train.task.Task`."""
        return {
            "updates": self.updates,
            "teacher": self.teacher.state_dict(),
            **{name: part.state() for name, part in self._stateful().items()},
        }

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `run_state` gave, in place. Raises CheckpointError when it is of another configuration."""
        try:
            self.updates = int(state["updates"])
            self.teacher.load_state_dict(state["teacher"])
            for name, part in self._stateful().items():
                part.load(state[name])
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"the run state does not fit this self-distillation ({error}): it was saved under other heads, "
                "targets, gram or health settings. Resume with the run's own configuration, or begin a new run from it."
            ) from None

    def _stateful(self) -> dict[str, Any]:
        """Return the parts with `state`, `load` and `to`, by name."""
        names = ("dino_targets", "ibot_targets", "gram", "monitor")
        parts = {name: getattr(self._beside, name) for name in names}
        return {name: part for name, part in parts.items() if part is not None}

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "SelfDistillation":
        """Take the companions along to the student's device; their precision stays."""
        super()._apply(fn, recurse)
        device = next(self.parameters()).device
        for part in (self.teacher, *self._stateful().values()):
            part.to(device)
        return self

    def _encode(self, batch: Batch, weights: Mapping[str, float]) -> Features:
        gram = self._beside.gram
        own_anchor = bool(weights["gram"]) and gram is not None and gram.encoder is None
        return encode(
            batch,
            self.encoder,
            self.teacher.encoder if weights["dino"] or weights["ibot"] or own_anchor else None,
            masking=bool(weights["ibot"] or weights["pixel"]),
            local=bool(weights["dino"]),
            masked_bound=self.masked_bound,
        )

    def _terms(
        self,
        features: Features,
        batch: Batch,
        values: Mapping[str, float],
        weights: Mapping[str, float],
        health: dict[str, Tensor | float],
    ) -> dict[str, Tensor]:
        """Return the unweighted value of every term with a weight; what the targets look like goes into `health`."""
        terms: dict[str, Tensor] = {}
        crops = batch.global_views.flatten(0, 1)
        pixel, gram = self._beside.pixel, self._beside.gram
        if weights["dino"]:
            terms["dino"] = self._dino(features, values["teacher_temperature"], health)
        if weights["ibot"]:
            terms["ibot"] = self._ibot(features, values["teacher_temperature"])
        if weights["koleo"]:
            # One view at a time: two views of one image are meant to be near.
            terms["koleo"] = torch.stack([koleo_loss(cls) for cls in features.student.cls.chunk(features.views)]).sum()
        if weights["gram"] and gram is not None:
            patches = None if features.teacher is None else features.teacher.patches
            terms["gram"] = gram.loss(features.student.patches, patches, crops, batch.global_spacing.flatten(0, 1))
        if weights["pixel"] and pixel is not None:
            terms["pixel"] = pixel.loss(features)
        return terms

    def _dino(self, features: Features, temperature: float, health: dict[str, Tensor | float]) -> Tensor:
        assert self.dino_head is not None
        assert self.teacher.dino_head is not None
        assert features.teacher is not None
        rows = features.student.cls
        if features.student_local is not None:
            rows = torch.cat([rows, features.student_local.cls])
        images = len(features.mask) // features.views
        student = self.dino_head(rows).unflatten(0, (-1, images))
        targets = self._target_rows("cls", self.teacher.dino_head, features.teacher.cls, temperature)
        loss = dino_loss(student, targets.unflatten(0, (-1, images)), self.student_temperature)
        if self._beside.monitor is not None:
            entropy = self._beside.monitor.observe_targets("cls", targets)
            health["kl"] = loss.detach() - entropy
        return loss

    def _ibot(self, features: Features, temperature: float) -> Tensor:
        head = self.ibot_head or self.dino_head
        teacher_head = self.teacher.ibot_head or self.teacher.dino_head
        assert head is not None
        assert teacher_head is not None
        assert features.teacher is not None
        student = head(features.masked_tokens(features.student.patches))
        if len(student) > features.masked:  # a slice of all rows would still cost a copy in the backward pass
            student = student[: features.masked]
        tokens = features.masked_tokens(features.teacher.patches)
        targets = self._target_rows("patch", teacher_head, tokens, temperature, features.masked)
        if self._beside.monitor is not None:
            self._beside.monitor.observe_targets("patch", targets)
        return ibot_loss(student, targets, features.mask, self.student_temperature)

    @torch.no_grad()
    def _target_rows(
        self, kind: str, head: nn.Module, tokens: Tensor, temperature: float, rows: int | None = None
    ) -> Tensor:
        """Return the targets of the first `rows` tokens: padding is cut before any balancing over samples."""
        targets = self._beside.dino_targets if kind == "cls" else self._beside.ibot_targets
        assert targets is not None
        return targets(head(tokens)[:rows], temperature)

    def _gradient_path(self, weights: Mapping[str, float]) -> Tensor:
        """Return 0 with a path to the heads that no term uses now: every parameter has a gradient at every update.

        Without one, engines differ in what they do to it (weight decay, reduction over ranks).
        """
        uses = {
            self.dino_head: weights["dino"] or (weights["ibot"] and self.ibot_head is None),
            self.ibot_head: weights["ibot"],
            self.reconstruction_head: weights["pixel"],
        }
        idle = [p for head, used in uses.items() if head is not None and not used for p in head.parameters()]
        zero = next(self.encoder.parameters()).new_zeros(())
        return sum((0.0 * parameter.flatten()[0] for parameter in idle), zero)

    def _check_parts(self, weights: Mapping[str, float]) -> None:
        """Raise ConfigError for weights that cannot be served."""
        beside = self._beside
        served = {
            "dino": self.dino_head is not None and beside.dino_targets is not None,
            "ibot": (self.ibot_head or self.dino_head) is not None and beside.ibot_targets is not None,
            "koleo": True,
            "gram": beside.gram is not None,
            "pixel": beside.pixel is not None,
        }
        missing = [name for name in TERMS if weights[name] and not served[name]]
        if missing:
            raise ConfigError(f"the term {missing[0]} has a weight, but its head or targets were not built.")
        if not any(weights.values()):
            raise ConfigError(f"every term has weight 0; give at least one of {', '.join(TERMS)} a weight.")


def _summary(features: Features) -> Tensor:
    """Return one feature a view, (B, G, E): the teacher's CLS; without a teacher the student's mean patch."""
    rows = features.student.patches.mean(1) if features.teacher is None else features.teacher.cls
    return rows.detach().unflatten(0, (features.views, -1)).transpose(0, 1)
