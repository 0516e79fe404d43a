"""Figures, each beside its floor and its target, and the table of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fmct.bench.targets import TARGETS


@dataclass(frozen=True)
class Figure:
    """One measured number.

    name: `bench/what`; a target of that name is looked up. floor: the least that it could be (the most, for rates), in
    the same unit, and floor_is says of what. details: spread, parts, counts. note: what to know when reading it.
    judged: False where less than the target speaks of was measured (`--quick`).
    """

    name: str
    says: str
    value: float
    unit: str
    floor: float | None = None
    floor_is: str = ""
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    judged: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the figure as JSON values, with its target and whether it is met (null: there is none)."""
        target = TARGETS.get(self.name)
        judged: dict[str, Any] = {"target": None, "met": None, "goal_met": None}
        if target is not None:
            judged["target"] = asdict(target)
        if target is not None and self.judged:
            judged["met"] = target.met(self.value)
            if target.goal is not None:
                judged["goal_met"] = self.value >= target.goal
        ratio = self.value / self.floor if self.floor else None
        content = {key: value for key, value in asdict(self).items() if key != "judged"}
        return {**_plain(content), "of_floor": rounded(ratio) if ratio is not None else None, **judged}


def rounded(value: float) -> float:
    """Return a number with four significant digits: more would be noise."""
    return float(f"{value:.4g}")


def table(figures: Sequence[Figure]) -> str:
    """Return figures as lines of text: what, value, floor and the ratio to it, target and whether it is met."""
    rows = [("figure", "value", "floor", "target", "")]
    for figure in figures:
        told = figure.to_dict()
        floor = f"{_short(figure.floor)} {figure.unit} ({told['of_floor']:.2f} ×)" if told["of_floor"] else ""
        target = str(TARGETS[figure.name]) if figure.name in TARGETS else ""
        unjudged = "not judged" if target else ""
        verdict = {True: "met", False: "NOT met", None: unjudged}[told["met"]]
        rows.append((figure.says, f"{_short(figure.value)} {figure.unit}".strip(), floor, target, verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [f"{figure.says}: {figure.note}" for figure in figures if figure.note]
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:], *([""] if notes else []), *notes])


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _plain(value: Any) -> Any:
    """Return JSON values, numbers with four significant digits."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return rounded(value) if isinstance(value, float) else value
