"""A project for the benchmark of bulk scoring: its months and models, made by tipline's own commands; and what runs."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow.parquet as pq
import yaml

from tipline import files
from tipline.model import artifact

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HERE = Path(__file__).parent
TOOLS = Path(sys.executable).parent  # the commands of this environment
SAMPLE_EVERY = 0.05  # seconds
FIT_ROWS = 100_000
# The settings ask for three months with roles; where fewer are measured, these hold the others.
SMALL, SMALL_ROWS = ("2011-01", "2011-02"), 1000
MONTHS = [f"2009-{month:02}" for month in range(1, 13)]


@dataclass(frozen=True)
class Ran:
    """What a command took. `worker` is the most that one of its workers held, or itself where it has none."""

    seconds: float
    worker: float  # MiB resident, pages that processes share counted in each
    together: float  # MiB, all its processes at one moment
    printed: str


class Sampler(threading.Thread):
    """Looks at the memory of a process and its children until it ends."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.ended = pid, threading.Event()
        self.together = 0
        self.peaks: dict[int, int] = {}
        self.workers: set[int] = set()

    def run(self) -> None:
        while not self.ended.wait(SAMPLE_EVERY):
            try:
                here = psutil.Process(self.pid)
                self.look([here, *here.children(recursive=True)])
            except psutil.NoSuchProcess:
                continue

    def look(self, processes: Sequence[Any]) -> None:
        total = 0
        for process in processes:
            held = process.memory_info().rss
            total += held
            if process.pid not in self.peaks and "spawn_main" in " ".join(process.cmdline()):
                self.workers.add(process.pid)
            self.peaks[process.pid] = max(held, self.peaks.get(process.pid, 0))
        self.together = max(total, self.together)

    @property
    def worker(self) -> int:
        return max((self.peaks[pid] for pid in self.workers or self.peaks), default=0)


def run(command: Sequence[str | Path], cwd: Path, env: Mapping[str, str] | None = None) -> Ran:
    """Run a command.

    Raises
    ------
    subprocess.CalledProcessError
        With what it printed, where it fails.
    """
    os.sync()  # what others have left to be written is not this one's
    with (cwd / "log.txt").open("w+", encoding="utf-8") as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, command)), cwd=cwd, env={**os.environ, **(env or {})}, stdout=log, stderr=subprocess.STDOUT
        )
        sampler = Sampler(process.pid)
        sampler.start()
        code = process.wait()
        seconds = time.perf_counter() - started
        sampler.ended.set()
        sampler.join()
        log.seek(0)
        printed = log.read()
    if code:
        raise subprocess.CalledProcessError(code, list(map(str, command)), printed)
    return Ran(seconds, sampler.worker / 2**20, sampler.together / 2**20, printed)


@dataclass(frozen=True)
class Project:
    """A project's folder with `months` full months of `rows` rows each."""

    root: Path
    months: tuple[str, ...]
    rows: int
    train: Mapping[str, Any]
    model: Mapping[str, Any] = field(default_factory=dict)

    @property
    def listed(self) -> list[str]:
        return [*self.months, *SMALL[: max(0, 3 - len(self.months))]]

    def settings(self, **changes: Mapping[str, Any]) -> None:
        """Write params.yaml: the repository's with these months, and with changes in some sections."""
        value = yaml.safe_load((HERE.parent / "params.yaml").read_text(encoding="utf-8"))
        roles = dict(zip(self.listed, ("train", "validation", "test"), strict=False))
        sections: dict[str, Mapping[str, Any]] = {
            "sample": {"months": roles, "rows": FIT_ROWS},
            "learning_curve": {"sizes": 2, "repeats": 2},
            "train": {"rows": min(FIT_ROWS, self.rows), **self.train},
            "model": self.model,
            "cluster": {"n_workers": 2},
            "demo": {"rows": self.rows},
        }
        for section in (sections, changes):
            for name, change in section.items():
                value[name] |= change
        (self.root / "params.yaml").write_text(yaml.safe_dump(value | {"months": self.listed}), encoding="utf-8")

    def tipline(self, *arguments: str) -> Ran:
        return run([TOOLS / "tipline", *arguments], self.root)

    def start(self) -> None:
        """Make the folder: the pipeline, the package that it depends on, the settings."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir(parents=True)
        shutil.copytree(Path(files.__file__).parent, self.root / "src" / "tipline")
        for name in ("dvc.yaml", "features.py"):
            shutil.copy(HERE.parent / name, self.root)
        self.settings()

    def fetch(self, months: Sequence[str], rows: int) -> None:
        """Simulate some months, two at a time."""
        self.settings(demo={"rows": rows})
        with ThreadPoolExecutor(2) as pool:
            # Not `run`: two at once would share its log.
            list(pool.map(lambda month: self._quietly("download", month), months))
        self.settings()

    def _quietly(self, *arguments: str) -> None:
        subprocess.run([TOOLS / "tipline", *arguments], cwd=self.root, check=True, capture_output=True)

    def prepare(self, months: Sequence[str]) -> list[Ran]:
        """Prepare months, one after the other, as two threads of one process do each."""
        return [self.tipline("prepare", month) for month in months]

    def fit(self, **params: Any) -> None:  # noqa: ANN401 (what estimators take)
        """Train on the first month and make the model the champion, without a registry."""
        if params:
            self.settings(train={"params": params})
        for month in self.listed[:3]:
            self.tipline("sample", month)
        self.tipline("train")
        self.make_champion()

    def make_champion(self) -> None:
        """Make the challenger the champion, without a registry."""
        models = self.root / "models"
        # Not written over: the files may be DVC's, with another name in its cache.
        shutil.rmtree(models / "champion", ignore_errors=True)
        shutil.copytree(models / "challenger", models / "champion")
        ref = {"name": "tip-probability", "version": 1, "run": "0" * 32}
        digest = artifact.read_digest(models / "champion")
        files.write_json(models / "champion" / "ref.json", ref | {"digest": digest})

    def make(self, one_group: bool = False) -> None:  # noqa: FBT001, FBT002
        """Months, simulated and prepared, and a champion."""
        self.start()
        self.fetch(self.months, self.rows)
        self.fetch(self.listed[len(self.months) :], SMALL_ROWS)
        if one_group:
            for month in self.months:
                as_one_group(next((self.root / "data" / "raw" / month).glob("*.parquet")))
        self.prepare(self.listed)
        self.fit()

    def link(self, other: Project, small: Project) -> None:
        """Be a project whose months are all hard links to the first prepared month of another one, with its model.

        `small` has the small months, which hold roles and are scored, too.
        """
        self.start()
        shutil.copytree(other.root / "models", self.root / "models")
        for month in self.months:
            link_month(other.root, other.months[0], self.root, month)
        for month in self.listed[len(self.months) :]:
            link_month(small.root, month, self.root, month)

    def forget(self) -> None:
        """Remove predictions and parts."""
        for folder in (self.root / "data" / "predictions", self.root / "data" / ".staging" / "predictions"):
            shutil.rmtree(folder, ignore_errors=True)

    def manifests(self) -> list[dict[str, Any]]:
        folders = (self.root / "data" / "predictions" / f"month={month}" for month in self.listed)
        return [json.loads((folder / files.MANIFEST).read_text(encoding="utf-8")) for folder in folders]

    def steady(self) -> float:
        """Seconds of the last run from its first block to its last published month: no start, no end."""
        return float(max(manifest["made"]["seconds"] for manifest in self.manifests()))

    def phases(self) -> dict[str, float]:
        """Seconds of all workers, by phase."""
        all_of = [manifest["made"]["worker_seconds"] for manifest in self.manifests()]
        return {phase: sum(of[phase] for of in all_of) for phase in all_of[0]}


def link_month(source: Path, of: str, target: Path, month: str) -> None:
    """Hard links to a prepared month's files under another month's name; the manifest is a copy that says so."""
    there, here = (root / "data" / "trips" / f"month={name}" for root, name in ((source, of), (target, month)))
    shutil.copytree(there, here, copy_function=os.link)
    manifest = json.loads((there / files.MANIFEST).read_text(encoding="utf-8"))
    (here / files.MANIFEST).unlink()
    files.write_json(here / files.MANIFEST, manifest | {"month": month})


def as_one_group(path: Path) -> None:
    """Write a published month again as the TLC did in 2009: all its rows in one row group."""
    table = pq.read_table(path)
    with files.replace_file(path) as temporary:
        pq.write_table(table, temporary, row_group_size=len(table))


def written(folder: Path) -> int:
    """Bytes of the Parquet files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*.parquet") if path.is_file())


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
