"""Fetch the published file of a month from its source: the simulation, a path, https or S3."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from tipline import files
from tipline.errors import TiplineError, hide_secrets, summarize_exception
from tipline.ingest import simulate
from tipline.ingest.readers import MAGIC

HEAD_BYTES = 4096
REMOTE = {"http", "https", "s3"}
TODO = "Check `source` in params.yaml."


def format_address(source: str, month: str, home: Path) -> str:
    """Return the address of a month; relative paths start at the folder `home`."""
    scheme = urlsplit(source).scheme
    address = source.replace("{month}", month)
    if scheme in REMOTE:
        return scheme + address[len(scheme) :]  # fsspec does not know HTTP://
    return os.path.normpath(home / address.removeprefix("file://"))


def fetch_month(
    source: str, month: str, folder: Path, home: Path, demo: Mapping[str, int], part: Path
) -> dict[str, Any]:
    """Write the published file of a month to `folder` and return its manifest: address, name, bytes, sha256.

    The manifest of a file from a server holds under `upstream` the size and version that the server states. `demo` has
    rows and seed of a simulated month. The bytes are collected in `part`, on the file system of `folder`; the next run
    resumes from it. Raises NotPublishedError if the source does not have the month, TiplineError if it fails or the
    file is neither Parquet nor CSV.
    """
    upstream = {}
    if source == "demo":
        shown, name = f"demo:{month}?rows={demo['rows']}&seed={demo['seed']}", f"yellow_tripdata_{month}.parquet"
        simulate.simulate_month(folder / name, month, demo["rows"], demo["seed"])
    else:
        address = format_address(source, month, home)
        check_folder(source, address, home)
        is_local = address.startswith("/")  # a # or ? in a local path is part of the name
        shown, name = hide_secrets(address), Path(address if is_local else urlsplit(address).path).name or month
        from tipline.ingest import transfer  # noqa: PLC0415 (a quarter of a second)

        state = transfer.download_file(address, part, month)
        part.replace(folder / name)
        upstream = {} if is_local else {"upstream": {"size": state.size, "version": state.version}}
    check_format(folder / name, shown)
    return {"address": shown, "name": name} | files.describe_file(folder / name) | upstream


def is_unchanged(source: str, month: str, home: Path, folder: Path, manifest: Path) -> bool:
    """Whether `folder` holds what its manifest says and the server still states the same size and version.

    Simulated and local months, and months of servers that state no version, are fetched again. Errors are those of
    `fetch_month`.
    """
    match files.try_read_json(manifest):
        case {"address": old, "name": str(name), "sha256": digest, "upstream": {"size": size, "version": str(version)}}:
            from tipline.ingest import transfer  # noqa: PLC0415

            address, path = format_address(source, month, home), folder / name
            if hide_secrets(address) == old and path.is_file() and files.hash_file(path) == digest:
                return transfer.fetch_state(address) == transfer.FileState(size, version)
    return False


def check_published(source: str, month: str, home: Path) -> None:
    """Ask a source whether it has a month; errors are those of `fetch_month`."""
    if source == "demo":
        simulate.get_published_schema(month)
    else:
        from tipline.ingest import transfer  # noqa: PLC0415

        address = format_address(source, month, home)
        check_folder(source, address, home)
        transfer.fetch_state(address)


def check_folder(source: str, address: str, home: Path) -> None:
    """Refuse a local path whose folder does not exist; if only the file is missing, the month is not published."""
    # As text, because a Path would drop the slash that separates a folder from the beginning of a name.
    folder, _ = os.path.split(os.path.join(home, source.removeprefix("file://").partition("{month}")[0]))  # noqa: PTH118
    if address.startswith("/") and not Path(folder).is_dir():
        raise TiplineError("The folder that `source` names does not exist.", folder, TODO)


def check_format(path: Path, where: str) -> None:
    """Refuse a file that cannot be a month: Parquet without a footer, a web page, something binary."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head.startswith(MAGIC):
        check_head(head, where)
        return
    try:
        pq.read_metadata(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        what = f"This Parquet file is damaged or cut off: {summarize_exception(error)}."
        raise TiplineError(what, where, "Fetch it again, or ask the publisher.") from error


def check_head(head: bytes, where: str) -> None:
    """Refuse a file that does not begin like a CSV file."""
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):  # or an error message in XML
        raise TiplineError("This is a web page, not a published month.", where, TODO)
    first = head.splitlines(keepends=True)[0] if head else b""
    if b"\x00" in head or b"," not in first or (len(head) < HEAD_BYTES and not first.endswith((b"\n", b"\r"))):
        raise TiplineError("This is neither a Parquet file nor a CSV file with a complete header.", where, TODO)
