"""Where the project keeps its files."""

import os
from pathlib import Path

from tipline import files
from tipline.errors import UsageError

# The roles of months, in the order in which they follow each other in time.
ROLES = ("train", "validation", "test")


class Paths:
    """Paths below `root`, the workspace whose files the stages read and write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.params = root / "params.yaml"
        # Folders are built here and then renamed into place: it must be on the same file system as data/ and models/.
        self.staging = root / "data" / ".staging"
        self.trips = root / "data" / "trips"  # prepared months, or their manifests
        self.predictions = root / "data" / "predictions"  # one folder per month, with parts and a manifest
        self.sample_size = root / "models" / "sample_size.json"  # rows to train on: {"rows": n}
        self.challenger = root / "models" / "challenger"  # the model that this workspace trained
        self.champion = root / "models" / "champion"  # the model that scores
        self.champion_ref = self.champion / "ref.json"  # its name, version, run and digest
        # The study as a table; the picture and the decision have the same name and end in png and json.
        self.learning_curve = root / "reports" / "learning_curve.csv"
        self.evaluation = root / "reports" / "evaluation.json"
        self.metrics = root / "reports" / "metrics.json"  # what `dvc metrics show` prints
        self.monitoring = root / "reports" / "monitoring"
        self.registered = self.staging / "registered.json"  # the state in which MLflow's database lacks nothing
        self.recorded = root / "reports" / "recorded.json"  # written when MLflow has the reports

    @property
    def workspace(self) -> Path:
        """The folder that the user works in, which DVC_ROOT names in the copies of `dvc exp run --temp`."""
        top = os.environ.get("DVC_ROOT")
        here = next((folder for folder in (self.root, *self.root.parents) if (folder / ".dvc").is_dir()), self.root)
        if top is None or Path(top).resolve() == here.resolve():
            return self.root
        return Path(top) / self.root.relative_to(here)  # the project may be a subfolder of the repository

    @property
    def is_experiment_copy(self) -> bool:
        """Whether this is the copy that `dvc exp run --temp` or a queue worker runs in."""
        return self.workspace.resolve() != self.root.resolve()

    def raw(self, month: str) -> Path:
        return self.root / "data" / "raw" / month

    def raw_manifest(self, month: str) -> Path:
        """Where the published file came from. It is beside the folder, so that a new address prepares nothing again."""
        return self.root / "data" / "raw" / f"{month}.json"

    def prepared(self, month: str) -> Path:
        return month_folder(self.trips, month)

    def prepared_file(self, month: str) -> Path:
        return self.prepared(month) / "trips.parquet"

    def counts(self, month: str) -> Path:
        """The counts of a scored month, with the labels that it has now."""
        return self.root / "data" / "counts" / f"{month}.json"

    def sample(self, role: str, month: str) -> Path:
        """The sample of a month, in the order in which samples nest."""
        return self.root / "data" / "sample" / role / f"{month}.parquet"

    def recover_folders(self) -> None:
        """Put back each folder that an interrupted swap has left aside."""
        folders = {name: f"data/{name}" for name in ("raw", "trips", "predictions")}
        for staging, parent in (folders | {"models": "models", "reports": "reports"}).items():
            files.recover_folders(self.staging / staging, self.root / parent)


def month_folder(parent: Path, month: str) -> Path:
    """The folder of a month, named so that readers of partitioned data find the column `month`."""
    return parent / month_name(month)


def month_name(month: str) -> str:
    return f"month={month}"


def find_project() -> Paths:
    """Find the project that the working directory lies in; raise UsageError if there is none."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file():
            return Paths(folder)
    raise UsageError("This is not a tipline project.", str(here), "Change to a folder with dvc.yaml and params.yaml.")
