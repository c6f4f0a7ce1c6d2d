"""The structure of the source, read from it: layers, what imports what, how long functions are.

`python -m tests.structure` draws docs/images/structure.svg anew and prints the figures of style.
"""

from __future__ import annotations

import ast
import functools
import re
import statistics
import textwrap
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from tests.conftest import ROOT
from tests.imports import PACKAGE, path_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PICTURE = ROOT / "docs" / "images" / "structure.svg"
# From bottom to top: nothing imports what stands above it. What shares a line shares a layer.
LAYERS = (
    ("errors",),
    ("files", "yamlfiles", "layout", "git", "progress", "pyfunc", "workers"),
    ("months",),
    ("params",),
    ("statistics",),
    ("models",),
    ("places",),
    ("cluster",),
    ("scoring",),
    ("mlflow",),
    ("pages",),
    ("stages",),
    ("commands",),
    ("cli",),
)
# What each library is called, by the packages that it comes as.
LIBRARIES = {
    "mlflow": "MLflow",
    "dask": "dask",
    "distributed": "dask",
    "fsspec": "fsspec",
    "s3fs": "fsspec",
    "botocore": "fsspec",
}
# The only modules that may import them, from the package's folder.
DOORS = {
    "MLflow": ("mlflow/*.py", "pyfunc.py", "models/foreign.py"),
    "dask": ("cluster.py",),
    "fsspec": ("months/transfer.py", "places.py"),
}


class Function(NamedTuple):
    """A function of the source: lines from `def` to its end, the docstring included."""

    lines: int
    where: str


def modules() -> list[Path]:
    """Every module, but for the packages' own files, which hold a docstring alone."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def short(path: Path) -> str:
    """A module's file from the package's folder: months/raw.py."""
    return path.relative_to(PACKAGE).as_posix()


def unit(path: Path) -> str:
    """The folder of a module, or its name where it lies beside the folders."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def rank(path: Path) -> int:
    """The layer of a module, counted from the bottom."""
    return next(index for index, layer in enumerate(LAYERS) if unit(path) in layer)


@functools.cache
def parsed(path: Path) -> ast.Module:
    """A module's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[str]:
    """The full names of all that a module imports: also in a function, for types alone, as `stages.x:run`."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Constant) and re.fullmatch(r"\w+\.\w+:\w+", str(node.value)):
            yield f"tipline.{str(node.value).partition(':')[0]}"  # how cli.py names what it imports late
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def uses(path: Path) -> frozenset[Path]:
    """The modules of tipline that a module imports, those for types alone included."""
    names = [name for name in imported(path) if name.split(".")[0] == "tipline"]
    found = {path_of(name) or path_of(name.rpartition(".")[0]) for name in names}
    return frozenset(file for file in found if file and file.name != "__init__.py")


def libraries(path: Path) -> set[str]:
    """Which of LIBRARIES a module imports."""
    return {LIBRARIES[top] for name in imported(path) if (top := name.split(".")[0]) in LIBRARIES}


def doors(library: str) -> set[Path]:
    """The modules that may import a library."""
    return {path for pattern in DOORS[library] for path in PACKAGE.glob(pattern) if path.name != "__init__.py"}


def cycle() -> list[str]:
    """Modules that import each other in a circle, in its order; none: an empty list."""
    done: set[Path] = set()

    def visit(path: Path, trail: tuple[Path, ...]) -> tuple[Path, ...]:
        if path in trail:
            return (*trail[trail.index(path) :], path)
        found = () if path in done else next(filter(None, (visit(p, (*trail, path)) for p in sorted(uses(path)))), ())
        done.add(path)
        return found

    return [short(path) for path in next(filter(None, (visit(path, ()) for path in modules())), ())]


def functions() -> list[Function]:
    """All functions and methods, the longest first."""
    found = [
        Function((node.end_lineno or 0) - node.lineno + 1, f"{short(path)}: {node.name}")
        for path in modules()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return sorted(found, reverse=True)


def share(most: int) -> float:
    """The share of functions of at most so many lines."""
    found = functions()
    return sum(function.lines <= most for function in found) / len(found)


def figures() -> Iterator[str]:
    """Modules, lines and the lengths of functions, in words."""
    found = functions()
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    longest = max(lines, key=lambda path: lines[path])
    yield f"{len(lines)} modules, {sum(lines.values()):,} lines; the longest: {short(longest)}, {lines[longest]}"
    middle = statistics.median(function.lines for function in found)
    yield f"{len(found)} functions, docstrings included: half have {middle:g} lines or fewer,"
    yield f"{share(10):.1%} at most 10, {share(25):.1%} at most 25; the longest:"
    yield from (f"{function.lines:4}  {function.where}" for function in found[:5])


# ---- the picture ----

LEFT, BOX, NAMES, LETTERS, LINE, GAP, BEND = 10, 720, 110, 100, 18, 10, 14
STYLE = """text { font: 13px sans-serif; fill: #222 } .name { font-weight: bold } .door { font-size: 11px; fill: #fff }
rect.box { fill: #f3f6fa; stroke: #7b8fa8 } rect.door { fill: #a3481f } path { fill: none; stroke: #7b8fa8 }
.modules { font-size: 12px; fill: #566 } path.head { fill: #7b8fa8 }"""


class Row(NamedTuple):
    """A layer in the picture: its top and bottom; its name, lines on what is in it, the doors in it."""

    top: int
    bottom: int
    name: str
    listed: list[str]
    doors: str


def arrows() -> list[tuple[int, int]]:
    """Which layer imports which, the lower one second, without what follows from the others."""
    direct = {(rank(path), rank(other)) for path in modules() for other in uses(path)}
    reach = {(high, low) for high, low in direct if high > low}
    for middle in range(len(LAYERS)):
        above, below = ({pair[side] for pair in reach if pair[1 - side] == middle} for side in (0, 1))
        reach |= {(high, low) for high in above for low in below}
    return sorted(
        (high, low)
        for high, low in direct
        if high > low and not any({(high, between), (between, low)} <= reach for between in range(low + 1, high))
    )


def rows() -> list[Row]:
    """The layers, the highest first."""
    found: list[Row] = []
    for layer in reversed(LAYERS):
        inside = [path for path in modules() if unit(path) in layer]
        folders = [path.stem for path in inside if path.parent != PACKAGE]
        name = f"{layer[0]}/" if folders else ", ".join(f"{one}.py" for one in layer)
        said = [told(PACKAGE / layer[0] / "__init__.py" if folders else inside[0])] if len(layer) == 1 else [""]
        listed = said + textwrap.wrap(", ".join(folders), LETTERS)
        top = found[-1].bottom + GAP if found else GAP
        found.append(Row(top, top + LINE * len(listed) + 8, name, listed, doors_among(inside)))
    return found


def told(path: Path) -> str:
    """The beginning of a module's docstring."""
    return re.split(r"[:;.]\s|\.$", (ast.get_docstring(parsed(path)) or "").splitlines()[0])[0].replace("`", "")


def doors_among(inside: list[Path]) -> str:
    """Which libraries the modules of a layer are the door to, and which of them, where not all are."""
    words = []
    for library in DOORS:
        here = [path.stem for path in inside if path in doors(library)]
        if here:
            words.append(library if len(here) == len(inside) else f"{library}: {', '.join(here)}")
    return ", ".join(words)


def box(row: Row) -> Iterator[str]:
    """One layer."""
    yield f'<rect class="box" x="{LEFT}" y="{row.top}" width="{BOX}" height="{row.bottom - row.top}" rx="4"/>'
    yield f'<text class="name" x="{LEFT + 10}" y="{row.top + LINE}">{escape(row.name)}</text>'
    for index, line in enumerate(row.listed, 1):
        kind = ' class="modules"' if index > 1 else ""
        yield f'<text{kind} x="{LEFT + NAMES}" y="{row.top + LINE * index}">{escape(line)}</text>'
    if row.doors:
        width = 6 * len(row.doors) + 14
        left, top = LEFT + BOX - width - 6, row.bottom - 21
        yield f'<rect class="door" x="{left}" y="{top}" width="{width}" height="16" rx="3"/>'
        yield f'<text class="door" x="{left + 6}" y="{row.bottom - 9}">{escape(row.doors)}</text>'


def arrow(upper: Row, lower: Row, steps: int) -> str:
    """An arrow from the lower half of one layer's edge to the upper half of another's."""
    edge, out, into = LEFT + BOX, upper.bottom - 7, lower.top + 7
    bend = edge + BEND * (steps + 1)
    curve = f'<path d="M {edge} {out} C {bend} {out} {bend} {into} {edge + 6} {into}"/>'
    return curve + f'<path class="head" d="M {edge} {into} l 8 -4 v 8 z"/>'


def picture() -> str:
    """The layers as boxes, the imports as arrows, the doors to MLflow, dask and fsspec marked: an SVG."""
    drawn = rows()
    height, width = drawn[-1].bottom + GAP, LEFT + BOX + BEND * len(LAYERS)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<title>The layers of src/tipline and what they import</title><style>{STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *(line for row in drawn for line in box(row)),
        *(arrow(drawn[-1 - high], drawn[-1 - low], high - low) for high, low in arrows()),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    print("\n".join(figures()))  # noqa: T201 (this is what it is for)
