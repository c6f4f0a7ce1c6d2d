"""Where everything lies in the project's folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tipline.errors import UsageError

ROLES = ("fit", "size", "evaluate")


class ProjectPath:
    """A path below a project's root."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __get__(self, project: Paths, _: type[Paths]) -> Path:
        return project.root / self.path


@dataclass(frozen=True)
class Paths:
    """Paths below `root`, the workspace whose files the stages read and write."""

    root: Path

    params = ProjectPath("params.yaml")
    # Without content: the check of the settings writes it, so that DVC runs the check first.
    params_checked = ProjectPath("data/params.checked")
    # Where folders are built before they are renamed in: on the same file system as data/ and models/.
    staging = ProjectPath("data/.staging")
    predictions = ProjectPath("data/predictions")  # one folder a month: parts and the receipt
    sample_size = ProjectPath("models/sample_size.json")  # how many rows to train on: {"rows": n}
    challenger = ProjectPath("models/challenger")  # the model that this workspace trained
    champion = ProjectPath("models/champion")  # the model that scores, as the registry's alias says
    ref = ProjectPath("models/champion/ref.json")  # its name, version, run and digest
    # The study's table and figures; the pictures have the same names and end in png.
    learning_curve = ProjectPath("reports/learning_curve.csv")
    evaluation = ProjectPath("reports/evaluation.json")
    monitoring = ProjectPath("reports/monitoring")

    @property
    def home(self) -> Path:
        """The workspace that the user works in.

        `dvc exp run --temp` runs the stages in a copy of the project, and names the original in DVC_ROOT: MLflow's
        store and relative sources are looked up there.
        """
        top = os.environ.get("DVC_ROOT")
        here = next((folder for folder in (self.root, *self.root.parents) if (folder / ".dvc").is_dir()), self.root)
        if top is None or Path(top).resolve() == here.resolve():
            return self.root
        return Path(top) / self.root.relative_to(here)  # the project need not be the repository's root

    @property
    def temporary(self) -> bool:
        """Whether this is a copy that `dvc exp run --temp` or a worker of its queue runs in."""
        return self.home.resolve() != self.root.resolve()

    @property
    def promotions(self) -> Path:
        """Who made which version the champion when: in git, written in the user's own workspace alone."""
        return self.home / "models" / "promotions.jsonl"

    def raw(self, month: str) -> Path:
        """The published bytes of a month: one file."""
        return self.root / "data" / "raw" / month

    def raw_receipt(self, month: str) -> Path:
        """Where those bytes came from; beside the folder, because an address must not make `prepare` run again."""
        return self.root / "data" / "raw" / f"{month}.json"

    def trips(self, month: str) -> Path:
        """A prepared month: trips.parquet, the quarantine, the receipt."""
        return month_folder(self.root / "data" / "trips", month)

    def trips_file(self, month: str) -> Path:
        """The rows of a prepared month."""
        return self.trips(month) / "trips.parquet"

    def sample(self, role: str, month: str) -> Path:
        """A month's sample, in the order in which samples nest."""
        return self.root / "data" / "sample" / role / f"{month}.parquet"


def month_folder(parent: Path, month: str) -> Path:
    """The folder of a month, named so that readers of partitioned data find the column `month`."""
    return parent / month_name(month)


def month_name(month: str) -> str:
    """The name of a month's folder."""
    return f"month={month}"


def find_project(start: Path | None = None) -> Paths:
    """The project that `start` (default: the working directory) lies in.

    Raises
    ------
    UsageError
        Where neither the folder nor one above it has a dvc.yaml and a params.yaml.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file():
            return Paths(folder)
    raise UsageError("This is not a tipline project.", str(here), "Change to a folder with dvc.yaml and params.yaml.")
