"""`tipline diff-scores`: two versions over the same prepared months, out of core; no predictions are written.

Each block is read once and scored with both models. What comes back are counts that merge in any order to the same
figures: sums are whole numbers of 2**-40, ties among the movers are settled by month and row. Only the first rows of
each month are scored before, to see where the scores lie.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from tipline import cluster, files, pyfunc, scoring
from tipline.errors import TiplineError, UsageError, of_months, one_line
from tipline.models import modelfiles
from tipline.months import trips
from tipline.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from distributed import Client
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

    from tipline.layout import Layout
    from tipline.params import Settings
    from tipline.pyfunc import Floats, Probabilities
    from tipline.scoring import Block

    Edges = tuple[Probabilities, Probabilities]
    Whole = np.ndarray[tuple[int], np.dtype[np.int64]]

BANDS = 1024
UNIT = 2**40
# Of the first rows of a month, so many, evenly spaced, say where the bands begin.
FIRST_ROWS, SAMPLE_ROWS = 2**20, 2**14
WHERE = "command line"
KEYS = ("month", "row", "score_a", "score_b", "difference")


@dataclass(frozen=True)
class Version:
    """A registered model with its files."""

    number: int
    digest: str
    name: str
    contents: dict[str, bytes]

    @property
    def features(self) -> list[dict[str, Any]]:
        """The columns that it takes, as model.json has them."""
        found: list[dict[str, Any]] = json.loads(self.contents[pyfunc.SPEC])["features"]
        return found

    def to_json(self) -> dict[str, Any]:
        """What the report says of it."""
        return {"version": self.number, "name": self.name, "digest": self.digest}


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Parameters
    ----------
    threshold
        A row crosses it where one score is above and the other is not.
    movers
        How many of the rows with the largest differences are kept, a month and in all.
    """

    threshold: float
    movers: int

    def check(self) -> None:
        """Refuse what makes no sense."""
        if not 0 <= self.threshold < 1:
            what = f"The threshold {self.threshold} is no probability that a score can be above."
            raise UsageError(what, f"{WHERE}, --threshold", "Give a number from 0 to below 1.")
        if self.movers < 1:
            raise UsageError(f"{self.movers} movers are none.", f"{WHERE}, --movers", "Ask for one or more.")


@dataclass(frozen=True)
class Task:
    """A block to compare.

    Parameters
    ----------
    columns
        Those of both models.
    start
        Rows of the month before the block.
    every
        Which rows of the month are a sample of its first ones.
    edges
        Where the bands of each model's scores begin, but for the first; known when the samples are.
    """

    block: Block
    digests: tuple[str, str]
    columns: Mapping[str, pa.DataType]
    options: Options
    start: int
    every: int
    edges: Edges | None = None


@dataclass
class Difference:
    """How two models' scores of some rows differ. Those of parts add up to that of all rows, whatever the order.

    Memory: BANDS squared cells, 8 MiB, and the movers. Only cells with rows in them travel.

    Attributes
    ----------
    sums
        Sum of the scores of each model, and of the absolute differences, in 2**-40.
    crossed
        Rows that model B lifts above the threshold, and rows that it takes below.
    joint
        Rows by band of both scores: band of A * BANDS + band of B.
    movers
        The rows of the largest differences, the largest first.
    """

    rows: int = 0
    sums: tuple[int, int, int] = (0, 0, 0)
    crossed: tuple[int, int] = (0, 0)
    joint: Whole = field(default_factory=lambda: np.zeros(BANDS**2, np.int64))
    movers: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, a: Probabilities, b: Probabilities, edges: Edges, threshold: float) -> Difference:
        """Count the rows of a block; the movers, which need more than the scores, are not among it."""
        one, two = a.astype(np.float64), b.astype(np.float64)
        units = [np.rint(scores * UNIT).astype(np.int64) for scores in (one, two)]
        sums = (int(units[0].sum()), int(units[1].sum()), int(np.abs(units[1] - units[0]).sum()))
        below, above = one <= threshold, two > threshold
        crossed = (int((below & above).sum()), int((~below & ~above).sum()))
        bands = (np.searchsorted(of_model, scores, "right") for of_model, scores in zip(edges, (a, b), strict=True))
        joint = np.bincount(next(bands) * BANDS + next(bands), minlength=BANDS**2)
        return cls(len(a), sums, crossed, joint)

    def plus(self, other: Difference, movers: int) -> Difference:
        """Both together, with so many movers."""
        return Difference(
            self.rows + other.rows,
            (self.sums[0] + other.sums[0], self.sums[1] + other.sums[1], self.sums[2] + other.sums[2]),
            (self.crossed[0] + other.crossed[0], self.crossed[1] + other.crossed[1]),
            self.joint + other.joint,
            sorted(self.movers + other.movers, key=order)[:movers],
        )

    def rank_correlation(self) -> float | None:
        """Spearman's, where scores of one band are ties; None where all scores of a model are in one.

        The bands hold about equally many rows each, by a sample, wherever the scores lie: it is right to 1e-4. Bands of
        equal width would not be: most trips are paid in cash, and a model gives all of them nearly the same score.
        """
        joint = self.joint.reshape(BANDS, BANDS)
        of_a, of_b = joint.sum(axis=1), joint.sum(axis=0)
        x, y = middle_ranks(of_a), middle_ranks(of_b)
        spread = math.sqrt(float((of_a * x * x).sum()) * float((of_b * y * y).sum()))
        return float(((joint * y).sum(axis=1) * x).sum()) / spread if spread else None

    def __getstate__(self) -> dict[str, Any]:
        """Travel with the cells that are not empty."""
        cells = np.flatnonzero(self.joint)
        return {**self.__dict__, "joint": (cells.astype(np.int32), self.joint[cells])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive with all."""
        cells, counts = state["joint"]
        self.__dict__.update(state, joint=np.zeros(BANDS**2, np.int64))
        self.joint[cells] = counts

    def figures(self) -> dict[str, Any]:
        """What the report says of these rows; None where there are none to say it of."""
        a, b, moved = (total / UNIT / self.rows if self.rows else None for total in self.sums)
        return {
            "rows": self.rows,
            "rank_correlation": self.rank_correlation(),
            "mean_a": a,
            "mean_b": b,
            "mean_difference": (self.sums[1] - self.sums[0]) / UNIT / self.rows if self.rows else None,
            "mean_absolute_difference": moved,
            "largest_difference": abs(self.movers[0]["difference"]) if self.movers else None,
            "crossed_up": self.crossed[0],
            "crossed_down": self.crossed[1],
            "crossed_share": sum(self.crossed) / self.rows if self.rows else None,
        }


def edges_of(scores: Probabilities) -> Probabilities:
    """Where the bands of a model's scores begin, but for the first: each holds equally many of these, but for ties."""
    between = np.arange(1, BANDS) / BANDS
    edges: Probabilities = np.unique(np.quantile(scores, between, method="lower")) if len(scores) else scores
    return edges


def middle_ranks(rows: Whole) -> Floats:
    """The middle rank of each band's rows, from the mean rank of all."""
    ranks: Floats = np.cumsum(rows) - rows / 2 - rows.sum() / 2
    return ranks


def order(mover: Mapping[str, Any]) -> tuple[float, str, int]:
    """Sorts the largest difference first, ties by month and row."""
    return -abs(mover["difference"]), mover["month"], mover["row"]


# ---- on a worker ----


def sample_block(task: Task) -> Edges:
    """Both models' scores of the sampled rows of a block."""
    batch = read(task)
    chosen = np.arange(-task.start % task.every, min(len(batch), FIRST_ROWS - task.start), task.every)
    batch = batch.take(pa.array(chosen))
    return scored(task.digests[0], batch, task.block), scored(task.digests[1], batch, task.block)


def compare_block(task: Task) -> Difference:
    """Read one block once, score it with both models, count.

    Raises
    ------
    TiplineError
        Where a model gives something else than probabilities.
    """
    batch = read(task)
    a, b = (scored(digest, batch, task.block) for digest in task.digests)
    difference = Difference.of(a, b, cast("Edges", task.edges), task.options.threshold)
    difference.movers = movers(task.block.month, batch, a, b, task.options.movers)
    return difference


def read(task: Task) -> pa.RecordBatch:
    """Row numbers of a block and the columns of both models."""
    block, names = task.block, ["row", *task.columns]
    table = block.places.trips.table(block.trips, block.row_group, names, block.state)
    table = trips.with_columns(table, task.columns).select(names).combine_chunks()
    # One batch: each column has one dictionary then. An empty table has none.
    return next(iter(table.to_batches(max_chunksize=len(table) or 1)), pa.RecordBatch.from_pylist([], table.schema))


def scored(digest: str, batch: pa.RecordBatch, block: Block) -> Probabilities:
    """A model's scores of a block."""
    scores = scoring.model_here(digest).probabilities(batch)
    if not ((scores >= 0) & (scores <= 1)).all():
        where = f"model {digest[:12]}, month {block.month}, row group {block.row_group}"
        raise TiplineError("Not all of the model's scores are probabilities.", where, "Compare another version.")
    return scores


def movers(month: str, batch: pa.RecordBatch, a: Probabilities, b: Probabilities, count: int) -> list[dict[str, Any]]:
    """The rows of a block that differ most, with both scores and the models' columns."""
    difference, rows = b.astype(np.float64) - a, batch["row"].to_numpy()
    chosen = largest(np.abs(difference), rows, count)
    keys = zip(rows[chosen], a[chosen], b[chosen], difference[chosen], strict=True)
    values = batch.drop_columns(["row"]).take(pa.array(chosen)).to_pylist()
    return [
        {**dict(zip(KEYS, (month, int(row), float(one), float(two), float(gap)), strict=True)), **features}
        for (row, one, two, gap), features in zip(keys, values, strict=True)
    ]


def largest(gaps: Floats, rows: Whole, count: int) -> Whole:
    """Where the largest gaps are, the largest first, ties by row."""
    floor = np.partition(gaps, -count)[-count] if len(gaps) > count else 0.0
    found = np.flatnonzero(gaps >= floor)
    chosen: Whole = found[np.lexsort((rows[found], -gaps[found]))[:count]]
    return chosen


# ---- on the driver ----


def run(
    settings: Settings,
    layout: Layout,
    names: tuple[str, str],
    months: Sequence[str] = (),
    threshold: float = 0.5,
    movers: int = 10,
    trips_place: str = "",
) -> Iterator[str]:
    """Compare two versions; write reports/diff_scores/A-B.json and the movers as .csv; give lines about them.

    Parameters
    ----------
    names
        Version numbers, or `champion`.
    months
        Default: all of `months`.
    threshold, movers
        See `Options`.
    trips_place
        Where prepared months are; default: the project's folder.

    Raises
    ------
    UsageError
        Where there is no such version.
    TiplineError
        At the end, where months failed; MonthsFailedError if others did not.
    """
    options = Options(threshold, movers)
    options.check()
    a, b = versions = fetched(settings, layout, names)
    yield from (f"{letter}: version {one.number}, {one.name}" for letter, one in zip("AB", versions, strict=True))
    if a.digest == b.digest:
        yield f"Both are the same model ({a.digest[:12]}): every score is equal, there is nothing to compare."
        return
    months = list(dict.fromkeys(months or settings.months))
    tasks, failed = planned(scoring.Places.of(layout, trips_place), months, versions, options)
    comparison = Comparison(tasks, options.movers, failed)
    if tasks:
        with cluster.connect(settings.score.workers) as client:
            for version in versions:
                scoring.send_model(client, version.contents, version.digest)
            comparison.run(client)
    yield from table(comparison)
    if comparison.figures:
        yield from write(layout, versions, options, comparison)
    if failed:
        raise of_months(failed, len(months))


def fetched(settings: Settings, layout: Layout, names: tuple[str, str]) -> tuple[Version, Version]:
    """Both versions with their files, digests checked."""
    from tipline.mlflow import registry, tracking  # noqa: PLC0415 (the workers import this module, and MLflow takes seconds)

    with tracking.connect(layout) as client:
        a, b = (resolved(client, settings.register_.name, name) for name in names)
        a, b = (registry.adopt(client, settings, layout, version) for version in (a, b))
        return with_files(a), with_files(b)


def resolved(client: MlflowClient, model: str, name: str) -> ModelVersion:
    """The version that a person names.

    Raises
    ------
    UsageError
        Where there is none.
    """
    from tipline.mlflow import registry  # noqa: PLC0415 (see above)

    if name.isdecimal():
        return registry.by_number(client, model, int(name), WHERE)
    if name != registry.CHAMPION:
        raise UsageError(f"{name!r} is no version.", WHERE, f"Give a version's number, or {registry.CHAMPION}.")
    champion = registry.by_alias(client, model)
    if champion is None:
        raise UsageError(f"{model} has no champion yet.", WHERE, "Give a version's number, or run: dvc repro register")
    return champion


def with_files(version: ModelVersion) -> Version:
    """A version's files, out of a folder that does not outlive this."""
    from tipline.mlflow import registry  # noqa: PLC0415 (see above)

    with tempfile.TemporaryDirectory(prefix="tipline-") as folder:
        registry.fetch(version, Path(folder))
        training = files.read_json_if_any(Path(folder) / modelfiles.TRAINING) or {"name": "not made by tipline"}
        contents = modelfiles.read(Path(folder))
    return Version(int(version.version), registry.digest_of(version), training["name"], contents)


def planned(
    places: scoring.Places, months: Sequence[str], versions: tuple[Version, Version], options: Options
) -> tuple[dict[str, list[Task]], dict[str, TiplineError]]:
    """The tasks of each month, and why others, whose prepared rows are missing or damaged, have none."""
    digests = (versions[0].digest, versions[1].digest)
    columns = {feature["name"]: trips.TYPES[feature["kind"]] for one in versions for feature in one.features}
    tasks, failed = dict[str, list[Task]](), dict[str, TiplineError]()
    for month in months:
        try:
            blocks = scoring.blocks_of(places, month, scoring.key_of(places, month, digests[0]))
            starts = list(accumulate((block.rows for block in blocks), initial=0))
            every = max(min(starts[-1], FIRST_ROWS) // SAMPLE_ROWS, 1)
            tasks[month] = [
                Task(block, digests, columns, options, start, every)
                for block, start in zip(blocks, starts, strict=False)
            ]
        except TiplineError as error:
            failed[month] = error
    return tasks, failed


@dataclass
class Comparison:
    """Differences of months, added up as blocks come in.

    Of a month that is complete its figures and movers are kept, not its histogram. One that failed is in no figure.
    """

    tasks: dict[str, list[Task]]
    movers: int
    failed: dict[str, TiplineError]
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    moved: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    total: Difference = field(default_factory=Difference)

    def edges(self, client: Client) -> Edges:
        """Where the bands begin, by samples of all months."""
        samples = [(np.empty(0, np.float32), np.empty(0, np.float32))]
        tasks = [task for of_month in self.tasks.values() for task in of_month if task.start < FIRST_ROWS]
        for task, result in cluster.each(client, sample_block, tasks, group=month_of):
            if isinstance(result, Exception):
                self.failed.setdefault(task.block.month, failure(task.block.month, result))
            else:
                samples.append(result)
        a, b = (np.concatenate(of_model) for of_model in zip(*samples, strict=True))
        return edges_of(a), edges_of(b)

    def run(self, client: Client) -> None:
        """Compare all blocks on the workers."""
        edges = self.edges(client)
        months = [tasks for month, tasks in self.tasks.items() if month not in self.failed]
        tasks = [replace(task, edges=edges) for of_month in months for task in of_month]
        progress = Progress(sum(task.block.rows for task in tasks))
        left = Counter(task.block.month for task in tasks)
        partly = dict.fromkeys(self.tasks, Difference())
        for task, result in cluster.each(client, compare_block, tasks, group=month_of):
            month = task.block.month
            left[month] -= 1
            progress.add(task.block.rows)
            if isinstance(result, Exception):
                self.failed.setdefault(month, failure(month, result))
            else:
                partly[month] = partly[month].plus(result, self.movers)
            if not left[month]:
                self.finish(month, partly.pop(month))
        for month, nothing in partly.items():
            self.finish(month, nothing)
        progress.close()

    def finish(self, month: str, difference: Difference) -> None:
        """Keep what the report says of a month whose blocks are all there."""
        if month not in self.failed:
            self.figures[month] = difference.figures()
            self.moved[month] = difference.movers
            self.total = self.total.plus(difference, self.movers)

    def rows(self) -> list[dict[str, Any]]:
        """The months' figures, in order of time, then those of all."""
        months = [{"month": month, **self.figures[month]} for month in sorted(self.figures)]
        return [*months, {"month": "all", **self.total.figures()}]

    def all_movers(self) -> list[dict[str, Any]]:
        """The movers of all months, the largest first; those of all rows stand before the others."""
        ranked = ((rank, mover) for month in self.moved.values() for rank, mover in enumerate(month, 1))
        return [{"rank_in_month": rank, **mover} for rank, mover in sorted(ranked, key=lambda pair: order(pair[1]))]


def month_of(task: Task) -> str:
    """Which month a task is of: when one of a month's takes its worker down, the others need not."""
    return task.block.month


def failure(month: str, error: Exception) -> TiplineError:
    """What a month's task ended with, in words."""
    if isinstance(error, TiplineError):
        return error
    return TiplineError(f"A block cannot be compared: {one_line(repr(error))}.", f"month {month}", "Run it again.")


def write(layout: Layout, versions: tuple[Version, Version], options: Options, comparison: Comparison) -> Iterator[str]:
    """Write report and movers; say where. Equal comparisons are equal bytes."""
    a, b = versions
    path = layout.root / "reports" / "diff_scores" / f"{a.number}-{b.number}.json"
    *months, total = comparison.rows()
    failed = {month: one_line(error) for month, error in sorted(comparison.failed.items())}
    about = {"a": a.to_json(), "b": b.to_json(), "threshold": options.threshold}
    files.write_json(path, {**about, "months": months, "all": total, "failed": failed})
    movers = comparison.all_movers()
    if movers:
        files.write_csv(path.with_suffix(".csv"), movers)
    yield f"{path.relative_to(layout.root)}; the movers: {path.with_suffix('.csv').name}"


COLUMNS = {
    "rank_correlation": ("rank corr", ".5f"),
    "mean_a": ("mean A", ".4f"),
    "mean_b": ("mean B", ".4f"),
    "mean_difference": ("mean B-A", "+.4f"),
    "mean_absolute_difference": ("mean |B-A|", ".4f"),
    "largest_difference": ("largest", ".4f"),
    "crossed_up": ("up", ",d"),
    "crossed_down": ("down", ",d"),
    "crossed_share": ("crossed", ".3%"),
}


def table(comparison: Comparison) -> Iterator[str]:
    """Months and movers as lines of text."""
    yield f"{'month':8}{'rows':>14}" + "".join(f"{title:>12}" for title, _ in COLUMNS.values())
    for row in comparison.rows() if comparison.figures else ():
        cells = (f"{'-' if row[name] is None else format(row[name], as_):>12}" for name, (_, as_) in COLUMNS.items())
        yield f"{row['month']:8}{row['rows']:>14,}" + "".join(cells)
    for month, error in sorted(comparison.failed.items()):
        yield f"{month:8}  failed: {one_line(error)}"
    if comparison.total.movers:
        yield "the rows that move most:"
        yield from aligned([list(map(str, comparison.total.movers[0])), *map(cells_of, comparison.total.movers)])


def cells_of(mover: Mapping[str, Any]) -> list[str]:
    """A mover's values as text."""
    formats = {"score_a": ".4f", "score_b": ".4f", "difference": "+.4f"}
    return [format(value, formats[name]) if name in formats else str(value) for name, value in mover.items()]


def aligned(rows: list[list[str]]) -> Iterator[str]:
    """Rows of cells, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
