"""From a source (the simulation, a path, https, S3) to the published bytes of a month on disk, whole or not at all."""

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


def format_address(source: str, month: str, home: Path) -> str:
    """The address of a month: {month} filled in, a relative path taken from the project's folder."""
    scheme = urlsplit(source).scheme
    filled = source.replace("{month}", month)
    if scheme in REMOTE:
        return scheme + filled[len(scheme) :]  # HTTP:// is http://, but not to fsspec
    return os.path.normpath(home / filled.removeprefix("file://"))


def fetch_month(
    source: str, month: str, folder: Path, home: Path, simulated: Mapping[str, int], part: Path
) -> dict[str, Any]:
    """Put the month's published file into `folder` and return its manifest: address, name, bytes, sha256.

    The manifest of what came from a server says under `upstream` which size and version the server states.

    Parameters
    ----------
    source
        `demo`, or an address with {month} in it.
    simulated
        rows and seed of a simulated month.
    part
        Where the bytes gather, for the next run to go on with: on the same file system as `folder`.

    Raises
    ------
    NotPublishedError
        Where the source does not have the month.
    TiplineError
        Where the bytes do not arrive whole, or are neither Parquet nor CSV.
    """
    upstream = {}
    if source == "demo":
        place = f"demo:{month}?rows={simulated['rows']}&seed={simulated['seed']}"
        target = folder / f"yellow_tripdata_{month}.parquet"
        simulate.simulate_month(target, month, simulated["rows"], simulated["seed"])
    else:
        from tipline.ingest import transfer  # noqa: PLC0415 (a simulated month need not wait for it)

        place = format_address(source, month, home)
        check_folder(source, place, home)
        target = folder / (Path(urlsplit(place).path).name or month)
        stated = transfer.download_file(place, part, month)
        part.replace(target)
        if not place.startswith("/"):
            upstream = {"upstream": {"size": stated.size, "version": stated.version}}
        place = hide_secrets(place)
    check_format(target, place)
    return {"address": place, "name": target.name} | files.describe_file(target) | upstream


def is_unchanged(source: str, month: str, home: Path, folder: Path, manifest: Path) -> bool:
    """Whether `folder` holds what `manifest` says, and the server still states the same size and version.

    A server that states no version cannot tell; simulated and local months are always made again.

    Raises
    ------
    NotPublishedError, TiplineError
        As `fetch`, where the server does not answer for the month.
    """
    match files.try_read_json(manifest):
        case {"address": old, "name": str(name), "sha256": digest, "upstream": {"size": size, "version": str(version)}}:
            from tipline.ingest import transfer  # noqa: PLC0415

            place = format_address(source, month, home)
            same_here = hide_secrets(place) == old and (folder / name).is_file()
            if same_here and files.hash_file(folder / name) == digest:
                stated, _ = transfer.peek_bytes(place, 0, 1)
                return (stated.size, stated.version) == (size, version)
    return False


def check_published(source: str, month: str, home: Path) -> None:
    """Ask a source for a month's first byte; errors as of `fetch`."""
    if source == "demo":
        simulate.get_published_schema(month)
        return
    from tipline.ingest import transfer  # noqa: PLC0415

    place = format_address(source, month, home)
    check_folder(source, place, home)
    transfer.peek_bytes(place, 0, 1)


def check_folder(source: str, place: str, home: Path) -> None:
    """Tell a path that was written wrongly from a month that is not there yet: the latter's folder exists."""
    # As text: a Path would drop the slash that tells a folder from the beginning of a name.
    folder, _ = os.path.split(os.path.join(home, source.removeprefix("file://").partition("{month}")[0]))  # noqa: PTH118
    if place.startswith("/") and not Path(folder).is_dir():
        what = "The folder that `source` names does not exist."
        raise TiplineError(what, folder, "Check `source` in params.yaml.")


def check_format(path: Path, where: str) -> None:
    """Refuse what is plainly not a month: a Parquet file without its footer, a web page, something binary."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(b"PAR1") or path.suffix == ".parquet":
        check_footer(path, head, where)
    else:
        check_head(head, where)


def check_head(head: bytes, where: str) -> None:
    """Refuse a file that begins as no CSV file does."""
    if looks_like_html(head):
        raise TiplineError("This is a web page, not a month of trips.", where, "Check `source` in params.yaml.")
    first = head.splitlines(keepends=True)[0] if head else b""
    if b"\x00" in head or b"," not in first or (len(head) < HEAD_BYTES and not first.endswith((b"\n", b"\r"))):
        what = "This is neither a Parquet file nor a CSV file with a whole header."
        raise TiplineError(what, where, "Check `source` in params.yaml.")


def looks_like_html(head: bytes) -> bool:
    """Whether a file begins as a web page or an XML error message does."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def check_footer(path: Path, head: bytes, where: str) -> None:
    """Refuse a file that calls itself Parquet and has no readable footer."""
    try:
        pq.read_metadata(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if looks_like_html(head):
            what, todo = "This is a web page, not a Parquet file.", "Check `source` in params.yaml."
        else:
            what = f"This Parquet file is damaged or cut off: {summarize_exception(error)}"
            todo = "Fetch it again, or ask whoever made it."
        raise TiplineError(what, where, todo) from error
