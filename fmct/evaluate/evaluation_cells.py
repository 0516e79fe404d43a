"""How an evaluation's numbers and names read in a table."""

from collections.abc import Iterator, Mapping, Sequence

from fmct.evaluate.classification import Finding
from fmct.evaluate.evaluation import Evaluation
from fmct.metrics.intervals import Interval

_NARROW = "\u00a0"  # keeps `< 0.001` on one line


def bracketed(interval: Interval, digits: int = 3) -> str:
    """Return `0.812 [0.760, 0.864]`, the value alone where there is no interval, or n/a and the reason."""
    if interval.estimate is None:
        return f"n/a: {interval.note}" if interval.note else "n/a"
    if interval.low is None or interval.high is None:
        return f"{interval.estimate:.{digits}f}"
    return f"{interval.estimate:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def signed_difference(interval: Interval) -> str:
    """Return `+0.083 [+0.041, +0.125]`, the value alone where there is no interval, or n/a and the reason."""
    if interval.estimate is None:
        return f"n/a: {interval.note}"
    if interval.low is None or interval.high is None:
        return f"{interval.estimate:+.3f}"
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def counted(finding: Finding, name: str) -> str:
    """Return a proportion with its counts, `34/35 = 0.971 [0.855, 0.995]`."""
    interval = finding.metrics[name]
    if interval.estimate is None or finding.scores.unit != "patient":
        return bracketed(interval)
    return f"{round(interval.estimate * interval.n)}/{interval.n} = {bracketed(interval)}"


def p_value(p: float | None) -> str:
    """Return a p value of three decimals; – where nothing was tested."""
    return "–" if p is None else f"<{_NARROW}0.001" if p < 0.001 else f"{p:.3f}"


def every(findings: Mapping[str, Mapping[str, Finding]]) -> Iterator[Finding]:
    """Yield the findings of all models, target by target, so that models stand below each other."""
    targets = sorted({target for found in findings.values() for target in found})
    return (found[target] for target in targets for found in findings.values() if target in found)


def label(evaluation: Evaluation, model: str, target: str) -> str:
    """Return what tells a row from its neighbours: the target, the model, or both."""
    if len(evaluation.models) == 1:
        return target
    return model if len(evaluation.targets) == 1 and target in evaluation.targets else f"{target}: {model}"


def name(evaluation: Evaluation, finding: Finding) -> str:
    """Return a finding's label."""
    return label(evaluation, finding.model, finding.target)


def macro_name(evaluation: Evaluation, model: str) -> str:
    """Return the label of a model's mean over findings."""
    return "mean" if len(evaluation.models) == 1 else f"mean: {model}"


def listed(names: Sequence[str]) -> str:
    """Return `a, b and c`; the first five of many."""
    if len(names) > 6:
        return ", ".join(names[:5]) + f" and {len(names) - 5} more"
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else "".join(names)
