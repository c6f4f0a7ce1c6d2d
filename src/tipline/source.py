"""From a source (the simulation, a path, https) to the published bytes of a month on disk, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from tipline import demo, files
from tipline.errors import NotPublishedError, TiplineError

if TYPE_CHECKING:
    from collections.abc import Mapping

CONNECT_SECONDS = 20


def address(source: str, month: str, home: Path) -> str:
    """The address of a month: {month} filled in, a relative path taken from the project's folder."""
    scheme = urlsplit(source).scheme
    filled = source.replace("{month}", month)
    if scheme in {"http", "https"}:
        return scheme + filled[len(scheme) :]  # HTTP:// is http://, but not to fsspec
    return os.path.normpath(home / filled.removeprefix("file://"))


def fetch(source: str, month: str, folder: Path, home: Path, simulated: Mapping[str, int]) -> dict[str, Any]:
    """Put the month's published file into `folder` and return its receipt: address, name, bytes, sha256.

    Parameters
    ----------
    source
        `demo`, or an address with {month} in it.
    simulated
        rows and seed of a simulated month.

    Raises
    ------
    NotPublishedError
        Where the source does not have the month.
    TiplineError
        Where the bytes do not arrive whole, or are neither Parquet nor CSV.
    """
    if source == "demo":
        place = f"demo:{month}?rows={simulated['rows']}&seed={simulated['seed']}"
        target = folder / f"yellow_tripdata_{month}.parquet"
        demo.write_month(target, month, simulated["rows"], simulated["seed"])
    else:
        place = address(source, month, home)
        check_folder(source, place, home)
        target = folder / (Path(urlsplit(place).path).name or month)
        copy(place, target)
    check_format(target, place)
    return {"address": place, "name": target.name, "bytes": target.stat().st_size, "sha256": files.sha256(target)}


def check_folder(source: str, place: str, home: Path) -> None:
    """Tell a path that was written wrongly from a month that is not there yet: the latter's folder exists.

    Raises
    ------
    TiplineError
        Where the folder before the first {month} of a local source is not there.
    """
    # As text: a Path would drop the slash that tells a folder from the beginning of a name.
    folder, _ = os.path.split(os.path.join(home, source.removeprefix("file://").partition("{month}")[0]))  # noqa: PTH118
    if place.startswith("/") and not Path(folder).is_dir():
        what = "The folder that `source` names does not exist."
        raise TiplineError(what, folder, "Check `source` in params.yaml.")


def copy(place: str, target: Path) -> None:
    """Copy an address to a file and hold its length against the one that the source states."""
    import fsspec  # noqa: PLC0415 (a simulated month need not wait for it)

    options = {} if place.startswith("/") else {"client_kwargs": {"timeout": client_timeout()}}
    filesystem, path = fsspec.url_to_fs(place, **options)
    try:
        info = filesystem.info(path)
        if info["type"] == "directory":
            raise TiplineError("This is a folder, not a file.", place, "Let `source` name the month's file.")
        filesystem.get_file(path, str(target))
    except FileNotFoundError as error:
        if not is_absent(error):
            raise unreachable(error.__cause__, place) from error
        todo = "Check the month and `source` in params.yaml; a month appears about two months after it ends."
        raise NotPublishedError("The source does not have this month.", place, todo) from error
    except connection_errors() as error:
        raise unreachable(error, place) from error
    stated = info.get("size")
    if stated is not None and target.stat().st_size != stated:
        what = f"The month arrived cut off: {target.stat().st_size:,} of {stated:,} bytes."
        raise TiplineError(what, place, "Try again.")


def is_absent(error: FileNotFoundError) -> bool:
    """Whether the source says that it has no such file: fsspec raises this too where a server refuses or fails.

    A bucket that may not be listed answers 403 for a file that is not there.
    """
    cause = error.__cause__
    return not isinstance(cause, Exception) or getattr(cause, "status", None) in {403, 404, 410}


def unreachable(error: BaseException | None, place: str) -> TiplineError:
    """The message for a month whose bytes did not arrive."""
    what = f"The month could not be fetched: {str(error) or repr(error)}."
    return TiplineError(what, place, "Check `source` in params.yaml, or try again later.")


def client_timeout() -> object:
    """No limit on the whole transfer, which may be large, but on each wait within it."""
    import aiohttp  # noqa: PLC0415

    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=60)


def connection_errors() -> tuple[type[Exception], ...]:
    """What fsspec raises where a server refuses, fails or falls silent."""
    import aiohttp  # noqa: PLC0415

    return (aiohttp.ClientError, TimeoutError, ConnectionError)


def check_format(path: Path, where: str) -> None:
    """Refuse what is plainly not a month: a Parquet file without its footer, a web page, something binary.

    Raises
    ------
    TiplineError
        Saying which of these it is.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"PAR1") or path.suffix == ".parquet":
        check_footer(path, head, where)
    elif looks_like_html(head):
        raise TiplineError("This is a web page, not a month of trips.", where, "Check `source` in params.yaml.")
    elif b"\x00" in head or b"," not in head.split(b"\n", 1)[0]:
        what = "This is neither a Parquet file nor a CSV file with a header."
        raise TiplineError(what, where, "Check `source` in params.yaml.")


def looks_like_html(head: bytes) -> bool:
    """Whether a file begins as a web page or an XML error message does."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def check_footer(path: Path, head: bytes, where: str) -> None:
    """Refuse a file that calls itself Parquet and has no readable footer."""
    try:
        pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError) as error:
        if looks_like_html(head):
            what, todo = "This is a web page, not a Parquet file.", "Check `source` in params.yaml."
        else:
            what = f"This Parquet file is damaged or cut off: {str(error).splitlines()[0]}"
            todo = "Fetch it again, or ask whoever made it."
        raise TiplineError(what, where, todo) from error
