"""Score one block on a dask worker."""

import contextlib
import importlib.util
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from tipline import cluster, files
from tipline.cluster import Client, Worker
from tipline.errors import TiplineError
from tipline.ingest import columns
from tipline.model import golden_rows
from tipline.model.artifact import COMPILED, FORMS, Model
from tipline.monitoring.counts import Counts
from tipline.paths import month_name
from tipline.scoring.plan import SCHEMA, Block
from tipline.storage import Storage

log = logging.getLogger(__name__)

PLUGIN = "tipline-model"


class OtherFormError(TiplineError):
    """A worker that joined the run late cannot score with the form of the others."""


@dataclass(eq=False)
class ModelPlugin(cluster.WorkerPlugin):
    """Brings the model to each worker and checks that it can score, also after a worker's restart."""

    contents: Mapping[str, bytes]
    digest: str
    storages: Sequence[Storage]
    forms: Sequence[str] = FORMS
    rows: int = 0
    model: Model | None = None
    state: tuple[str, int, str] | None = None  # the model's form, and the rest of load_checked_model

    def setup(self, worker: Worker) -> None:
        """Check the digest, load the model, score the golden rows, look at the storage; errors reach the driver."""
        model, steps, reason = golden_rows.load_checked_model(
            self.contents, self.digest, worker.address, self.forms, self.rows
        )
        for storage in self.storages:
            try:
                storage.check_access()
            except TiplineError as error:
                what, where, todo = error.parts
                raise TiplineError(what, f"{where}, from the worker at {worker.address}", todo) from error
        self.model, self.state = model, (model.form, steps, reason)


@contextlib.contextmanager
def send_model(
    client: Client,
    contents: Mapping[str, bytes],
    digest: str,
    storages: Sequence[Storage] = (),
    rows: int = 0,
    forms: Sequence[str] = FORMS,
) -> Iterator[str]:
    """Keep the model on all workers during the block, which score `rows` rows together; yield the form that they use.

    It is the first of `forms` that works on all of them, so that no month holds scores of two forms. Raises a
    TiplineError if a worker cannot load the model, scores the golden rows differently, or cannot use a storage.
    """
    per_worker = rows // max(1, len(client.nthreads()))
    todo = "Install the same packages on all workers: tipline, its libraries and those of the model."
    can_import = lambda find=importlib.util.find_spec: find("tipline.scoring") is not None  # noqa: E731
    found = client.run(can_import, on_error="return")
    # A worker that leaves just now gives an OSError.
    if lacking := [
        worker for worker, answer in found.items() if answer is not True and not isinstance(answer, OSError)
    ]:
        raise TiplineError("A worker cannot import tipline.", ", ".join(lacking), todo)
    while True:
        # A scheduler can serve several runs, also of the same model, and each of them removes its own plugin.
        name = f"{PLUGIN}-{digest}-{files.create_token()}"
        with cluster.register_plugin(client, ModelPlugin(contents, digest, storages, forms, per_worker), name):
            # Of workers that leave or join just now there is no state.
            find_state = lambda dask_worker, name=name: getattr(dask_worker.plugins.get(name), "state", None)  # noqa: E731
            answers = client.run(find_state, on_error="return")
            states = [state for state in answers.values() if isinstance(state, tuple)]
            if answers and not states:
                raise TiplineError("No worker can load the model.", ", ".join(answers), todo)
            form = max((form for form, _, _ in states), key=FORMS.index, default=COMPILED)
            reasons = sorted({reason for _, _, reason in states if reason})
            for reason in reasons:
                log.warning("%s, so the model's own predict_proba is used", reason)
            if not reasons and len({form for form, _, _ in states}) <= 1:
                if any(steps for _, steps, _ in states):
                    log.warning(
                        "golden rows come out one float32 step off: other hardware or libraries than in training"
                    )
                yield form
                return
        # Sent again, so that all workers, also those that are still to come, use the form that works on all of these.
        forms = FORMS[FORMS.index(form) :]


def get_worker_model(digest: str, form: str) -> Model:
    """Return the model of this digest and form, on the worker that runs the task."""
    worker = cluster.get_worker()
    plugins = [plugin for name, plugin in list(worker.plugins.items()) if name.startswith(f"{PLUGIN}-{digest}")]
    models = {model.form: model for plugin in plugins if (model := cast("ModelPlugin", plugin).model)}
    if form in models:
        return models[form]
    if models:
        what = f"This worker joined the run late and cannot score with the form of the others ({form})."
        raise OtherFormError(what, worker.address, "Run it again: all workers then use the same form.")
    todo = "Run it again; the log of that worker says why, if it could not load the model."
    raise TiplineError("A worker does not have the model.", worker.address, todo)


def score_block(block: Block) -> dict[str, Any]:
    """Write the part of a block, then its marker: what it was made from, the part, its counts, seconds by phase."""
    model, seconds = get_worker_model(block.model, block.form), dict[str, float]()
    with time_phase(seconds, "read"):
        types = columns.list_needed_columns(model.spec) | dict.fromkeys(block.id_columns, pa.string())
        batch = read_block(block, types)
    with time_phase(seconds, "score"):
        scores, derived = model.score_rows(batch)
    with time_phase(seconds, "count"):
        counts = Counts.from_rows(batch, model.spec, scores, derived, block.month)
    with time_phase(seconds, "write"):
        # Not `pa.array`, which imports pandas first.
        probability = pa.Array.from_buffers(pa.float32(), len(scores), [None, pa.py_buffer(scores)])
        data = encode_part(batch["row"], probability, {name: batch[name] for name in block.id_columns})
        block.locations.staged.write(block.part, data)
    part = {"name": block.name, "rows": len(batch), "bytes": len(data), "sha256": files.hash_bytes(data)}
    made_from = {"key": block.key, "form": block.form, "counted": block.counted}
    marker = {**made_from, **part, "counts": counts.to_json(), "seconds": seconds}
    block.locations.staged.write(block.marker, json.dumps(marker).encode())
    return marker


def recount_block(block: Block, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Count a published part with the labels, groups and times of now; features stay as they were counted."""
    predictions, name = block.locations.predictions, f"{month_name(block.month)}/{block.name}"
    data, batch = predictions.read(name), read_block(block, columns.list_counted_columns(spec))
    if data is None:
        raise TiplineError("The part is missing.", predictions.address(name), "Run: dvc repro -f score")
    scores = pq.read_table(pa.BufferReader(data), columns=["probability"])["probability"].to_numpy()
    without_features = {key: value for key, value in spec.items() if key != "reference"}
    return Counts.from_rows(batch, without_features, scores, batch, block.month).to_json()


@contextlib.contextmanager
def time_phase(seconds: dict[str, float], phase: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[phase] = round(time.perf_counter() - started, 6)


def read_block(block: Block, types: Mapping[str, pa.DataType]) -> pa.RecordBatch:
    """Read row numbers and these columns of a block as one batch, in which each column has one dictionary."""
    names, text = ["row", *types], [name for name, type_ in types.items() if type_ == columns.CATEGORY]
    table = block.locations.trips.read_row_group(block.trips, block.row_group, names, block.state, text)
    table = columns.add_missing_columns(table, types).select(names).combine_chunks()
    batches = table.to_batches(max_chunksize=len(table) or 1)
    # An empty table has no batch. `from_pylist` imports pandas, which takes half a second.
    return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)


def encode_part(rows: pa.Array, scores: pa.Array, ids: Mapping[str, pa.Array]) -> pa.Buffer:
    sink, schema = pa.BufferOutputStream(), pa.schema([*SCHEMA, *((name, pa.string()) for name in ids)])
    table = pa.table([rows, scores, *ids.values()], schema=schema)
    encoding = {"row": "DELTA_BINARY_PACKED", **dict.fromkeys(schema.names[1:], "PLAIN")}
    options = {"compression": "lz4", "use_dictionary": False, "column_encoding": encoding}
    pq.write_table(table, sink, row_group_size=len(scores) or 1, **options)
    return sink.getvalue()
