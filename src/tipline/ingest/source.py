"""Fetch the published file of a month from its source: the simulation, a path, https or a bucket."""

import codecs
import fnmatch
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from tipline import files, formats, remote
from tipline.errors import TiplineError, hide_secrets, shorten_text, summarize_exception
from tipline.ingest import simulate
from tipline.ingest.readers import is_parquet, open_text

HEAD_BYTES = 4096
REMOTE = {"http", "https", *remote.STORES}
SHOWN = 40  # letters of an ETag or a digest
TODO = "Check this address in params.yaml."


def format_address(source: str, month: str, home: Path) -> str:
    """Return the address of a month; relative paths start at the folder `home`."""
    scheme = urlsplit(source).scheme
    address = source.replace("{month}", month).replace("{year}", month[:4]).replace("{mm}", month[5:])
    if scheme in REMOTE:
        return scheme + address[len(scheme) :]  # fsspec does not know HTTP://
    return os.path.normpath(home / address.removeprefix("file://"))


def list_addresses(source: str, month: str, home: Path) -> list[tuple[str, str]]:
    """List addresses and names of a month's files; they are several if the address has a `*` or is a folder."""
    address = format_address(source, month, home)
    check_folder(source, address, home)
    is_local = address.startswith("/")  # a # or ? in a local path is part of the name
    is_file = is_local and Path(address).is_file()  # with a star in its name
    if not is_file and ("*" in address or source.endswith("/") or (is_local and Path(address).is_dir())):
        from tipline.ingest import transfer  # noqa: PLC0415 (a quarter of a second)

        return transfer.list_files(address)
    return [(address, Path(address if is_local else urlsplit(address).path).name or month)]


def fetch_month(
    source: str, month: str, folder: Path, home: Path, demo: Mapping[str, int], part: Path
) -> dict[str, Any]:
    """Write the published files of a month to `folder` and return its manifest: address, name, bytes, sha256.

    Of several files, it has a list, `files`; of a server's, `upstream` has the size and version that are stated there.
    `demo` has rows and seed of a simulated month. The next run resumes from `part`, on the file system of `folder`.
    Raises NotPublishedError if the source has no such month, TiplineError if it fails or has something else.
    """
    if source == "demo":
        name = f"yellow_tripdata_{month}.parquet"
        simulate.simulate_month(folder / name, month, demo["rows"], demo["seed"])
        simulated = {"address": describe_demo(month, demo), "format": formats.DOWNLOAD, "name": name}
        return simulated | files.describe_file(folder / name)
    from tipline.ingest import transfer  # noqa: PLC0415

    listed, described = list_addresses(source, month, home), []
    for number, (address, name) in enumerate(listed, 1):
        state = transfer.download_file(address, part, month if len(listed) == 1 else f"{month} {number}/{len(listed)}")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        part.replace(folder / name)
        check_format(folder / name, hide_secrets(address))
        upstream = {} if address.startswith("/") else {"upstream": asdict(state)}
        described.append({"name": name} | files.describe_file(folder / name) | upstream)
    if len(listed) == 1:
        return {"address": show_address(listed[0][0], source, home), **described[0]}
    shown = show_address(format_address(source, month, home), source, home)
    return {"address": shown, "bytes": sum(one["bytes"] for one in described), "files": described}


def describe_demo(month: str, demo: Mapping[str, int]) -> str:
    return f"demo:{month}?rows={demo['rows']}&seed={demo['seed']}"


def show_address(address: str, source: str, home: Path) -> str:
    """Return an address for a manifest, without secrets. A relative one does not depend on where the project is."""
    is_relative = address.startswith("/") and not source.startswith(("/", "file://"))
    return os.path.relpath(address, home) if is_relative else hide_secrets(address)


def is_kept(
    source: str,
    month: str,
    home: Path,
    folder: Path,
    known: Mapping[str, Any],
    demo: Mapping[str, int],
    manifest: Path,
) -> bool:
    """Whether `folder` has the files `known` from `manifest`, of this source."""
    described = known.get("files", [known])
    if not all(files.is_described(folder / str(one.get("name")), one, manifest) for one in described):
        return False
    if source == "demo":
        return (known.get("address"), known.get("format")) == (describe_demo(month, demo), formats.DOWNLOAD)
    shown = show_address(format_address(source, month, home), source, home)
    pattern = f"{shown.rstrip('/')}/*" if source.endswith("/") else shown
    return known["address"] == shown or fnmatch.fnmatchcase(known["address"], pattern)


def find_changes(source: str, month: str, home: Path, known: Mapping[str, Any]) -> list[str]:
    """Ask a source about the files of a month and describe what differs from its manifest `known`.

    Local files are compared by sha256, those of servers by size and version. Errors are those of `fetch_month`.
    """
    if source == "demo":
        return []
    from tipline.ingest import transfer  # noqa: PLC0415

    before = {one.get("name"): one for one in known.get("files", [known])}
    listed = {name: address for address, name in list_addresses(source, month, home)}
    place = format_address(source, month, home) if "files" in known else next(iter(listed.values()))
    place = show_address(place, source, home)
    changes = [] if place == known.get("address") else [f"address: {known.get('address')} -> {place}"]
    changes += [f"{name}: not there any more" for name in before if name not in listed]
    for name, address in listed.items():
        state, one = asdict(transfer.fetch_state(address)), before.get(name)
        if one is None:
            changes.append(f"{name}: new")
            continue
        old = {"size": one.get("bytes")} | (one.get("upstream") or {})
        if address.startswith("/"):
            old["sha256"], state = one.get("sha256"), {"size": state["size"], "sha256": files.hash_file(Path(address))}
        if any(old.get(key) != state[key] for key in state if key != "modified"):
            shown = {key: [shorten_text(value, SHOWN) for value in (old.get(key), state[key])] for key in state}
            words = [f"{key} {was} -> {now}" for key, (was, now) in shown.items() if was != now]
            changes.append(f"{name}: {', '.join(words)}")
    return changes


def check_published(source: str, month: str, home: Path) -> None:
    """Ask a source whether it has a month; errors are those of `fetch_month`."""
    if source == "demo":
        simulate.get_published_schema(month)
    else:
        from tipline.ingest import transfer  # noqa: PLC0415

        for address, _ in list_addresses(source, month, home):
            transfer.fetch_state(address)


def check_folder(source: str, address: str, home: Path) -> None:
    """Refuse a local path whose folder does not exist; if only the file is missing, the month is not published."""
    # As text, because a Path would drop the slash that separates a folder from the beginning of a name.
    folder, _ = os.path.split(os.path.join(home, source.removeprefix("file://").partition("{")[0].partition("*")[0]))  # noqa: PTH118
    if address.startswith("/") and not Path(folder).is_dir():
        raise TiplineError("The folder of this address does not exist.", folder, TODO)


def check_format(path: Path, where: str) -> None:
    """Refuse a file that cannot be a month: Parquet without a footer, a web page, something binary."""
    try:
        if is_parquet(path):
            pq.read_metadata(path)
            return
        with open_text(path, "utf-8") as file:
            check_head(file.read(HEAD_BYTES), where)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        what = f"This file is damaged or cut off: {summarize_exception(error)}."
        raise TiplineError(what, where, "Fetch it again, or ask the publisher.") from error


def check_head(head: bytes, where: str) -> None:
    """Refuse a text that does not begin like a CSV file."""
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):  # or an error message in XML
        raise TiplineError("This is a web page, not a published month.", where, TODO)
    first = head.splitlines(keepends=True)[0] if head else b""
    is_wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    is_cut = len(head) < HEAD_BYTES and not first.endswith((b"\n", b"\r"))
    if not re.search(rb"[,;\t|]", first) or ((b"\x00" in head or is_cut) and not is_wide):
        raise TiplineError("This is neither a Parquet file nor a CSV file with a complete header.", where, TODO)
