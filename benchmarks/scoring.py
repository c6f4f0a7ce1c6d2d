"""How fast tipline scores, beside the floor, DuckDB, Polars and the seed's own pipeline, in one run, as ratios.

Usage: python benchmarks/scoring.py [--rows N] [--months N] [--rounds N] [--folder F] [--libs F] [--large] [--one-group]
       python benchmarks/scoring.py --dvc [...]       `dvc repro score` beside `tipline score`

Each case runs in processes of its own, the cases take turns, figures are medians of the rounds. "whole" is the command
from its start to its end, "steady" leaves out what does not grow with the rows: imports, the cluster's start and end.
All files are in the page cache. DuckDB and Polars are not dependencies: `pip install --target F duckdb polars`, then
--libs F. Printed, and written to reports/benchmarks/scoring.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from any_model import time_predict_proba
from bulk import HERE, MONTHS, TOOLS, Project, Ran, median, run, written

from tipline import files

if TYPE_CHECKING:
    from collections.abc import Callable

REPORTS = HERE.parent / "reports" / "benchmarks"
CLOSE = 1e-5
LARGE = 12, 14_200_000  # months, rows a month
SCALE = 1, 3, 12
# The derived columns of features.py, and a question that they help to answer.
DERIVED = {"target": "tip_amount > 2", "features": "add_features", "categorical": ["vendor", "payment_type", "weekday"]}
DERIVED |= {
    "columns": ["vendor", "pickup_datetime", "dropoff_datetime", "trip_distance", "payment_type", "fare_amount"]
}
ESTIMATORS: dict[str, dict[str, Any]] = {
    "LightGBM": {"estimator": "lightgbm.LGBMClassifier", "params": {"num_leaves": 7}},
    "linear": {"estimator": "logistic_regression"},
}
# Ensembles of 100 trees, on the columns of the repository's params.yaml.
ENSEMBLES: dict[str, dict[str, Any]] = {
    "HistGradientBoosting": {"estimator": "hist_gradient_boosting", "params": {"max_leaf_nodes": 31}},
    "LightGBM, 31 leaves": {"estimator": "lightgbm.LGBMClassifier", "params": {"num_leaves": 31}},
    "XGBoost, depth 6": {"estimator": "xgboost.XGBClassifier", "params": {"max_depth": 6}},
}
# 0.8 of what the kernels alone have to reach (8, 3 and 2 times); see trees.py.
TARGETS = dict(zip(ENSEMBLES, (6.4, 2.4, 1.6), strict=True))
MATRICES = ", predict_proba on matrices"

Told = dict[str, Any]


class Case(NamedTuple):
    """One line of the table."""

    name: str
    rows: int
    measure: Callable[[], Told]


class Ratio(NamedTuple):
    """A line of the second table: how many times as fast `ours` is as `theirs`, and how fast it has to be."""

    what: str
    ours: str
    theirs: str
    target: float | None


RATIOS = [
    Ratio("prepared months, against the floor", "tipline score", "floor", 0.75),
    Ratio("... against DuckDB, a month after the other", "tipline score", "DuckDB, one by one", 0.85),
    Ratio("... against DuckDB, two months at once", "tipline score", "DuckDB", 0.85),
    Ratio("... against Polars, `replace_strict`", "tipline score", "Polars, lookup", 1.0),
    Ratio("... against Polars, `when` and `gather`", "tipline score", "Polars", 1.0),
    Ratio("... against the seed's pipeline, published months", "tipline score", "seed", 7),
    Ratio("... that reads only its columns", "tipline score", "seed, its columns", 7),
    Ratio("published months, prepared and scored, against the seed's", "tipline prepare + score", "seed", 2.5),
    Ratio("... that reads only its columns", "tipline prepare + score", "seed, its columns", 2.5),
    Ratio("... against DuckDB, two months at once", "tipline prepare + score", "DuckDB, published", 0.9),
    Ratio("... against Polars", "tipline prepare + score", "Polars, published", None),
    Ratio(
        "LightGBM on derived columns, against predict_proba",
        "LightGBM, derived columns",
        "LightGBM, predict_proba",
        0.9,
    ),
    *(
        Ratio(f"{name}, against predict_proba on matrices", name, f"{name}{MATRICES}", TARGETS[name])
        for name in ENSEMBLES
    ),
    Ratio("a linear model on them, against predict_proba", "linear, derived columns", "linear, predict_proba", 0.9),
    Ratio("two workers, against one", "tipline score", "tipline score, 1 worker", 1.8),
    Ratio("12 months, speed against 3 months", "12 months", "3 months", None),
    Ratio("12 months, speed against 1 month", "12 months", "1 month", None),
]


class Bench:
    """The projects and the cases over them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.folder = Path(options.folder)
        months = tuple(MONTHS[: options.months])
        self.main = Project(self.folder / "main", months, options.rows, {})
        self.ensembles = {
            name: Project(self.folder / train["estimator"], months[:1], options.boosted_rows, train)
            for name, train in ENSEMBLES.items()
        }
        self.derived = {
            name: Project(self.folder / name, months[:1], options.boosted_rows, train, DERIVED)
            for name, train in ESTIMATORS.items()
        }
        self.linked = {n: Project(self.folder / f"linked-{n}", tuple(MONTHS[:n]), options.rows, {}) for n in SCALE}
        self.large = Project(self.folder / "large", tuple(MONTHS[: LARGE[0]]), LARGE[1], {})
        self.reference: dict[str, np.ndarray[Any, Any]] = {}
        self.checks: dict[str, str] = {}

    def make(self) -> None:
        """Simulate and prepare the months, fit the models; what an earlier run made with the same code is kept."""
        code = {path.name: files.hash_file(path) for path in Path(files.__file__).parent.rglob("*.py")}
        names = ("rows", "months", "boosted_rows", "one_group", "large")
        wanted = {"code": code} | {name: getattr(self.options, name) for name in names}
        if files.try_read_json(self.folder / "made.json") != wanted:
            say("making the months")
            self.make_all()
            files.write_json(self.folder / "made.json", wanted)

    def make_all(self) -> None:
        self.main.make(self.options.one_group)
        for project in (*self.ensembles.values(), *self.derived.values()):
            project.make()
        script("the_post.py", "fit", self.main, self.folder, {})
        for project in self.linked.values():
            project.link(self.main, next(iter(self.ensembles.values())))
        if self.options.large:
            one = Project(self.folder / "one", self.large.months[:1], self.large.rows, {})
            one.make()
            self.large.link(one, one)

    def cases(self) -> list[Case]:
        """In the order of a round: whoever's predictions are checked runs behind `tipline score`."""
        rows = self.options.rows * self.options.months
        alone = [
            Case("floor", rows, self.floor),
            Case("tipline score, 1 worker", rows, partial(self.score, self.main, 1)),
            Case("tipline score", rows, partial(self.score, self.main)),
            Case("tipline prepare + score", rows, self.prepare_and_score),
            Case("seed", rows, partial(self.seed, "seed", "predict")),
            Case("seed, its columns", rows, partial(self.seed, "seed, its columns", "predict-selected")),
        ]
        for name, project in self.ensembles.items():
            predict = partial(self.predict_proba, project, is_encoded=True)
            alone += [
                Case(name, self.options.boosted_rows, partial(self.score, project)),
                Case(name + MATRICES, self.options.boosted_rows, predict),
            ]
        for name, project in self.derived.items():
            alone += [
                Case(f"{name}, derived columns", self.options.boosted_rows, partial(self.score, project)),
                Case(f"{name}, predict_proba", self.options.boosted_rows, partial(self.predict_proba, project)),
            ]
        names = {1: "1 month"}
        linked = [
            Case(names.get(n, f"{n} months"), n * self.options.rows, partial(self.score, project))
            for n, project in self.linked.items()
        ]
        if self.options.large:
            linked.append(Case("12 months of 14.2 million", LARGE[0] * LARGE[1], partial(self.score, self.large)))
        return [*alone, *self.by_hand(rows), *linked]

    def by_hand(self, rows: int) -> list[Case]:
        """DuckDB and Polars, where they are installed."""
        cases = {
            "DuckDB": "duckdb",
            "DuckDB, one by one": "duckdb-one-by-one",
            "DuckDB, published": "duckdb-published",
            "Polars": "polars",
            "Polars, lookup": "polars-lookup",
            "Polars, published": "polars-published",
        }
        found = []
        for name, case in cases.items():
            library = case.partition("-")[0]
            if (Path(self.options.libs or "") / library).is_dir() if self.options.libs else is_installed(library):
                found.append(Case(name, rows, partial(self.compared, name, case)))
            else:
                self.checks[name] = f"NOT MEASURED: {library} is not installed; pip install duckdb polars"
        return found

    # ---- cases ----

    def score(self, project: Project, workers: int = 2) -> Told:
        """`tipline score` of all months."""
        project.settings(cluster={"n_workers": workers})
        project.forget()
        told = figures(project.tipline("score"), project.steady(), project)
        return told | {"phases": project.phases()}

    def predict_proba(self, project: Project, *, is_encoded: bool = False) -> Told:
        """`predict_proba` on ready frames or matrices; their reading and the processes' starts are left out."""
        told = dict.fromkeys(("seconds", "bytes")) | {"steady": time_predict_proba(project.root, is_encoded=is_encoded)}
        return told | {"MiB a worker": 0, "MiB together": 0}

    def floor(self) -> Told:
        self.main.settings()
        self.main.forget()
        ran = script("by_hand.py", "floor", self.main, self.folder / "out", {})
        return figures(ran, self.main.steady(), self.main) | {"phases": self.main.phases()}

    def prepare_and_score(self) -> Told:
        """`tipline prepare` of one month after the other, then `tipline score`."""
        shutil.rmtree(self.main.root / "data" / "trips")
        prepared = self.main.prepare(self.main.listed)
        told = self.score(self.main)
        seconds = sum(ran.seconds for ran in prepared)
        told["prepare"] = seconds
        told["seconds"] += seconds
        told["steady"] += sum(float(ran.printed.rpartition(" in ")[2].split()[0]) for ran in prepared)
        told["MiB a worker"] = max(told["MiB a worker"], *(ran.worker for ran in prepared))
        return told

    def compared(self, name: str, case: str) -> Told:
        """A case that writes the model's probabilities: they are held against tipline's."""
        environment = {"POLARS_MAX_THREADS": "2"}
        if self.options.libs:
            environment["PYTHONPATH"] = self.options.libs
        out = self.fresh()
        ran = script("by_hand.py", case, self.main, out, environment)
        if name not in self.checks:
            self.checks[name] = self.difference(out)
        return of_script(ran) | {"bytes": written(out)}

    def seed(self, name: str, case: str) -> Told:
        """The post's pipeline: another model of the same kind, so that only its rows can be counted."""
        out = self.fresh()
        ran = script("the_post.py", case, self.main, out, {})
        rows, due = (sum(pq.ParquetFile(path).metadata.num_rows for path in out.glob("*.parquet")), self.rows())
        self.checks[name] = f"{rows:,} rows; a model of its own" if rows == due else f"WRONG: {rows:,} of {due:,} rows"
        return of_script(ran) | {"bytes": written(out)}

    # ---- checks ----

    def rows(self) -> int:
        return int(self.options.rows * self.options.months)

    def fresh(self) -> Path:
        """An empty folder for a case's output; what an earlier case left in it goes, outside its time."""
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        return out

    def difference(self, out: Path) -> str:
        """By how much the probabilities of a case differ from tipline's, by row number."""
        largest, rows = 0.0, 0
        for month in self.main.months:
            if month not in self.reference:
                folder = self.main.root / "data" / "predictions" / f"month={month}"
                self.reference[month] = by_row(folder, self.options.rows)
            theirs = by_row(out / f"{month}.parquet", self.options.rows)
            rows += int(np.count_nonzero(~np.isnan(theirs)))
            largest = max(largest, float(np.nanmax(np.abs(theirs - self.reference[month]))))
        good = largest < CLOSE and rows == self.rows()
        return f"{'' if good else 'WRONG: '}{rows:,} rows, at most {largest:.1e} from tipline's"


def is_installed(library: str) -> bool:
    from importlib.util import find_spec  # noqa: PLC0415

    return find_spec(library) is not None


def by_row(path: Path, rows: int) -> np.ndarray[Any, Any]:
    """Probabilities in the order of their row numbers, NaN where there is none."""
    table = pq.read_table(path, columns=["row", "probability"], partitioning=None)
    if len(table) != rows:
        sys.exit(f"{path} has {len(table):,} rows, {rows:,} are due")
    values = np.full(rows, np.nan, np.float32)
    values[table["row"].to_numpy()] = table["probability"].to_numpy()
    return values


def script(name: str, case: str, project: Project, out: Path, environment: dict[str, str]) -> Ran:
    return run([sys.executable, HERE / name, case, project.root, out, *project.months], project.root, environment)


def figures(ran: Ran, steady: float, project: Project) -> Told:
    told = {"seconds": ran.seconds, "steady": steady, "MiB a worker": ran.worker, "MiB together": ran.together}
    return told | {"bytes": written(project.root / "data" / "predictions")}


def of_script(ran: Ran) -> Told:
    """Figures of a script that ends by printing its own time."""
    steady = json.loads(ran.printed.splitlines()[-1])["seconds"]
    return {"seconds": ran.seconds, "steady": steady, "MiB a worker": ran.worker, "MiB together": ran.together}


# ---- `dvc repro score` ----


def dvc(project: Project, *arguments: str) -> Ran:
    return run([TOOLS / "dvc", *arguments], project.root, {"PATH": f"{TOOLS}:{os.environ['PATH']}"})


def promote_another(project: Project, c: float) -> None:
    """Train, register and promote a model that no earlier round has scored with, as a user would."""
    project.settings(train={"params": {"C": c}})
    dvc(project, "repro", "train")
    dvc(project, "repro", "-s", "register")
    project.tipline("promote", "--force", "its speed is what is measured")


def link_type(project: Project) -> str:
    """How the cache and the predictions share their bytes."""
    told = dvc(project, "doctor").printed.splitlines()
    supported = next((line.partition(":")[2].strip() for line in told if "Cache types" in line), "not told")
    part = next((project.root / "data" / "predictions").rglob("*.parquet"))
    copied = "reflink or copy" if "reflink" in supported else "copy"
    effective = "hardlink" if part.stat().st_nlink > 1 else copied
    return f"{effective} (.dvc/config asks for reflink, hardlink, copy; the file system has {supported})"


def disk(folder: Path) -> int:
    """Bytes on the disk, a file with several names once."""
    found = {status.st_ino: status.st_blocks * 512 for status in (path.lstat() for path in folder.rglob("*"))}
    return sum(found.values())


def dvc_rounds(options: argparse.Namespace) -> tuple[dict[str, list[Told]], list[str]]:
    """`tipline score`, `dvc repro -s score`, `dvc repro score`: each with a champion that is new to the months."""
    project = Project(Path(options.folder) / "dvc", tuple(MONTHS[: max(3, options.months)]), options.rows, {})
    project.start()
    dvc(project, "init", "--no-scm", "-q")
    shutil.copy(HERE.parent / ".dvc" / "config", project.root / ".dvc" / "config")
    dvc(project, "config", "core.no_scm", "true")
    runs: dict[str, list[Told]] = defaultdict(list)

    def measured(name: str, way: Callable[[], Ran]) -> None:
        runs[name].append(figures(way(), project.steady(), project))
        say(f"{name}: {runs[name][-1]['seconds']:.1f} s")

    champion, kept = project.root / "models" / "champion", project.root / "champion"
    measured("dvc repro score, from nothing", partial(dvc, project, "repro", "score"))
    for turn in range(options.rounds):
        promote_another(project, 1 / (2 + 3 * turn))
        measured("dvc repro score", partial(dvc, project, "repro", "score"))
        # Models that no registry knows serve the others; `register` must not find them.
        shutil.copytree(champion, kept)
        project.fit(C=1 / (3 + 3 * turn))
        measured("dvc repro -s score", partial(dvc, project, "repro", "-s", "score"))
        project.fit(C=1 / (4 + 3 * turn))
        measured("tipline score", partial(project.tipline, "score"))
        shutil.rmtree(champion)
        kept.rename(champion)
    # Now the cache has what is there.
    dvc(project, "repro", "-s", "score")
    return runs, dvc_notes(project)


def dvc_notes(project: Project) -> list[str]:
    sizes = {name: disk(project.root / name) / 1e6 for name in ("data/predictions", "data", ".dvc/cache")}
    both = disk(project.root) / 1e6
    return [
        f"cache link type: {link_type(project)}",
        *(f"{name}: {size:,.0f} MB on the disk" for name, size in sizes.items()),
        f"the project and its cache, shared bytes once: {both:,.0f} MB; the cache keeps each champion's predictions",
    ]


# ---- the report ----


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def rounds(bench: Bench) -> dict[str, list[Told]]:
    """All cases, in turns."""
    runs: dict[str, list[Told]] = defaultdict(list)
    wanted = bench.options.only
    cases = [case for case in bench.cases() if not wanted or any(word in case.name for word in wanted)]
    for number in range(bench.options.rounds):
        for case in cases:
            try:
                runs[case.name].append(case.measure() | {"rows": case.rows})
            except subprocess.CalledProcessError as error:
                bench.checks[case.name] = f"FAILED: {str(error.output).strip().splitlines()[-1:]}"
                say(f"round {number + 1}: {case.name} failed: {error.cmd}\n{error.output[-3000:]}")
                continue
            told = runs[case.name][-1]
            say(f"round {number + 1}: {case.name}: {told['seconds'] or 0:.2f} s, steady {told['steady']:.2f} s")
    return {name: of for name, of in runs.items() if of}


def medians(runs: list[Told]) -> Told:
    """Of each figure, its median; of those that a case has not, None."""
    names = [name for name, value in runs[0].items() if not isinstance(value, dict)]
    told: Told = {name: None if runs[0][name] is None else median([one[name] for one in runs]) for name in names}
    if "phases" in runs[0]:
        told["phases"] = {name: median([one["phases"][name] for one in runs]) for name in runs[0]["phases"]}
    return told


def speeds(told: Told) -> tuple[float | None, float]:
    """Million rows a second, whole and steady."""
    whole = told["rows"] / told["seconds"] / 1e6 if told["seconds"] else None
    return whole, told["rows"] / told["steady"] / 1e6


def shown(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def table(head: list[str], lines: list[list[str]]) -> list[str]:
    """Markdown."""
    return [f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines]]


def case_line(name: str, runs: list[Told], checked: str) -> list[str]:
    told = medians(runs)
    whole, steady = speeds(told)
    spread = [f"{edge(one['steady'] for one in runs):.2f}" for edge in (min, max)]
    size = told["bytes"] and told["bytes"] / told["rows"]
    memory = f"{told['MiB a worker']:.0f}"
    times = [shown(told["seconds"]), f"{told['steady']:.2f} ({' - '.join(spread)})", shown(whole), f"{steady:.2f}"]
    return [name, f"{told['rows'] / 1e6:,.1f}", *times, memory, shown(size), checked]


def ratio_line(ratio: Ratio, told: dict[str, Told]) -> list[str]:
    target = "" if ratio.target is None else f"{ratio.target:g}"
    if ratio.ours not in told or ratio.theirs not in told:
        return [ratio.what, target, "not measured", ""]
    ours, theirs = speeds(told[ratio.ours]), speeds(told[ratio.theirs])
    whole = ours[0] / theirs[0] if ours[0] and theirs[0] else None
    return [ratio.what, target, shown(whole), f"{ours[1] / theirs[1]:.2f}"]


def phase_line(name: str, told: Told) -> list[str]:
    """Nanoseconds a row, of one worker."""
    return [name, *(f"{seconds / told['rows'] * 1e9:.1f}" for seconds in told["phases"].values())]


def report(runs: dict[str, list[Told]], checks: dict[str, str], options: argparse.Namespace) -> list[str]:
    """The page."""
    told = {name: medians(of) for name, of in runs.items()}
    head = ["case", "million rows", "whole s", "steady s (all rounds)", "million rows/s, whole", "steady"]
    head += ["MiB a worker", "bytes a row", "checked"]
    lines = [case_line(name, of, checks.get(name, "")) for name, of in runs.items()]
    lines += [[name, *[""] * 7, why] for name, why in checks.items() if name not in runs]
    phases = {name: of for name, of in told.items() if "phases" in of}
    names = list(next(iter(phases.values()), {"phases": {}})["phases"])
    return [
        *heading(options),
        *table(head, lines),
        "",
        *table(["times as fast", "target", "whole", "steady"], [ratio_line(ratio, told) for ratio in RATIOS]),
        "",
        *table(["ns a row of one worker", *names], [phase_line(name, of) for name, of in phases.items()]),
        "",
        *NOTES,
    ]


NOTES = [
    "- whole: the command from start to end.",
    "- steady: of tipline and the floor from the first block to the last published month, of others without imports.",
    "- MiB a worker: the most that one worker held at a moment, or the process of a case without workers: resident,",
    "  looked at twenty times a second; pages that processes share count in each.",
    "- 1, 3, 12 months: hard links to the first prepared month, each with a manifest of its own, so the rows repeat.",
    "- tipline prepare + score: one month after the other, then all months.",
]


def heading(options: argparse.Namespace) -> list[str]:
    names = ("dask", "pandas", "pyarrow", "scikit-learn", "lightgbm", "xgboost-cpu", "numba", "numpy")
    groups = "one row group a published month" if options.one_group else "published months as the demo writes them"
    measured = f"{options.months} months of {options.rows:,} rows ({groups}), {options.rounds} rounds, medians"
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    libraries = ", ".join(f"{name} {version(name)}" for name in names)
    return ["# Bulk scoring", "", f"{measured}; two workers; {machine}, {libraries}.", ""]


def dvc_report(runs: dict[str, list[Told]], notes: list[str], options: argparse.Namespace) -> list[str]:
    """The page of --dvc."""
    rows = options.rows * max(3, options.months)
    lines = []
    for name, of in runs.items():
        seconds, steady = (median([one[key] for one in of]) for key in ("seconds", "steady"))
        lines.append([name, f"{seconds:.2f}", f"{steady:.2f}", f"{rows / seconds / 1e6:.2f}"])
    head = ["each with a champion that is new", "s", "of them scoring", "million rows/s"]
    return [*heading(options), *table(head, lines), "", *(f"- {note}" for note in notes)]


def parser() -> argparse.ArgumentParser:
    assert __doc__  # noqa: S101
    told = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told.add_argument("--rows", type=int, default=14_000_000, help="rows a month")
    told.add_argument("--months", type=int, default=3, help="full months")
    told.add_argument("--rounds", type=int, default=3)
    told.add_argument("--boosted-rows", type=int, default=4_000_000, help="rows for ensembles of trees")
    told.add_argument("--folder", help="where to work, and what is kept; default: a temporary folder")
    told.add_argument("--libs", help="folder with duckdb and polars")
    told.add_argument("--large", action="store_true", help="12 months of 14.2 million rows, too")
    told.add_argument("--one-group", action="store_true", help="published months of one row group, as those of 2009")
    told.add_argument("--dvc", action="store_true", help="what dvc repro costs, nothing else")
    told.add_argument("--only", nargs="+", help="cases with one of these words in their names")
    return told


def measure(options: argparse.Namespace) -> None:
    """Run, print, write."""
    if options.dvc:
        runs, notes = dvc_rounds(options)
        page, stem = dvc_report(runs, notes, options), "scoring-dvc"
    else:
        bench = Bench(options)
        bench.make()
        runs = rounds(bench)
        page, stem = report(runs, bench.checks, options), "scoring"
    print("\n".join(page))
    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / f"{stem}.md").write_text("\n".join(page) + "\n", encoding="utf-8")
    kept = {"options": {**vars(options), "folder": None, "libs": None}, "runs": runs}
    (REPORTS / f"{stem}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    options = parser().parse_args()
    try:
        if options.folder:
            options.folder = str(Path(options.folder).resolve())
            measure(options)
            return
        with tempfile.TemporaryDirectory() as folder:
            options.folder = folder
            measure(options)
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(error.cmd)} ended with {error.returncode}:\n{error.output}")


if __name__ == "__main__":
    main()
