"""`tipline diff-scores`: two versions over the same prepared months, out of core; no predictions are written.

Each block is read once and scored with both models. Only the first rows of each month are scored before, to see where
the scores lie.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tipline import cluster, files, progress
from tipline.errors import TiplineError, UsageError, combine_failures, join_lines
from tipline.evaluation.differences import Difference, compute_edges, find_largest, sort_key
from tipline.ingest import columns
from tipline.model import artifact, pyfunc
from tipline.scoring import plan, worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tipline.cluster import Client
    from tipline.config import Settings
    from tipline.evaluation.differences import Edges
    from tipline.model.pyfunc import Probabilities
    from tipline.paths import Paths
    from tipline.registry.store import Client as MlflowClient
    from tipline.registry.store import Version as ModelVersion
    from tipline.scoring.plan import Block

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


@dataclass(frozen=True)
class Task:
    """A block to compare."""

    block: Block
    digests: tuple[str, str]
    columns: Mapping[str, pa.DataType]  # of both models
    start: int  # rows of the month before the block
    every: int  # which rows of the month are a sample of its first ones


# ---- on a worker ----


def sample_block(task: Task) -> Edges:
    """Both models' scores of the sampled rows of a block."""
    batch = worker.read_block(task.block, task.columns)
    chosen = np.arange(-task.start % task.every, min(len(batch), FIRST_ROWS - task.start), task.every)
    batch = batch.take(pa.array(chosen))
    return scored(task.digests[0], batch, task.block), scored(task.digests[1], batch, task.block)


def compare_block(task: Task, edges: Edges, threshold: float, count: int) -> Difference:
    """Read one block once, score it with both models, count; with so many movers."""
    batch = worker.read_block(task.block, task.columns)
    a, b = (scored(digest, batch, task.block) for digest in task.digests)
    difference = Difference.of(a, b, edges, threshold)
    difference.movers = movers(task.block.month, batch, a, b, count)
    return difference


def scored(digest: str, batch: pa.RecordBatch, block: Block) -> Probabilities:
    """A model's scores of a block."""
    scores = worker.get_worker_model(digest).probabilities(batch)
    if not ((scores >= 0) & (scores <= 1)).all():
        where = f"model {digest[:12]}, month {block.month}, row group {block.row_group}"
        raise TiplineError("Not all of the model's scores are probabilities.", where, "Compare another version.")
    return scores


def movers(month: str, batch: pa.RecordBatch, a: Probabilities, b: Probabilities, count: int) -> list[dict[str, Any]]:
    """The rows of a block that differ most, with both scores and the models' columns."""
    difference, rows = b.astype(np.float64) - a, batch["row"].to_numpy()
    chosen = find_largest(np.abs(difference), rows, count)
    keys = zip(rows[chosen], a[chosen], b[chosen], difference[chosen], strict=True)
    values = batch.drop_columns(["row"]).take(pa.array(chosen)).to_pylist()
    return [
        {**dict(zip(KEYS, (month, int(row), float(one), float(two), float(gap)), strict=True)), **features}
        for (row, one, two, gap), features in zip(keys, values, strict=True)
    ]


# ---- on the driver ----


def run(
    settings: Settings,
    paths: Paths,
    versions: tuple[str, str],
    months: Sequence[str] = (),
    threshold: float = 0.5,
    largest: int = 10,
    trips: str = "",
) -> Iterator[str]:
    """Compare two versions; write reports/diff_scores/A-B.json and the movers as .csv; give lines about them.

    Parameters
    ----------
    names
        Version numbers, or `champion`.
    months
        Default: all of `months`.
    threshold
        A row crosses it where one score is above and the other is not.
    movers
        How many of the rows with the largest differences are kept, a month and in all.
    trips_place
        Where prepared months are; default: the project's folder.

    Raises
    ------
    UsageError
        Where there is no such version.
    TiplineError
        At the end, where months failed; MonthsFailedError if others did not.
    """
    check_options(threshold, largest)
    a, b = models = fetched(settings, paths, versions)
    yield from (f"{letter}: version {one.number}, {one.name}" for letter, one in zip("AB", models, strict=True))
    if a.digest == b.digest:
        yield f"Both are the same model ({a.digest[:12]}): every score is equal, there is nothing to compare."
        return
    months = list(dict.fromkeys(months or settings.months))
    tasks, failed = planned(plan.Locations.resolve(paths, trips), months, models)
    comparison = Comparison(tasks, threshold, largest, failed)
    if tasks:
        with cluster.connect_client(settings.cluster.n_workers) as client:
            for version in models:
                worker.send_model(client, version.contents, version.digest)
            comparison.run(client)
    yield from table(comparison)
    if comparison.figures:
        yield from write(paths, models, comparison)
    if failed:
        raise combine_failures(failed, len(months))


def check_options(threshold: float, movers: int) -> None:
    """Refuse what makes no sense."""
    if not 0 <= threshold < 1:
        what = f"The threshold {threshold} is no probability that a score can be above."
        raise UsageError(what, f"{WHERE}, --threshold", "Give a number from 0 to below 1.")
    if movers < 1:
        raise UsageError(f"{movers} movers cannot be listed.", f"{WHERE}, --movers", "Ask for one or more.")


def fetched(settings: Settings, paths: Paths, names: tuple[str, str]) -> tuple[Version, Version]:
    """Both versions with their files, digests checked."""
    from tipline.registry import model_versions, store  # noqa: PLC0415 (the workers import this module, and MLflow takes seconds)

    with store.connect_store(paths) as client:
        a, b = (resolved(client, settings.model.name, name) for name in names)
        a, b = (model_versions.adopt_version(client, settings, paths, version) for version in (a, b))
        return with_files(a), with_files(b)


def resolved(client: MlflowClient, model: str, name: str) -> ModelVersion:
    """The version that a person names."""
    from tipline.registry import model_versions  # noqa: PLC0415 (see above)

    if name.isdecimal():
        return model_versions.get_version(client, model, int(name), WHERE)
    if name != model_versions.CHAMPION:
        raise UsageError(f"{name!r} is no version.", WHERE, f"Give a version's number, or {model_versions.CHAMPION}.")
    champion = model_versions.get_champion(client, model)
    if champion is None:
        raise UsageError(f"{model} has no champion yet.", WHERE, "Give a version's number, or run: dvc repro register")
    return champion


def with_files(version: ModelVersion) -> Version:
    """A version with its files."""
    from tipline.registry import model_versions  # noqa: PLC0415 (see above)

    with model_versions.open_files(version) as folder:
        training = files.try_read_json(folder / artifact.TRAINING) or {"name": "not made by tipline"}
        contents = artifact.read_artifact(folder)
    return Version(int(version.version), model_versions.get_digest(version), training["name"], contents)


def planned(
    locations: plan.Locations, months: Sequence[str], versions: tuple[Version, Version]
) -> tuple[dict[str, list[Task]], dict[str, TiplineError]]:
    """The tasks of each month, and why others, whose prepared rows are missing or damaged, have none."""
    digests = (versions[0].digest, versions[1].digest)
    types = columns.list_feature_columns(feature for one in versions for feature in one.features)
    tasks, failed = dict[str, list[Task]](), dict[str, TiplineError]()
    for month in months:
        try:
            blocks = plan.list_blocks(locations, month, plan.compute_key(locations, month, digests[0]))
            starts = list(accumulate((block.rows for block in blocks), initial=0))
            every = max(min(starts[-1], FIRST_ROWS) // SAMPLE_ROWS, 1)
            tasks[month] = [
                Task(block, digests, types, start, every) for block, start in zip(blocks, starts, strict=False)
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
    threshold: float
    movers: int
    failed: dict[str, TiplineError]
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    moved: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    total: Difference = field(default_factory=Difference)

    def edges(self, client: Client) -> Edges:
        """Where the bands begin, by samples of all months."""
        samples = [(np.empty(0, np.float32), np.empty(0, np.float32))]
        tasks = [task for of_month in self.tasks.values() for task in of_month if task.start < FIRST_ROWS]
        for task, result in cluster.run_tasks(client, sample_block, tasks, group=lambda task: task.block.month):
            if isinstance(result, Exception):
                self.failed.setdefault(task.block.month, plan.explain_failure(task.block, result))
            else:
                samples.append(result)
        a, b = (np.concatenate(of_model) for of_model in zip(*samples, strict=True))
        return compute_edges(a), compute_edges(b)

    def run(self, client: Client) -> None:
        """Compare all blocks on the workers."""
        compare = partial(compare_block, edges=self.edges(client), threshold=self.threshold, count=self.movers)
        tasks = [task for month, tasks in self.tasks.items() if month not in self.failed for task in tasks]
        left = Counter(task.block.month for task in tasks)
        partly = dict.fromkeys(self.tasks, Difference())
        with progress.show_progress(sum(task.block.rows for task in tasks), " rows") as add:
            for task, result in cluster.run_tasks(client, compare, tasks, group=lambda task: task.block.month):
                month = task.block.month
                left[month] -= 1
                add(task.block.rows)
                if isinstance(result, Exception):
                    self.failed.setdefault(month, plan.explain_failure(task.block, result))
                else:
                    partly[month] = partly[month].plus(result, self.movers)
                if not left[month]:
                    self.finish(month, partly.pop(month))
        for month, nothing in partly.items():
            self.finish(month, nothing)

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
        return [{"rank_in_month": rank, **mover} for rank, mover in sorted(ranked, key=lambda pair: sort_key(pair[1]))]


def write(paths: Paths, versions: tuple[Version, Version], comparison: Comparison) -> Iterator[str]:
    """Write report and movers; say where. Equal comparisons are equal bytes."""
    a, b = ({"version": one.number, "name": one.name, "digest": one.digest} for one in versions)
    path = paths.root / "reports" / "diff_scores" / f"{a['version']}-{b['version']}.json"
    *months, total = comparison.rows()
    failed = {month: join_lines(error) for month, error in sorted(comparison.failed.items())}
    about = {"a": a, "b": b, "threshold": comparison.threshold}
    files.write_json(path, {**about, "months": months, "all": total, "failed": failed})
    movers = comparison.all_movers()
    if movers:
        files.write_csv(path.with_suffix(".csv"), movers)
    yield f"{path.relative_to(paths.root)}; the movers: {path.with_suffix('.csv').name}"


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
        yield f"{month:8}  failed: {join_lines(error)}"
    if comparison.total.movers:
        yield "the rows that move most:"
        yield from aligned(comparison.total.movers)


def aligned(movers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Movers as a table, each column as wide as its widest cell."""
    formats = {"score_a": ".4f", "score_b": ".4f", "difference": "+.4f"}
    rows = [
        list(movers[0]),
        *(
            [f"{value:{formats[key]}}" if key in formats else str(value) for key, value in one.items()]
            for one in movers
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
