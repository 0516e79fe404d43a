"""One labelled series."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fmct.store.manifest import Entry


@dataclass(frozen=True)
class Sample:
    """A series with what is known of it.

    labels: one per target, NaN where unknown. mask: its file, where it holds a lesion; mask_known_empty: there is none,
    and that is known (an empty mask, or a negative label without a mask). lesion_mm3: volume of all lesions. pair: its
    paired scan; pair_weight: 0 without one.
    """

    entry: Entry
    patient: str
    split: str
    labels: tuple[float, ...] = ()
    mask: Path | None = None
    mask_known_empty: bool = False
    lesion_mm3: float = 0.0
    pair: Entry | None = None
    pair_weight: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_mask(self) -> bool:
        """Whether it is known where lesions are, be it nowhere."""
        return self.mask is not None or self.mask_known_empty

    @property
    def labelled(self) -> bool:
        """Whether a label or the lesions are known."""
        return self.has_mask or any(not math.isnan(label) for label in self.labels)
