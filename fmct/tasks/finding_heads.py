"""One independent two-class head a finding, as FM-HCT's downstream protocol has it, on frozen features or an encoder.

On frozen features all heads train at once: none shares a parameter, a batch or a statistic with another, and AdamW
steps each number by itself, so without a common bound on the gradient's norm it is the same as one run each. The head
of the best validation AUROC is kept, finding by finding. With an encoder to train there is one finding.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fmct.data.finding_batches import FindingBatch, FindingData
from fmct.errors import CheckpointError, ConfigError
from fmct.models.vision_transformer import VisionTransformer
from fmct.tasks.finding_network import FindingHead
from fmct.train.task import TaskOutput

ROWS_AT_ONCE = 64
Scorer = Callable[["FindingHeads"], Sequence[float]]


class FindingHeads(nn.Module):
    """The task. score(task) gives each finding's validation AUROC; it is asked every `score_every` updates."""

    def __init__(
        self,
        embed_dim: int,
        findings: Sequence[str],
        *,
        kind: str = "linear",
        num_heads: int = 12,
        encoder: VisionTransformer | None = None,
        score: Scorer | None = None,
        score_every: int = 0,
    ) -> None:
        super().__init__()
        if encoder is not None and len(findings) != 1:
            raise ConfigError(f"an encoder is fine-tuned for one finding at a time; got {', '.join(findings)}.")
        self.findings = list(findings)
        self.heads = nn.ModuleList(FindingHead(embed_dim, kind, num_heads=num_heads) for _ in findings)
        self.encoder = encoder
        self._score, self._every = score, score_every
        self._updates = 0
        self._best: list[float | None] = [None] * len(findings)
        self._kept: list[dict[str, Tensor]] = [{} for _ in findings]

    def forward(self, batch: FindingBatch, values: Mapping[str, float]) -> TaskOutput:
        """Return the sum over findings of their cross-entropies, each a mean over its own draws."""
        del values
        losses = [
            functional.cross_entropy(self.logits(number, inputs).float(), labels)
            for number, (inputs, labels) in enumerate(zip(batch.inputs, batch.labels, strict=True))
        ]
        terms = {name: loss.detach() for name, loss in zip(self.findings, losses, strict=True)}
        return TaskOutput(loss=torch.stack(losses).sum(), terms=terms, samples=batch.entries)

    def logits(self, number: int, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return (B, 2) logits of a finding: from kept features (cls, patches), or from volumes (volume, spacing)."""
        if self.encoder is not None:
            tokens = self.encoder(inputs["volume"], inputs["spacing"])
            return self.heads[number](tokens.cls, tokens.patches)
        return self.heads[number](inputs["cls"], inputs.get("patches"))

    def after_update(self, values: Mapping[str, float]) -> None:
        """Keep each finding's head when validation is at its best so far; the first of equals."""
        del values
        self._updates += 1
        if self._score is None or not self._every or self._updates % self._every:
            return
        training = self.training
        self.eval()
        for number, score in enumerate(self._score(self)):
            best = self._best[number]
            if score == score and (best is None or score > best):
                self._best[number] = float(score)
                self._kept[number] = {n: v.detach().cpu().clone() for n, v in self._own(number).items()}
        self.train(training)

    def use_best(self) -> list[float | None]:
        """Put back what was best and return those AUROCs, None for a finding that validation could not tell."""
        for number, kept in enumerate(self._kept):
            own = self._own(number)
            for name, value in kept.items():
                own[name].data.copy_(value)
        return list(self._best)

    def run_state(self) -> dict[str, Any]:
        """Return the count of updates, what was best so far, and the running statistics of the heads."""
        return {
            "updates": self._updates,
            "best": list(self._best),
            "kept": {str(number): dict(kept) for number, kept in enumerate(self._kept) if kept},
            "statistics": {name: value.detach().cpu().clone() for name, value in self.named_buffers()},
        }

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `run_state` gave. Raises CheckpointError when it is of other findings."""
        if len(state.get("best", ())) != len(self.findings):
            raise CheckpointError("the checkpoint is of another set of findings. Choose another output=.")
        self._updates = int(state["updates"])
        self._best = list(state["best"])
        kept = state.get("kept", {})
        self._kept = [dict(kept.get(str(number), {})) for number in range(len(self.findings))]
        for name, value in self.named_buffers():
            value.data.copy_(state["statistics"][name])

    @torch.no_grad()
    def probabilities(self, number: int, data: FindingData, device: torch.device | str = "cpu") -> np.ndarray:
        """Return (S,) float64 probabilities of a finding for every series of a split."""
        training = self.training
        self.eval()
        found = []
        for rows in torch.arange(len(data.labels)).split(ROWS_AT_ONCE):
            inputs = {name: array.taken(rows).float().to(device) for name, array in data.arrays.items()}
            found.append(self.logits(number, inputs).double().softmax(dim=1)[:, 1].cpu())
        self.train(training)
        return torch.cat(found).numpy()

    def _own(self, number: int) -> dict[str, Tensor]:
        """Return what a finding's decision depends on, by name: its head, and the encoder where it trains."""
        head = {f"head.{name}": value for name, value in self.heads[number].state_dict(keep_vars=True).items()}
        if self.encoder is None:
            return head
        return head | {f"encoder.{name}": value for name, value in self.encoder.state_dict(keep_vars=True).items()}
