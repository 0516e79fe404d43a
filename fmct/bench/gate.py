"""What every command pays before it begins: importing fmct and showing the help, without torch."""

import statistics
import subprocess
import sys
import time

from fmct.bench.figures import Figure
from fmct.bench.workbench import Workbench

_HELP = "import sys; sys.argv = ['fmct', '--help']; from fmct.cli import main; main()"
_TORCH = "; import sys; print('torch' in sys.modules, file=sys.stderr)"


def bench_gate(bench: Workbench) -> list[Figure]:
    """Return the seconds of `import fmct` and of `fmct --help`, beside a bare interpreter's."""
    bench.say("gate: starting")
    floor, _ = _start("pass", bench.sizes.starts)
    figures = []
    for name, code in (("import", "import fmct"), ("help", _HELP)):
        seconds, torch_too = _start(code, bench.sizes.starts)
        says = "import fmct" if name == "import" else "fmct --help"
        note = "torch is imported: it must not be." if torch_too else ""
        details = {"torch_imported": torch_too, "starts": bench.sizes.starts}
        figures.append(Figure(f"gate/{name}", says, seconds, "s", floor, "python -c pass", note, details))
    return figures


def _start(code: str, repeats: int) -> tuple[float, bool]:
    """Return the median seconds of a new interpreter that runs `code`, and whether torch was imported in it."""
    seconds, torch_too = [], False
    for _ in range(repeats + 1):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code + _TORCH], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - began)
        torch_too |= done.stderr.strip().endswith("True")
    return statistics.median(seconds[1:]), torch_too
