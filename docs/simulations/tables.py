"""Markdown tables between the markers of a page: `<!-- name -->` and `<!-- end of name -->`."""

from collections.abc import Iterable, Sequence
from pathlib import Path


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def replace_table(path: Path, name: str, text: str) -> None:
    """Write a table between its markers."""
    before, start, rest = path.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    if not end:
        message = f"{path} has no markers for the table {name}"
        raise SystemExit(message)
    path.write_text(f"{before}{start}{text}\n{end}{after}", encoding="utf-8")
