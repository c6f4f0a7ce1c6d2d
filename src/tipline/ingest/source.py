"""From a source (the simulation, a path, https, S3) to the published file of a month, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from tipline import files
from tipline.errors import TiplineError, hide_secrets, summarize_exception
from tipline.ingest import simulate

if TYPE_CHECKING:
    from collections.abc import Mapping

HEAD_BYTES = 4096
REMOTE = {"http", "https", "s3"}
TODO = "Check `source` in params.yaml."


def format_address(source: str, month: str, home: Path) -> str:
    """Return the address of a month; a relative path starts at the project's folder."""
    scheme = urlsplit(source).scheme
    filled = source.replace("{month}", month)
    if scheme in REMOTE:
        return scheme + filled[len(scheme) :]  # fsspec does not know HTTP://
    return os.path.normpath(home / filled.removeprefix("file://"))


def fetch_month(
    source: str, month: str, folder: Path, home: Path, simulated: Mapping[str, int], part: Path
) -> dict[str, Any]:
    """Put the published file of a month into `folder` and return its manifest.

    Parameters
    ----------
    source
        `demo`, or an address with {month} in it.
    simulated
        rows and seed of a simulated month.
    part
        Where the bytes are collected; the next run resumes from it. On the same file system as `folder`.

    Returns
    -------
    dict
        address, name, bytes, sha256; and `upstream`, the size and version that a server states.

    Raises
    ------
    NotPublishedError
        The source does not have the month.
    TiplineError
        The bytes do not arrive whole, or are neither Parquet nor CSV.
    """
    upstream = {}
    if source == "demo":
        shown = f"demo:{month}?rows={simulated['rows']}&seed={simulated['seed']}"
        target = folder / f"yellow_tripdata_{month}.parquet"
        simulate.simulate_month(target, month, simulated["rows"], simulated["seed"])
    else:
        from tipline.ingest import transfer  # noqa: PLC0415 (simulated months do not wait for it)

        address = format_address(source, month, home)
        check_folder(source, address, home)
        shown, target = hide_secrets(address), folder / get_file_name(address, month)
        stated = transfer.download_file(address, part, month)
        part.replace(target)
        if not address.startswith("/"):
            upstream = {"upstream": {"size": stated.size, "version": stated.version}}
    check_format(target, shown)
    return {"address": shown, "name": target.name} | files.describe_file(target) | upstream


def get_file_name(address: str, month: str) -> str:
    """Return the last part of an address; a `#` in a local path is part of the name."""
    path = address if address.startswith("/") else urlsplit(address).path
    return Path(path).name or month


def is_unchanged(source: str, month: str, home: Path, folder: Path, manifest: Path) -> bool:
    """Whether `folder` holds what its manifest says and the server still states the same size and version.

    Simulated and local months, and servers that state no version, are fetched again.

    Raises
    ------
    NotPublishedError, TiplineError
        As `fetch_month`, if the server does not answer.
    """
    match files.try_read_json(manifest):
        case {"address": old, "name": str(name), "sha256": digest, "upstream": {"size": size, "version": str(version)}}:
            from tipline.ingest import transfer  # noqa: PLC0415

            address, path = format_address(source, month, home), folder / name
            if hide_secrets(address) == old and path.is_file() and files.hash_file(path) == digest:
                stated, _ = transfer.peek_bytes(address, 0, 1)
                return (stated.size, stated.version) == (size, version)
    return False


def check_published(source: str, month: str, home: Path) -> None:
    """Ask a source for a month; errors as in `fetch_month`."""
    if source == "demo":
        simulate.get_published_schema(month)
        return
    from tipline.ingest import transfer  # noqa: PLC0415

    address = format_address(source, month, home)
    check_folder(source, address, home)
    transfer.peek_bytes(address, 0, 1)


def check_folder(source: str, address: str, home: Path) -> None:
    """Tell a wrong path from a month that does not exist yet, whose folder exists."""
    # As text, because a Path would drop the slash that separates a folder from the beginning of a name.
    folder, _ = os.path.split(os.path.join(home, source.removeprefix("file://").partition("{month}")[0]))  # noqa: PTH118
    if address.startswith("/") and not Path(folder).is_dir():
        raise TiplineError("The folder that `source` names does not exist.", folder, TODO)


def check_format(path: Path, where: str) -> None:
    """Refuse a file that cannot be a month: Parquet without a footer, a web page, something binary."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head.startswith(b"PAR1") and path.suffix != ".parquet":
        check_head(head, where)
        return
    try:
        pq.read_metadata(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if is_html(head):
            raise TiplineError("This is a web page, not a Parquet file.", where, TODO) from error
        what = f"This Parquet file is damaged or cut off: {summarize_exception(error)}"
        raise TiplineError(what, where, "Fetch it again, or ask the publisher.") from error


def check_head(head: bytes, where: str) -> None:
    """Refuse a file that does not begin like a CSV file."""
    if is_html(head):
        raise TiplineError("This is a web page, not a published month.", where, TODO)
    first = head.splitlines(keepends=True)[0] if head else b""
    if b"\x00" in head or b"," not in first or (len(head) < HEAD_BYTES and not first.endswith((b"\n", b"\r"))):
        raise TiplineError("This is neither a Parquet file nor a CSV file with a complete header.", where, TODO)


def is_html(head: bytes) -> bool:
    """Whether a file begins like a web page or an XML error message."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")
