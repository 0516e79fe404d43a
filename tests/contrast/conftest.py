"""One small run for all tests of the gate: trained once on a SYNTHETIC cohort, exported once."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from fmct.contrast import boosted_trees
from fmct.contrast.gate import ContrastGate, load_gate
from fmct.publish.export_model import export_model
from fmct.train.session import Options
from tests.contrast import bright_vessels


@dataclass(frozen=True)
class Trained:
    """A cohort, the run on it, and the model folder that was exported of the run."""

    cohort: bright_vessels.Cohort
    run: Path
    model: Path

    @property
    def gate(self) -> ContrastGate:
        """The gate of the folder, on the CPU."""
        return load_gate(self.model, device="cpu", precision="fp32")


@pytest.fixture(scope="package")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("contrast")
    cohort = bright_vessels.cohort(folder)
    words = [f"output={folder / 'run'}", "steps=200", "network.features=mean", "run.save_every=1000"]
    module, config = bright_vessels.recipe(*cohort.data, *words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boosted_trees, "ROUNDS", 20)
        assert module.main(config, Options(), bright_vessels.CPU) == 0
    return Trained(cohort, folder / "run", export_model(folder / "run", folder / "model"))
