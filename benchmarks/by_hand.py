"""What `benchmarks/scoring.py` holds tipline against: the floor, and bulk scoring as a user would write it by hand.

Usage: python benchmarks/by_hand.py CASE PROJECT FOLDER MONTH...

Prints {"seconds": s}, the time without start-up. What a case needs is imported when it runs, so that each pays for
its own start alone. DuckDB and Polars are not among tipline's dependencies: pip install duckdb polars
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    import pyarrow as pa
    from distributed import Client, Worker

WORKERS = 2
# What the published months of 2009 call the model's columns.
PUBLISHED = {
    "vendor": "vendor_name",
    "pickup_datetime": "Trip_Pickup_DateTime",
    "passenger_count": "Passenger_Count",
    "trip_distance": "Trip_Distance",
    "payment_type": "Payment_Type",
    "fare_amount": "Fare_Amt",
    "extra": "surcharge",
}
HOURS = [f"{hour:02}" for hour in range(24)]


def prepared_file(project: Path, month: str) -> Path:
    return project / "data" / "trips" / f"month={month}" / "trips.parquet"


def published_file(project: Path, month: str) -> Path:
    return next((project / "data" / "raw" / month).glob("*.parquet"))


def model_of(project: Path) -> tuple[float, list[dict[str, Any]]]:
    """The linear model as model.json has it: the intercept, and the terms with their tables or slopes."""
    spec = json.loads((project / "models" / "champion" / "model.json").read_text(encoding="utf-8"))
    return spec["linear"]["intercept"], spec["linear"]["terms"]


# ---- the floor: tipline without a model ----


class NoModel:
    """Stands where the model stood; its values are there before the first block, and LZ4 cannot make them smaller."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    def score_rows(self, batch: pa.RecordBatch) -> tuple[np.ndarray[Any, Any], pa.RecordBatch]:
        return noise()[: len(batch)], batch


@functools.cache
def noise() -> np.ndarray[Any, Any]:
    import numpy as np  # noqa: PLC0415

    return np.random.default_rng(0).random(2**21, dtype=np.float32)


def take_the_model_out(dask_worker: Worker) -> None:
    """Let this worker's blocks be scored by nothing, and not be counted; all the rest is tipline's own."""
    from tipline.monitoring.counts import Counts  # noqa: PLC0415
    from tipline.scoring import worker  # noqa: PLC0415

    plugin = next(plugin for name, plugin in dask_worker.plugins.items() if name.startswith("tipline-model"))
    noise()
    module, counts, stand_in = cast(Any, worker), cast(Any, Counts), NoModel(cast(Any, plugin).model.spec)
    module.get_worker_model = lambda *_: stand_in
    counts.from_rows = lambda *_: Counts()


def floor(project: Path, folder: Path, months: list[str]) -> float:
    """The command's own driver and its own task; the time is in the manifests."""
    del folder, months
    from tipline import cluster, config, paths  # noqa: PLC0415
    from tipline.stages import score  # noqa: PLC0415

    here, run_tasks = cast(Any, cluster), cluster.run_tasks

    def run_floor(client: Client, *rest: Any, **options: Any) -> Any:  # noqa: ANN401 (passed on)
        client.run(take_the_model_out)
        return run_tasks(client, *rest, **options)

    here.run_tasks = run_floor
    found = paths.Paths(project)
    score.run(config.load_settings(found.params), found)
    return 0.0


# ---- DuckDB ----


def double(value: float) -> str:
    """A double of SQL: without an exponent it would be a DECIMAL, and the arithmetic takes four times as long."""
    return f"{float(value):.17e}"


def case_sql(expression: str, keys: Iterable[str], table: Sequence[float]) -> str:
    *known, other = zip([*keys, None], table, strict=False)
    whens = " ".join(f"WHEN '{key}' THEN {double(value)}" for key, value in known)
    return f"CASE {expression} {whens} ELSE {double(other[1])} END"


def term_sql(term: dict[str, Any], published: bool) -> str:  # noqa: FBT001
    name = PUBLISHED[term["name"]] if published else term["name"]
    if term["kind"] == "categories":
        # Only payments were aliased in several ways, all upper-case or not.
        lower = published and term["name"] == "payment_type"
        return case_sql(f"lower({name})" if lower else name, term["values"], term["table"])
    if term["kind"] == "hours":
        if published:  # the quickest of four ways; times are text there
            return case_sql(f"substr({name}, 12, 2)", HOURS, term["table"])
        return f"coalesce([{', '.join(map(double, term['table'][:24]))}][hour({name}) + 1], 0e0)"
    filled = f"coalesce({name}, {double(term['median'])})"
    return f"{double(term['slope'])} * least(greatest({filled}, {double(term['low'])}), {double(term['high'])})"


def copy_sql(project: Path, folder: Path, month: str, published: bool) -> str:  # noqa: FBT001
    """One month's COPY. Rows may come in any order: each carries its number."""
    intercept, terms = model_of(project)
    odds = " + ".join([double(intercept), *(term_sql(term, published) for term in terms)])
    path = published_file(project, month) if published else prepared_file(project, month)
    row = "file_row_number" if published else "row"
    source = f"read_parquet('{path}', file_row_number = true)" if published else f"read_parquet('{path}')"
    select = f"SELECT {row} AS row, (1e0 / (1e0 + exp(-({odds}))))::FLOAT AS probability FROM {source}"  # noqa: S608
    # Version 2 has row numbers as differences.
    options = "FORMAT parquet, COMPRESSION lz4_raw, PARQUET_VERSION v2"
    return f"COPY ({select}) TO '{folder / month}.parquet' ({options})"


def duckdb_case(project: Path, folder: Path, months: list[str], published: bool = False, at_once: int = 2) -> float:  # noqa: FBT001, FBT002
    duckdb = importlib.import_module("duckdb")
    connection = duckdb.connect(config={"threads": WORKERS, "preserve_insertion_order": False})
    started = time.perf_counter()
    queries = [copy_sql(project, folder, month, published) for month in months]
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda query: connection.cursor().execute(query), queries))
    return time.perf_counter() - started


# ---- Polars; `pl` is the module ----


def chain(pl: Any, column: Any, keys: Iterable[str], table: Sequence[float]) -> Any:  # noqa: ANN401
    """A chain of when and then, which is quicker than `replace_strict` by half."""
    *known, other = zip([*keys, None], table, strict=False)
    for key, value in known:
        pl = pl.when(column == key).then(value)
    return pl.otherwise(other[1])


def looked_up(pl: Any, column: Any, keys: list[Any], table: Sequence[float]) -> Any:  # noqa: ANN401
    """What its documentation tells for a lookup."""
    pairs = dict(zip(keys, table, strict=False))
    return column.replace_strict(pairs, default=table[len(keys)], return_dtype=pl.Float64)


def term_polars(pl: Any, term: dict[str, Any], published: bool, tuned: bool) -> Any:  # noqa: ANN401, FBT001
    column = pl.col(PUBLISHED[term["name"]] if published else term["name"])
    if term["kind"] == "categories":
        if published and term["name"] == "payment_type":
            column = column.str.to_lowercase()
        if tuned:
            return chain(pl, column, term["values"], term["table"])
        return looked_up(pl, column.cast(pl.String), term["values"], term["table"])
    if term["kind"] == "hours":
        hour = column.str.slice(11, 2).cast(pl.UInt32) if published else column.dt.hour().cast(pl.UInt32)
        if tuned:
            return pl.lit(pl.Series(term["table"])).gather(hour.fill_null(24))
        return looked_up(pl, hour, list(range(24)), term["table"])
    return column.cast(pl.Float64).clip(term["low"], term["high"]).fill_null(term["median"]) * term["slope"]


def polars_case(project: Path, folder: Path, months: list[str], published: bool = False, tuned: bool = True) -> float:  # noqa: FBT001, FBT002
    """POLARS_MAX_THREADS is set by who starts this."""
    pl = importlib.import_module("polars")
    started = time.perf_counter()
    intercept, terms = model_of(project)
    odds = sum((term_polars(pl, term, published, tuned) for term in terms), pl.lit(intercept))
    probability = (1 / (1 + (-odds).exp())).cast(pl.Float32).alias("probability")
    for month in months:
        path = published_file(project, month) if published else prepared_file(project, month)
        frame = pl.scan_parquet(path, row_index_name="row" if published else None)
        frame.select(pl.col("row").cast(pl.Int64), probability).sink_parquet(
            folder / f"{month}.parquet", compression="lz4", statistics=False, maintain_order=False
        )
    return time.perf_counter() - started


CASES: dict[str, Callable[[Path, Path, list[str]], float]] = {
    "floor": floor,
    "duckdb": duckdb_case,
    "duckdb-one-by-one": functools.partial(duckdb_case, at_once=1),
    "duckdb-published": functools.partial(duckdb_case, published=True),
    "polars": polars_case,
    "polars-lookup": functools.partial(polars_case, tuned=False),
    "polars-published": functools.partial(polars_case, published=True),
}


def main() -> None:
    case, project, folder, *months = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    print(json.dumps({"seconds": CASES[case](Path(project), Path(folder), months)}))


if __name__ == "__main__":
    # Under its own name: workers import what is here, they are not sent copies.
    importlib.import_module("by_hand").main()
