"""The demo from start to end: ingest, preview, pretrain, export, load, probe, report."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fmct.artefacts import write_json
from fmct.demo import page
from fmct.demo.results import Results
from fmct.errors import ConfigError
from fmct.probes.comparison import ProbeReport
from fmct.probes.masks import probe_masks
from fmct.probes.probe import write_reports
from fmct.publish import PublishedEncoder, load_encoder
from fmct.publish.export import export
from fmct.samples import corpus
from fmct.store.progress import reporter
from fmct.store.reader import Store

CONFIG = "pretrain/demo"
QUICK = ("steps=8", "run.save_every=8", "objective.health.every=4")
_MARK = "demo.json"


@dataclass(frozen=True)
class Options:
    """What the command line says. overrides: key=value for the pretraining; train(words) runs `fmct pretrain`."""

    output: Path
    quick: bool
    overrides: tuple[str, ...]
    train: Callable[[list[str]], int]
    preview: Callable[[list[str]], int]


def run_demo(options: Options) -> Path:
    """Do the whole main job below `options.output` and return the report's path. Stages print what they do.

    The same call again goes on with a run that was stopped. Raises the errors of fmct.errors.
    """
    output = options.output
    _take_folder(output)
    seconds: dict[str, float] = {}
    store_path, run, sheet = output / "store", output / "run", output / "views.png"
    with _stage("1/6 Ingest: scans into a checked store", "ingest", seconds):
        ingested = corpus.make_store(store_path, progress=reporter(5.0))
        print(ingested)
    words = [CONFIG, f"store={store_path}", *(QUICK if options.quick else ()), *options.overrides]
    with _stage("2/6 Preview: the views that training will see", "preview", seconds):
        options.preview([*words, f"output={sheet}", "draws=2" if options.quick else "draws=3"])
    with _stage("3/6 Pretrain: self-distillation and masked reconstruction on 25 series", "pretrain", seconds):
        code = options.train([*words, f"output={run}"])
        if code:
            raise ConfigError(f"pretraining ended with exit code {code}; its messages stand above.")
    with _stage("4/6 Export the teacher, load it, check its golden numbers", "export", seconds):
        export(run, output / "encoder", overwrite=True)
        encoder = load_encoder(str(output / "encoder"))
        print(f"{output / 'encoder'}: golden numbers differ by at most {encoder.selftest().worst:.1e} (relative).")
    with Store.open(store_path) as store:
        with _stage("5/6 Probe the frozen features on twelve patients that nothing was trained on", "probe", seconds):
            report = _probe(encoder, store, quick=options.quick)
            write_reports(output, [report], encoder, store)
            print(report)
        with _stage("6/6 Report", "report", seconds):
            results = Results(ingested, sheet, run, encoder, store, report, seconds, options.quick)
            path = page.write(output / "report.html", results)
    return path


def _probe(encoder: PublishedEncoder, store: Store, *, quick: bool) -> ProbeReport:
    held_out = sorted(set(corpus.held_out_patients()))
    seeds = (0,) if quick else (0, 1, 2)
    return probe_masks(
        encoder, store, store.entries, corpus.MASKS, test=held_out, seeds=seeds, positions=4 if quick else 12
    )


def _take_folder(output: Path) -> None:
    if output.exists() and not (output.is_dir() and ((output / _MARK).is_file() or not any(output.iterdir()))):
        raise ConfigError(f"{output}: is not empty and not a demo's folder. Choose another with --output DIR.")
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / _MARK, "fmct-demo", "1.0", {})


@contextmanager
def _stage(title: str, name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Print a heading before and the seconds after, and note them."""
    print(f"\n== {title}", flush=True)
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
    print(f"   {seconds[name]:.0f} s", flush=True)
