"""A made-up pair of scans, non-contrast and angiogram: examples and tests draw many."""

from fmct import randomness
from fmct.bench.figures import Figure
from fmct.bench.timing import cost_of, median_ms, spread_ms
from fmct.bench.workbench import Workbench
from fmct.phantoms.embolism import phantom_pair

REPEATS = 5


def bench_phantoms(bench: Workbench) -> list[Figure]:
    """Return the seconds of a pair of the default size beside those of the noise in its two images."""
    bench.say("phantoms: a pair of scans")
    shape = phantom_pair(0).nct.shape  # scipy is loaded by now
    costs = [cost_of(lambda: phantom_pair(0)) for _ in range(REPEATS)]
    noise = [
        cost_of(lambda: randomness.generator(0, "bench", "noise").standard_normal((2, *shape))) for _ in range(REPEATS)
    ]
    says, floor_is = f"a synthetic pair of {' × '.join(map(str, shape))} voxels", "random numbers for two images' noise"
    value, floor = median_ms(costs) / 1e3, median_ms(noise) / 1e3
    return [Figure("phantoms/pair", says, value, "s", floor, floor_is, details=spread_ms(costs))]
