"""`tipline compare`: compare the scores of two versions on prepared months, without writing predictions.

Each row group is read once and scored with both models on the dask workers. They import this module, and MLflow takes
seconds to import, so `fetch_versions` imports it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
from tqdm import tqdm

from tipline import cluster, files
from tipline.arrays import Floats
from tipline.errors import UsageError
from tipline.ingest import columns
from tipline.model import artifact
from tipline.paths import Paths
from tipline.scoring import plan, worker

if TYPE_CHECKING:
    from tipline.config import Settings

WHERE = "command line"
MEANS = ["mean_a", "mean_b", "mean_difference", "mean_absolute_difference", "crossed_share"]
Models: TypeAlias = dict[str, dict[str, bytes]]  # their files by digest
FORMATS = dict.fromkeys(("rows", "moved", "crossed_up", "crossed_down", "added", "removed"), "{:,}".format)


def run(
    settings: Settings,
    paths: Paths,
    versions: tuple[str, str],
    months: Sequence[str] = (),
    threshold: float = 0.5,
    largest: int = 10,
    trips: str = "",
) -> Iterator[str]:
    """Compare versions A and B; write reports/compare/A-B.json and .csv, and yield the report as lines."""
    check_numbers(threshold, largest)
    (a, b), models = fetch_versions(settings, paths, versions)
    yield from (f"{letter}: version {about['version']}, {about['name']}" for letter, about in (("A", a), ("B", b)))
    if a["digest"] == b["digest"]:
        yield f"Both are the same model ({a['digest'][:12]}): there is nothing to compare."
        return
    locations, blocks = plan.Locations.resolve(settings, paths, trips), list[plan.Block]()
    for month in sorted(set(months or settings.months)):
        plan.read_prepared(locations.trips, month)  # raises an error if it is not
        blocks += [block for block in plan.list_blocks(locations, month, {"model": a["digest"]}) if block.rows]
    if not blocks:
        yield "The months have no rows: there is nothing to compare."
        return
    table, changes = compare_blocks(settings, blocks, models, threshold, largest)
    *rows, summary = table.to_dict("records")
    path = paths.root / "reports" / "compare" / f"{a['version']}-{b['version']}.json"
    files.write_json(path, {"a": a, "b": b, "threshold": threshold, "months": rows, "all": summary})
    files.write_csv(path.with_suffix(".csv"), changes.to_dict("records"))
    yield from [*format_table(table), "largest changes:", *format_table(changes.fillna("-"))]
    yield f"{path.relative_to(paths.root)}; the largest changes: {path.with_suffix('.csv').name}"


def check_numbers(threshold: float, largest: int = 1) -> None:
    if not (0 <= threshold < 1 and largest >= 1):
        raise UsageError("A number is out of range.", WHERE, "--threshold: 0 to below 1; --largest: 1 or more.")


def fetch_versions(settings: Settings, paths: Paths, names: Iterable[str]) -> tuple[list[dict[str, Any]], Models]:
    """Return what the report says about each version, and the models' files by digest."""
    from tipline.registry import model_versions, store  # noqa: PLC0415 (MLflow, see above)

    model, about, models = settings.model.name, list[dict[str, Any]](), Models()
    with store.connect_store(paths) as client:
        for name in names:
            version = model_versions.get_champion(client, model) if name == model_versions.CHAMPION else None
            if name.isdecimal():
                version = model_versions.get_version(client, model, int(name), WHERE)
            if version is None:
                todo = "Give a version number, or `champion` once there is one (dvc repro register)."
                raise UsageError(f"{model} has no version {name!r}.", WHERE, todo)
            version = model_versions.adopt_version(client, settings, paths, version)
            with model_versions.open_files(version) as folder:
                training = files.try_read_json(folder / artifact.TRAINING) or {"name": "not made by tipline"}
                contents = artifact.read_artifact(folder)
            if model_versions.CHAMPION not in version.aliases:  # nobody may have read its code yet
                model_versions.check_known_code(paths, contents, version)
            digest = model_versions.get_digest(version)
            about.append({"version": int(version.version), "name": training["name"], "digest": digest})
            models[digest] = contents
    return about, models


def compare_blocks(
    settings: Settings, blocks: Sequence[plan.Block], models: Models, threshold: float, count: int
) -> tuple[pd.DataFrame, Any]:
    """Score blocks with both models on the workers; return the report's table, the sum of all last, and the changes."""
    specs = [artifact.read_spec(contents) for contents in models.values()]
    types = {name: type_ for spec in specs for name, type_ in columns.list_input_columns(spec).items()}
    (a, of_a), (b, of_b) = models.items()
    results, rows = dict[plan.Block, Any](), sum(block.rows for block in blocks)
    with (
        cluster.connect_client(settings.cluster.n_workers, settings.cluster.factory) as client,
        worker.send_model(client, of_a, a, rows=rows) as form_a,
        worker.send_model(client, of_b, b, rows=rows) as form_b,
        tqdm(total=rows, unit=" rows", unit_scale=True, leave=False, disable=None) as bar,
    ):
        forms = {a: form_a, b: form_b}
        compare = partial(compare_block, forms=forms, types=types, threshold=threshold, count=count)
        for block, result in cluster.run_tasks(client, compare, blocks):
            if isinstance(result, Exception):
                raise plan.explain_failure(block, result)
            bar.update(block.rows)
            results[block] = result
    sums, changes = zip(*(results[block] for block in blocks), strict=True)  # sums of floats depend on the order
    table = pd.DataFrame(sums)
    groups = pd.concat([table, table.assign(month="all")]).groupby("month")  # sorted: letters after digits
    table = groups.sum().assign(largest_difference=groups["largest_difference"].max())
    table[MEANS] = table[MEANS].div(table["rows"], axis=0)
    changed = pd.concat(changes, ignore_index=True)
    largest = changed["difference"].abs().nlargest(count).index  # the first of equal ones
    return table.reset_index(), changed.loc[largest]


def compare_block(
    block: plan.Block, forms: Mapping[str, str], types: Mapping[str, pa.DataType], threshold: float, count: int
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Score a row group with both models, on a worker; return sums, and the rows with the largest differences."""
    batch = worker.read_block(block, types)
    models = [worker.get_worker_model(digest, form) for digest, form in forms.items()]
    a, b = (model.probabilities(batch).astype(np.float64) for model in models)
    found = pd.Series(np.abs(b - a)).nlargest(count).index  # the first of equal ones
    rows = pd.DataFrame(batch.take(pa.array(found)).to_pylist(), dtype=object)
    scores = {"score_a": a[found], "score_b": b[found], "difference": (b - a)[found]}
    changes = pd.DataFrame({"month": block.month, "row": rows.pop("row"), **scores}).join(rows)
    return {"month": block.month, **sum_changes(a, b, threshold)}, changes


def sum_changes(a: Floats, b: Floats, threshold: float) -> dict[str, Any]:
    """Return sums over rows whose scores are `a` and `b`; `MEANS` are still to be divided by the rows."""
    sizes, up, down = np.abs(b - a), (a <= threshold) & (b > threshold), (a > threshold) & (b <= threshold)
    sums = {"rows": len(a), "mean_a": a.sum(), "mean_b": b.sum(), "mean_difference": (b - a).sum()}
    sums |= {"mean_absolute_difference": sizes.sum(), "largest_difference": sizes.max(initial=0)}
    return sums | {"crossed_up": up.sum(), "crossed_down": down.sum(), "crossed_share": (up | down).sum()}


def format_table(table: pd.DataFrame) -> list[str]:
    return table.to_string(index=False, float_format="{:.4f}".format, formatters=FORMATS).splitlines()
