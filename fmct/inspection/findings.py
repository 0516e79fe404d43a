"""What an inspection found: facts, faults, and how they read as text and as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fmct.artefacts import stamped

FORMAT = ("fmct-inspection", "1.0")
_TRIPLES = ("voxels_zyx", "voxels", "spacing_mm", "extent_mm", "patch_voxels")


@dataclass
class Findings:
    """What a thing is (kind), facts about it, faults (empty when it is sane) and notes that are no faults."""

    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def sane(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """Return it as a stamped tree for JSON."""
        tree = {"kind": self.kind, "sane": self.sane, "faults": self.faults, "notes": self.notes, "facts": self.facts}
        return stamped(*FORMAT, tree)

    def to_text(self) -> str:
        """Return it as readable lines, the verdict last."""
        lines = [self.kind, *_lines(self.facts, "  ")]
        lines += [f"  note: {note}" for note in self.notes]
        lines += [f"  FAULT: {fault}" for fault in self.faults]
        lines.append(
            "sane" if self.sane else f"NOT SANE: {len(self.faults)} fault{'s' if len(self.faults) > 1 else ''}"
        )
        return "\n".join(lines)


def _lines(tree: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in tree.items():
        name = str(key).replace("_", " ")
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for number, item in enumerate(value):
                lines += [f"{indent}{name} {number}:", *_lines(item, indent + "  ")]
        else:
            text = _plain(value)
            lines.append(f"{indent}{name}: {text.replace(', ', ' × ') if key in _TRIPLES else text}")
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    return "–" if value is None or value == {} else str(value)
