"""`tipline compare`: compare the scores of two versions on prepared months, without writing predictions.

Each row group is read once and scored with both models on the dask workers. They import this module, and MLflow and
pandas take seconds to import, so functions that need these import them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from tipline import cluster, files
from tipline.errors import TiplineError, UsageError, combine_failures, join_lines
from tipline.ingest import columns
from tipline.model import artifact
from tipline.scoring import plan, worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tipline.config import Settings
    from tipline.paths import Paths
    from tipline.scoring.plan import Block, Locations

WHERE = "command line"
# Scores are added as whole multiples of 1 / UNIT, since sums of floats depend on the order: 4 million fit into 64 bits.
UNIT = 2**40


@dataclass(frozen=True)
class Version:
    """A registered model with its files."""

    number: int
    name: str
    digest: str
    contents: dict[str, bytes]


@dataclass(frozen=True)
class Difference:
    """How two models' scores differ: sums over some rows, and the rows with the largest differences, largest first."""

    sums: Counter[str] = field(default_factory=Counter)
    largest: list[dict[str, Any]] = field(default_factory=list)

    def merge(self, other: Difference, count: int) -> Difference:
        """Add both, and keep the `count` largest differences, equal ones by month and row."""
        rows = self.largest + other.largest
        rows.sort(key=lambda row: (-abs(row["difference"]), row["month"], row["row"]))
        return Difference(self.sums + other.sums, rows[:count])

    def summarize(self) -> dict[str, Any]:
        """Compute what the report shows of one or more rows."""
        sums, rows = self.sums, self.sums["rows"]
        return {
            "rows": rows,
            "mean_a": sums["a"] / UNIT / rows,
            "mean_b": sums["b"] / UNIT / rows,
            "mean_difference": (sums["b"] - sums["a"]) / UNIT / rows,
            "mean_absolute_difference": sums["absolute"] / UNIT / rows,
            "largest_difference": abs(self.largest[0]["difference"]),
            "crossed_up": sums["up"],
            "crossed_down": sums["down"],
            "crossed_share": (sums["up"] + sums["down"]) / rows,
        }


def compare_block(
    block: Block, digests: Sequence[str], types: Mapping[str, pa.DataType], threshold: float, count: int
) -> Difference:
    """Score a row group with both models and compare the scores, on a worker."""
    batch = worker.read_block(block, types)
    a, b = (worker.get_worker_model(digest).probabilities(batch).astype(np.float64) for digest in digests)
    units_a, units_b = (np.rint(scores * UNIT).astype(np.int64) for scores in (a, b))
    above_a, above_b = a > threshold, b > threshold
    sums = {"rows": len(a), "a": units_a.sum(), "b": units_b.sum(), "absolute": np.abs(units_b - units_a).sum()}
    sums |= {"up": (above_b & ~above_a).sum(), "down": (above_a & ~above_b).sum()}
    sizes, rows = np.abs(b - a), batch["row"].to_numpy()
    found = np.flatnonzero(sizes >= (np.partition(sizes, -count)[-count] if len(sizes) > count else 0))
    found = found[np.lexsort((rows[found], -sizes[found]))[:count]]
    numbers = {"row": rows, "score_a": a, "score_b": b, "difference": b - a}
    largest = [
        {"month": block.month, **{name: values[index].item() for name, values in numbers.items()}, **features}
        for index, features in zip(found, batch.drop_columns(["row"]).take(pa.array(found)).to_pylist(), strict=True)
    ]
    return Difference(Counter({name: int(value) for name, value in sums.items()}), largest)


def run(
    settings: Settings,
    paths: Paths,
    versions: tuple[str, str],
    months: Sequence[str] = (),
    threshold: float = 0.5,
    largest: int = 10,
    trips: str = "",
) -> Iterator[str]:
    """Compare versions A and B; write reports/compare/A-B.json and .csv, and yield the report as lines.

    It has means, the rows with one score above `threshold` and the other not, and the `largest` largest differences.
    Raises TiplineError at the end if months failed; the report covers the rest.
    """
    if not (0 <= threshold < 1 and largest >= 1):
        raise UsageError("A number is out of range.", WHERE, "--threshold: 0 to below 1; --largest: 1 or more.")
    models = fetch_versions(settings, paths, versions)
    yield from (f"{letter}: version {one.number}, {one.name}" for letter, one in zip("AB", models, strict=True))
    if models[0].digest == models[1].digest:
        yield f"Both are the same model ({models[0].digest[:12]}): there is nothing to compare."
        return
    months, locations = sorted(set(months or settings.months)), plan.Locations.resolve(paths, trips)
    by_month, failed = compare_months(settings, locations, models, months, threshold, largest)
    if by_month:
        a, b = ({"version": one.number, "name": one.name, "digest": one.digest} for one in models)
        total = reduce(partial(Difference.merge, count=largest), by_month.values())
        *rows, summary = [{"month": name, **one.summarize()} for name, one in {**by_month, "all": total}.items()]
        report = {"a": a, "b": b, "threshold": threshold, "months": rows, "all": summary}
        path = paths.root / "reports" / "compare" / f"{a['version']}-{b['version']}.json"
        files.write_json(path, report | {"failed": {month: join_lines(error) for month, error in failed.items()}})
        files.write_csv(path.with_suffix(".csv"), total.largest)
        changes = [{**row, "row": str(row["row"])} for row in total.largest]  # to be copied: no separators
        yield from [*format_table([*rows, summary]), "largest changes:", *format_table(changes)]
        yield f"{path.relative_to(paths.root)}; the largest changes: {path.with_suffix('.csv').name}"
    yield from (f"{month} failed: {join_lines(error)}" for month, error in failed.items())
    if failed:
        raise combine_failures(failed, len(months))


def fetch_versions(settings: Settings, paths: Paths, names: Sequence[str]) -> list[Version]:
    """Download the versions and check their digests."""
    from tipline.registry import model_versions, store  # noqa: PLC0415 (see above)

    model, found = settings.model.name, list[Version]()
    with store.connect_store(paths) as client:
        for name in names:
            if name.isdecimal():
                version = model_versions.get_version(client, model, int(name), WHERE)
            else:
                version = model_versions.get_champion(client, model) if name == model_versions.CHAMPION else None
            if version is None:
                todo = "Give a version number, or `champion` once there is one (dvc repro register)."
                raise UsageError(f"{model} has no version {name!r}.", WHERE, todo)
            version = model_versions.adopt_version(client, settings, paths, version)
            with model_versions.open_files(version) as folder:
                training = files.try_read_json(folder / artifact.TRAINING) or {"name": "not made by tipline"}
                digest, contents = model_versions.get_digest(version), artifact.read_artifact(folder)
            if model_versions.CHAMPION not in version.aliases:  # nobody may have read its code yet
                model_versions.check_known_code(paths, contents, version)
            found.append(Version(int(version.version), training["name"], digest, contents))
    return found


def compare_months(
    settings: Settings, trips: Locations, models: Sequence[Version], months: Sequence[str], threshold: float, count: int
) -> tuple[dict[str, Difference], dict[str, TiplineError]]:
    """Compare two models on the workers; return the differences of complete months, and why the rest failed."""
    digests, failed, blocks = [model.digest for model in models], dict[str, TiplineError](), list[plan.Block]()
    for month in months:
        try:
            blocks += plan.list_blocks(trips, month, plan.compute_key(trips, month, digests[0]))
        except TiplineError as error:
            failed[month] = error
    if not blocks:
        return {}, failed
    specs = [artifact.read_spec(model.contents) for model in models]
    types = {name: type_ for spec in specs for name, type_ in columns.list_input_columns(spec).items()}
    compare = partial(compare_block, digests=digests, types=types, threshold=threshold, count=count)
    found = {block.month: Difference() for block in blocks}
    (a, b), rows = models, sum(block.rows for block in blocks)
    with (
        cluster.connect_client(settings.cluster.n_workers) as client,
        worker.send_model(client, a.contents, a.digest),
        worker.send_model(client, b.contents, b.digest),
        tqdm(total=rows, unit=" rows", unit_scale=True, leave=False, disable=None) as bar,
    ):
        for block, result in cluster.run_tasks(client, compare, blocks):
            bar.update(block.rows)
            if isinstance(result, Exception):
                failed.setdefault(block.month, plan.explain_failure(block, result))
            else:
                found[block.month] = found[block.month].merge(result, count)
    return {month: each for month, each in found.items() if month not in failed}, dict(sorted(failed.items()))


def format_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format rows with equal keys as lines of text."""
    import pandas as pd  # noqa: PLC0415 (see above)

    forms = {float: "{:.4f}", int: "{:,}", type(None): "-"}
    text = [{name: forms.get(type(value), "{}").format(value) for name, value in row.items()} for row in rows]
    return pd.DataFrame(text).to_string(index=False).splitlines()
