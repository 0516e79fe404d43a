"""What the figures are held against: the one table of targets."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A bound on one figure. better: `lower` or `higher` values are good. goal: what is hoped for beyond `value`.

    source: where the number comes from, or what others take.
    """

    value: float
    unit: str
    better: str
    source: str
    goal: float | None = None

    def met(self, value: float) -> bool:
        """Return whether a figure keeps the bound."""
        return value <= self.value if self.better == "lower" else value >= self.value

    def __str__(self) -> str:
        sign = "≤" if self.better == "lower" else "≥"
        goal = f", goal {self.goal:g}" if self.goal is not None else ""
        return f"{sign} {self.value:g}{goal}"


_DECODE = (
    "a raw decode of the same chunks is the least that any reader does; LZ4 at 32³ takes 8 ms on a comparable core"
)
_PRODUCT = "share of the best square product with the same threads"

TARGETS: dict[str, Target] = {
    "views/sample": Target(15.0, "ms", "lower", "FM-HCT's pipeline takes 437 ms, plain crop-trilinear-windows 28 ms"),
    "views/ratio": Target(
        round(15 / 28, 3), "×", "lower", "15 ms on a core whose plain crop-trilinear-windows takes 28, FM-HCT's way 437"
    ),
    "store/head/ratio": Target(1.5, "×", "lower", _DECODE),
    "store/chest/ratio": Target(1.5, "×", "lower", _DECODE),
    "step/vit_small/share": Target(0.5, "", "higher", _PRODUCT, goal=0.6),
    "step/vit_base/share": Target(0.5, "", "higher", _PRODUCT, goal=0.6),
    "finetune/vit_small/ratio": Target(0.9, "×", "higher", "its encoder does what pretraining's does"),
    "step/fmhct_vit_base/rate": Target(3.06, "volumes/s", "higher", "FM-HCT's published run, a GPU (A100)"),
    "predict/chest/ratio": Target(1.5, "×", "lower", "file to masks on the scan's grid, beside its bare FLOPs"),
    "ingest/monai_ratio": Target(10.0, "×", "higher", "MONAI's load, orient, resample to 1 mm, save takes 19.9 s"),
    "memory/ingest": Target(6.0, "× int16 size", "lower", "a worker's budget is planned with it"),
    "memory/loader_worker": Target(600.0, "MB", "lower", "sixteen workers in 10 GB"),
    "contrast/series": Target(2.0, "s", "lower", "a ViT-S on two cores, after reading: a gate is not to be waited for"),
    "contrast/rate": Target(30.0, "series/s", "higher", "a ViT-S on a GPU, after reading"),
    "lesions/symmetry": Target(3.0, "s", "lower", "one core; the published double loop over pixels takes minutes"),
    "lesions/cleanup": Target(1.0, "s", "lower", "a step between two networks is not to be waited for"),
    "lesions/cleanup/paper": Target(1.0, "s", "lower", "a step between two networks is not to be waited for"),
    "phantoms/pair": Target(1.0, "s", "lower", "a cohort for an example is to be drawn while one reads on"),
    "gate/import": Target(0.5, "s", "lower", "nobody waits for a toolkit to load"),
    "gate/help": Target(0.5, "s", "lower", "nobody waits for a help text"),
}
