"""`tipline compare`: compare the scores of two versions on prepared months, without writing predictions.

Each row group is read once and scored with both models on the dask workers. They import this module, and MLflow and
pandas take seconds to import, so functions that need these import them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from tipline import cluster, files
from tipline.errors import UsageError
from tipline.ingest import columns
from tipline.model import artifact
from tipline.paths import Paths
from tipline.scoring import plan, worker

if TYPE_CHECKING:
    from tipline.config import Settings

WHERE = "command line"
MEANS = ("mean_a", "mean_b", "mean_difference", "mean_absolute_difference")


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
    Raises TiplineError if a month cannot be scored.
    """
    if not (0 <= threshold < 1 and largest >= 1):
        raise UsageError("A number is out of range.", WHERE, "--threshold: 0 to below 1; --largest: 1 or more.")
    (a, b), models = fetch_versions(settings, paths, versions)
    yield from (f"{letter}: version {about['version']}, {about['name']}" for letter, about in (("A", a), ("B", b)))
    if a["digest"] == b["digest"]:
        yield f"Both are the same model ({a['digest'][:12]}): there is nothing to compare."
        return
    locations, blocks = plan.Locations.resolve(paths, trips), list[plan.Block]()
    for month in sorted(set(months or settings.months)):
        found = plan.list_blocks(locations, month, plan.compute_key(locations, month, a["digest"]))
        blocks += [block for block in found if block.rows]
    if not blocks:
        yield "The months have no rows: there is nothing to compare."
        return
    results = compare_blocks(settings, blocks, models, threshold, largest)
    *rows, summary = summarize_blocks([sums for sums, _ in results])
    changes = [row for _, rows in results for row in rows]
    changes.sort(key=lambda row: (-abs(row["difference"]), row["month"], row["row"]))
    path = paths.root / "reports" / "compare" / f"{a['version']}-{b['version']}.json"
    files.write_json(path, {"a": a, "b": b, "threshold": threshold, "months": rows, "all": summary})
    files.write_csv(path.with_suffix(".csv"), changes[:largest])
    shown = [{**row, "row": str(row["row"])} for row in changes[:largest]]  # to be copied: no separators
    yield from [*format_table([*rows, summary]), "largest changes:", *format_table(shown)]
    yield f"{path.relative_to(paths.root)}; the largest changes: {path.with_suffix('.csv').name}"


def fetch_versions(
    settings: Settings, paths: Paths, names: Iterable[str]
) -> tuple[list[dict[str, Any]], dict[str, dict[str, bytes]]]:
    """Return what the report says about each version, and the models' files by digest."""
    from tipline.registry import model_versions, store  # noqa: PLC0415 (see above)

    model, about, models = settings.model.name, list[dict[str, Any]](), dict[str, dict[str, bytes]]()
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
    settings: Settings,
    blocks: Sequence[plan.Block],
    models: Mapping[str, Mapping[str, bytes]],
    threshold: float,
    count: int,
) -> list[Any]:
    """Compare two models, given as files by digest, on the workers; return the results in the order of the blocks."""
    specs = [artifact.read_spec(contents) for contents in models.values()]
    types = {name: type_ for spec in specs for name, type_ in columns.list_input_columns(spec).items()}
    compare = partial(compare_block, digests=list(models), types=types, threshold=threshold, count=count)
    (a, of_a), (b, of_b) = models.items()
    results, rows = dict[plan.Block, Any](), sum(block.rows for block in blocks)
    with (
        cluster.connect_client(settings.cluster.n_workers) as client,
        worker.send_model(client, of_a, a, rows=rows),
        worker.send_model(client, of_b, b, rows=rows),
        tqdm(total=rows, unit=" rows", unit_scale=True, leave=False, disable=None) as bar,
    ):
        for block, result in cluster.run_tasks(client, compare, blocks):
            if isinstance(result, Exception):
                raise plan.explain_failure(block, result)
            bar.update(block.rows)
            results[block] = result
    return [results[block] for block in blocks]  # sums of floats depend on the order


def compare_block(
    block: plan.Block, digests: Sequence[str], types: Mapping[str, pa.DataType], threshold: float, count: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score a row group with both models, on a worker; return sums, and the rows with the largest differences."""
    batch = worker.read_block(block, types)
    a, b = (worker.get_worker_model(digest).probabilities(batch).astype(np.float64) for digest in digests)
    sizes, rows = np.abs(b - a), batch["row"].to_numpy()
    up, down = (a <= threshold) & (b > threshold), (a > threshold) & (b <= threshold)
    sums = {name: values.sum() for name, values in zip(MEANS, (a, b, b - a, sizes), strict=True)}
    sums |= {"largest_difference": sizes.max(), "crossed_up": up.sum(), "crossed_down": down.sum()}
    sums["crossed_share"] = sums["crossed_up"] + sums["crossed_down"]
    count = min(count, len(a))
    found = np.flatnonzero(sizes >= np.partition(sizes, -count)[-count])  # to sort all rows would take much longer
    found = found[np.lexsort((rows[found], -sizes[found]))[:count]]
    numbers = {"row": rows, "score_a": a, "score_b": b, "difference": b - a}
    changes = [
        {"month": block.month, **{name: values[index].item() for name, values in numbers.items()}, **features}
        for index, features in zip(found, batch.drop_columns(["row"]).take(pa.array(found)).to_pylist(), strict=True)
    ]
    return {"month": block.month, "rows": len(a), **sums}, changes


def summarize_blocks(sums: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return what the report shows of each month, and of all of them last, from the sums of the blocks."""
    import pandas as pd  # noqa: PLC0415 (see above)

    blocks = pd.DataFrame(sums)
    groups = pd.concat([blocks, blocks.assign(month="all")]).groupby("month")  # sorted: letters after digits
    table = groups.sum().assign(largest_difference=groups["largest_difference"].max())
    for name in (*MEANS, "crossed_share"):
        table[name] /= table["rows"]
    return table.reset_index().to_dict("records")


def format_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    import pandas as pd  # noqa: PLC0415 (see above)

    forms = {float: "{:.4f}", int: "{:,}", type(None): "-"}
    text = [{name: forms.get(type(value), "{}").format(value) for name, value in row.items()} for row in rows]
    return pd.DataFrame(text).to_string(index=False).splitlines()
