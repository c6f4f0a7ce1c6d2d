"""Where everything lies in the project's folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tipline.errors import UsageError

ROLES = ("fit", "size", "evaluate")


@dataclass(frozen=True)
class Layout:
    """Paths below `root`, the workspace whose files the stages read and write."""

    root: Path

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

    @property
    def params(self) -> Path:
        """The settings."""
        return self.root / "params.yaml"

    @property
    def params_checked(self) -> Path:
        """A file of no content that the check of the settings writes, so that DVC runs the check first."""
        return self.root / "data" / "params.checked"

    @property
    def staging(self) -> Path:
        """Where folders are built before they are renamed in: on the same file system as data/ and models/."""
        return self.root / "data" / ".staging"

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

    @property
    def sample_size(self) -> Path:
        """How many rows to train on: {"rows": n}."""
        return self.root / "models" / "sample_size.json"

    @property
    def challenger(self) -> Path:
        """The model that this workspace trained."""
        return self.root / "models" / "challenger"

    @property
    def champion(self) -> Path:
        """The model that scores, as the registry's alias says, and ref.json."""
        return self.root / "models" / "champion"

    @property
    def ref(self) -> Path:
        """The champion's name, version, run and digest."""
        return self.champion / "ref.json"

    @property
    def predictions(self) -> Path:
        """One folder a month: parts and the receipt."""
        return self.root / "data" / "predictions"

    @property
    def learning_curve(self) -> Path:
        """The study's table; the picture has the same name and ends in png, the decision in json."""
        return self.root / "reports" / "learning_curve.csv"

    @property
    def evaluation(self) -> Path:
        """Challenger and champion on the months kept for it; the picture ends in png."""
        return self.root / "reports" / "evaluation.json"

    @property
    def monitoring(self) -> Path:
        """The table and the picture of the scored months."""
        return self.root / "reports" / "monitoring"


def month_folder(parent: Path, month: str) -> Path:
    """The folder of a month, named so that readers of partitioned data find the column `month`."""
    return parent / month_name(month)


def month_name(month: str) -> str:
    """The name of a month's folder."""
    return f"month={month}"


def find(start: Path | None = None) -> Layout:
    """The project that `start` (default: the working directory) lies in.

    Raises
    ------
    UsageError
        Where neither the folder nor one above it has a dvc.yaml and a params.yaml.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file():
            return Layout(folder)
    raise UsageError("This is not a tipline project.", str(here), "Change to a folder with dvc.yaml and params.yaml.")
