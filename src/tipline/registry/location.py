"""Where MLflow's store is, and whether it changed. Does not import MLflow, which takes two seconds."""

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from tipline import files
from tipline.config import Settings
from tipline.paths import Paths

SQLITE = "sqlite:///"
DATABASE = "mlflow.db"
HEADER_BYTES = 100  # of an SQLite file; has its counter of transactions


def get_store_address(paths: Paths) -> str:
    """Return MLFLOW_TRACKING_URI, or else the database that plain `mlflow ui` opens in the project.

    A relative database belongs to the workspace, not to the copy of `dvc exp run --temp`. The address is built as text,
    because SQLAlchemy's URL objects encode it and MLflow then creates a folder of the encoded name.
    """
    address = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{DATABASE}"
    database, question_mark, query = address.removeprefix(SQLITE).partition("?")
    if not address.startswith(SQLITE) or database.startswith("/"):
        return address
    return format_address(paths.workspace / (unquote(database) or DATABASE)) + question_mark + query


def format_address(database: Path) -> str:
    """Return the address of an SQLite file; only what SQLAlchemy would read as something else is encoded."""
    return SQLITE + re.sub(r"\?|%(?=[0-9a-fA-F]{2})", lambda found: quote(found[0]), str(database))


def get_database_path(paths: Paths) -> Path | None:
    """Return the file of an SQLite store, or None for any other store."""
    address = get_store_address(paths)
    return Path(unquote(address.removeprefix(SQLITE).partition("?")[0])) if address.startswith(SQLITE) else None


def describe_state(settings: Settings, paths: Paths) -> str | None:
    """Return a digest of an SQLite store and of the files that `register` compares with it; None for any other store.

    The store is described by time, size and SQLite's counter of transactions, so any change of it by anyone is seen.
    """
    database = get_database_path(paths)
    if database is None or not database.is_file():
        return None
    log = database.with_name(f"{database.name}-wal")
    with database.open("rb") as file:
        header = file.read(HEADER_BYTES)
    store = [[path.stat().st_mtime_ns, path.stat().st_size] for path in (database, log) if path.is_file()]
    reports = [paths.learning_curve.with_suffix(".json"), paths.evaluation, paths.monitoring / "months.json"]
    models = [*paths.challenger.glob("*"), *paths.champion.rglob("*")]
    manifests = paths.predictions.glob(f"*/{files.MANIFEST}")
    found = sorted(path for path in (*reports, *models, *manifests) if path.is_file())
    hashed = {str(path.relative_to(paths.root)): files.hash_file(path) for path in found}
    wanted = [settings.model.name, settings.score.model, os.environ.get("DVC_EXP_NAME")]
    return files.hash_json([str(database), header.hex(), store, wanted, hashed])
