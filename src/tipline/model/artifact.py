"""The model as files: their names, the digest that identifies the model, and how rows are scored with it.

Separate from `pipeline`, because most of tipline needs no more than this and scikit-learn takes a second to import.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tipline.arrays import Floats, Probabilities
from tipline.errors import ReportedCode, TiplineError
from tipline.ingest.columns import KIND_TYPES
from tipline.model import compiled, external, loader, pyfunc

if TYPE_CHECKING:
    import pandas as pd
    from sklearn.pipeline import Pipeline

    from tipline.config import Settings

FORMATS = 5, 6  # of model.json that this tipline reads, the last one that it writes
FORMAT = FORMATS[-1]
TRAINING = loader.TRAINING  # facts about the training, kept beside the model; not part of its digest
TRANSFORMERS = Path(__file__).with_name("transformers.py")  # tipline's own code file in each model
BATCH_ROWS = 2**17  # of a frame
# What scores a model, the fastest first: kernels for trees, the rest of `compiled`, predict_proba of the pipeline.
FORMS = KERNELS, COMPILED, PIPELINE = "kernels", "compiled", "pipeline"


class Model:
    """A loaded model, external ones included, from files whose digest was checked; `spec` is model.json.

    With `use_compiled`, it is scored with its compiled form if it has one, with kernels if they pay for so many `rows`;
    `form` says how.
    """

    def __init__(self, files: Mapping[str, bytes], *, use_compiled: bool = True, rows: int = 0) -> None:
        self.use_compiled, self.rows = use_compiled, rows
        self.spec: dict[str, Any] = json.loads(files[pyfunc.SPEC])
        self.linear: dict[str, Any] | None = self.spec.get("linear") if use_compiled else None
        self.is_external = external.is_external(files)
        self._files = files
        self.form = COMPILED
        if self.linear is None:
            self._predict  # noqa: B018 (loaded now, not with the first rows)

    @cached_property
    def estimator(self) -> Pipeline:
        """The scikit-learn pipeline, which a compiled model is scored without."""
        return pyfunc.load_estimator(self._files)

    @cached_property
    def _predict(self) -> Callable[[pa.RecordBatch, Callable[[], pd.DataFrame]], Floats]:
        """The function from the columns that the preprocessing sees, for Arrow or for pandas, to probabilities."""
        if self.is_external:
            predict, self.form = external.load_predict(self._files, self.spec), PIPELINE
            return lambda _, get_frame: predict(get_frame())
        rest = self.estimator[1:] if self._has_features else self.estimator
        if self.use_compiled and self._has_derived and (linear := compiled.fold_pipeline(rest, is_derived=True)):
            return lambda batch, _: np.concatenate([p.copy() for _, p in compiled.compute_probabilities(batch, linear)])
        if self.use_compiled and (terms := compiled.list_tree_terms(rest)):
            encode, classifier = partial(compiled.encode_matrix, terms=terms), rest[-1]
            with ReportedCode("The kernels for trees", "numba", "Install it, or report this.", TiplineError):
                scorer = compiled.create_scorer(classifier, terms, self.rows)
            if scorer:
                self.form = KERNELS
                return lambda batch, _: scorer(batch)
            return lambda batch, _: classifier.predict_proba(encode(batch))[:, 1].astype(np.float64)
        self.form = PIPELINE
        return lambda _, get_frame: rest.predict_proba(get_frame())[:, 1].astype(np.float64)

    @property
    def _has_features(self) -> bool:
        return not self.is_external and "features" in self.estimator.named_steps

    @cached_property
    def _has_derived(self) -> bool:
        """Whether the preprocessing sees other columns than the model reads, or numbers as categories."""
        text = {column["name"] for column in self.spec["inputs"] if column["type"] == "category"}
        named = {column["name"] for column in self.spec.get("features", []) if column["kind"] == "category"}
        return self._has_features or not named <= text

    def score_rows(self, batch: pa.RecordBatch) -> tuple[Probabilities, pa.RecordBatch]:
        """Return the probability of each prepared row, and the columns after the user's function."""
        calibration = self.spec.get("calibration")
        with ReportedCode("The model", self.spec.get("name", "scoring"), "Promote another version.", TiplineError):
            # Calibrated in doubles, because a steep calibration would amplify what float32 rounds off.
            if self.linear is None:
                scores, columns = self._predict_rows(batch)
                return pyfunc.apply_calibration(scores, calibration).astype(np.float32), columns
            result = np.empty(len(batch), np.float32)
            for rows, values in compiled.compute_probabilities(batch, self.linear):
                result[rows] = pyfunc.apply_calibration(values, calibration)
            return result, batch

    def probabilities(self, batch: pa.RecordBatch) -> Probabilities:
        """Return the probability of each prepared row, shape (rows,), float32."""
        return self.score_rows(batch)[0]

    def uncalibrated(self, batch: pa.RecordBatch) -> Floats:
        """Return the pipeline's probabilities before calibration, as doubles."""
        return self._predict_rows(batch)[0]

    def derive_frame(self, batch: pa.RecordBatch) -> pd.DataFrame:
        """Return the columns that the preprocessing sees, as pandas has them."""
        frame = read_frame(batch, self.spec["inputs"])
        return self.estimator["features"].transform(frame) if self._has_features else frame

    def _predict_rows(self, batch: pa.RecordBatch) -> tuple[Floats, pa.RecordBatch]:
        scores, columns = [np.empty(0)], []
        for start in range(0, len(batch) or 1, BATCH_ROWS):
            part = batch.slice(start, BATCH_ROWS)
            get_frame = cache(partial(self.derive_frame, part))  # a compiled form may do without it
            if self._has_derived:
                part = write_batch(get_frame(), self.spec["features"])
                columns.append(part)
            if len(part):
                scores.append(self._predict(part, get_frame))
        if len(columns) == 1:
            batch = columns[0]
        elif columns:
            batch = pa.Table.from_batches(columns).unify_dictionaries().combine_chunks().to_batches()[0]
        return np.concatenate(scores), batch


def read_frame(batch: pa.RecordBatch, inputs: list[dict[str, str]]) -> pd.DataFrame:
    """Return the model's columns of prepared rows as the pandas frame that its pipeline takes."""
    columns = {column["name"]: batch[column["name"]] for column in inputs}
    plain = {name: c.cast(pa.string()) if pa.types.is_dictionary(c.type) else c for name, c in columns.items()}
    return pyfunc.normalize_frame(pa.table(plain).to_pandas(), inputs)


def write_batch(frame: pd.DataFrame, features: list[dict[str, str]]) -> pa.RecordBatch:
    """Return columns after the user's function as Arrow has prepared rows."""
    from tipline.model.transformers import name_values  # noqa: PLC0415 (imports scikit-learn, as the pipeline does)

    arrays = {}
    for feature in features:
        values, kind = frame[feature["name"]], feature["kind"]
        if kind == "category":
            # pandas holds integers as floats if one is missing; a number has the same name either way.
            is_number = values.dtype.kind in "iuf"
            plain = values.to_numpy(np.float64, na_value=np.nan) + 0.0 if is_number else values  # no -0.0
            array = pa.array(plain, from_pandas=True)  # in chunks, if pandas has it so
            whole = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
            encoded = whole.dictionary_encode()
            names = pa.array(name_values(encoded.dictionary.to_pylist()), pa.string())
            arrays[feature["name"]] = pa.DictionaryArray.from_arrays(encoded.indices.cast(pa.int32()), names)
        else:
            plain = values.to_numpy() if kind == "hour" else values.to_numpy(np.float64, na_value=np.nan)
            arrays[feature["name"]] = pa.array(plain, from_pandas=True).cast(KIND_TYPES[kind], safe=False)
    return pa.RecordBatch.from_pydict(arrays)


def list_files(folder: Path) -> list[str]:
    """Return the names of a model's files, one that is missing included; of an external model, what MLflow logged."""
    logged = sorted(path for path in (folder / external.FOLDER).rglob("*") if path.is_file())
    if logged:
        return [*(path.relative_to(folder).as_posix() for path in logged), pyfunc.SPEC]
    code = {TRANSFORMERS.name, *(path.name for path in folder.glob("*.py"))}
    return [pyfunc.ESTIMATOR, pyfunc.SPEC, *sorted(code)]


def read_artifact(folder: Path) -> dict[str, bytes]:
    """Return the model's files by name. Raises TiplineError if one is missing."""
    try:
        return {name: (folder / name).read_bytes() for name in list_files(folder)}
    except FileNotFoundError as error:
        raise TiplineError("A file of the model is missing.", str(error.filename), "Run: dvc repro") from error


def hash_artifact(files: Mapping[str, bytes]) -> str:
    """Return the digest that identifies a model."""
    return external.hash_model(files) if external.is_external(files) else loader.hash_files(files)


def read_digest(folder: Path) -> str:
    """Return the digest of the model in a folder. Raises TiplineError if a file is missing."""
    return hash_artifact(read_artifact(folder))


def try_read_digest(folder: Path) -> str | None:
    """Return the digest of the model in a folder, or None if a file is missing."""
    with contextlib.suppress(TiplineError):
        return read_digest(folder)
    return None


def check_digest(files: Mapping[str, bytes], expected: str, where: str = "") -> None:
    """Raise TiplineError if the model's files do not have the digest that was registered."""
    if hash_artifact(files) != expected:
        what = "The model's files are not those that were registered: their digest differs."
        todo = "Run: dvc repro register, or promote another version: tipline promote VERSION"
        raise TiplineError(what, where or f"digest {expected[:12]}", todo)


def read_spec(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return a model's model.json; raise TiplineError if it has another format than this tipline reads."""
    spec: dict[str, Any] = json.loads(files[pyfunc.SPEC])
    if not external.is_external(files) and (found := spec.get("format")) not in FORMATS:
        what = f"This model has the format {found}; this tipline reads the formats {FORMATS[0]} to {FORMAT}."
        todo = "Train it again with this tipline (dvc repro train register), then: tipline promote --force REASON"
        raise TiplineError(what, f"digest {hash_artifact(files)[:12]}", todo)
    return spec


def load_model(files: Mapping[str, bytes], expected: str, *, use_compiled: bool = True, rows: int = 0) -> Model:
    """Load a model with its code, to score about as many rows; first refuse another digest and unsafe files."""
    check_digest(files, expected)
    spec = read_spec(files)
    if external.is_external(files):
        if spec.get("trusted") != expected:  # nobody has promoted just these files with `--trust-code`
            external.check_files(files, spec["name"])
    elif not (use_compiled and spec["linear"]):
        code = pyfunc.list_code(files)
        loader.check_skops(pyfunc.ESTIMATOR, files[pyfunc.ESTIMATOR], f"digest {expected[:12]}", code)
    return Model(files, use_compiled=use_compiled, rows=rows)


def format_title(settings: Settings, rows: int) -> str:
    """Name a model: rows x columns, parameters, estimator. MLflow's lists show the first 20 characters."""
    params = [f"{name}={value}" for name, value in settings.train.params.items()]
    calibration = [settings.train.calibration] if settings.train.calibration else []
    return " ".join([f"{rows:,}x{len(settings.model.columns)}", *params, settings.train.estimator, *calibration])


def describe_settings(settings: Settings) -> dict[str, Any]:
    """Return the parameters that MLflow shows: estimator, its parameters, columns."""
    params = {f"estimator.{name}": value for name, value in settings.train.params.items()}
    return {"estimator": settings.train.estimator, **params, "columns": ", ".join(settings.model.columns)}
