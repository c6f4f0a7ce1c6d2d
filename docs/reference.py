"""Write docs/reference.md, the reference of settings, commands, stages and variables, from the code.

python docs/reference.py
"""

from __future__ import annotations

import argparse
import re
import types
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel

from tipline import cli, errors
from tipline.config import Settings, check_month

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pydantic.fields import FieldInfo

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference.md"

HEAD = """# Reference

<!-- Written by docs/reference.py; a test holds it against the code. Do not edit it. -->

Settings, commands, stages, files and environment variables, as the code has them. [../README.md](../README.md) and the
other pages say what they are for.
"""

# Variables that tipline reads itself, by what they do; a test holds the list against the source.
VARIABLES = {
    "DASK_SCHEDULER_ADDRESS": "scores and studies on that dask cluster instead of one of its own (cluster.md)",
    "DVC_EXP_NAME": "set by DVC: the experiment, which runs and versions are tagged with",
    "DVC_ROOT": "set by DVC: the project that an experiment in a copy belongs to; store and relative sources are there",
    "DVC_STAGE": "set by DVC: the stage, a tag of MLflow's runs",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "seconds that a server of MLflow is waited for; MLflow reads it too",
    "MLFLOW_TRACKING_URI": "MLflow's store; default: `sqlite:///mlflow.db` in the project's folder (team.md)",
    "MLFLOW_TRACKING_USERNAME": "who you are to MLflow's server, and in models/promotions.jsonl",
    "PATH": "`tipline month` puts its own environment before it, for the stages",
    "TIPLINE_DEBUG": "set to anything: a defect shows its stack trace",
}
# Variables that the libraries below tipline read.
OTHERS = {
    "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_ENDPOINT_URL": "S3's keys and its address, for months, "
    "predictions, DVC and MLflow",
    "FSSPEC_HTTP, FSSPEC_S3_ANON": "options of https sources, a token say, as JSON; `true` reads a public bucket",
    "MLFLOW_TRACKING_PASSWORD": "the password that belongs to the user's name",
}


def page() -> str:
    """The whole reference."""
    parts = [HEAD, *settings(), *commands(), *stages(), *variables()]
    return "\n".join(parts)


# ---- settings ----


def settings() -> Iterator[str]:
    """params.yaml: a table a section."""
    yield "## params.yaml\n"
    yield "Every key has to be there; an unknown one is an error that names the nearest. *Here* is what the"
    yield "repository's own file has. *Runs again* are the stages that depend on the key; those after them follow where"
    yield "what they read has changed by it. `params`, the check, runs with every change.\n"
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    yield from section("", Settings, values)


def section(prefix: str, model: type[BaseModel], values: Mapping[str, Any]) -> Iterator[str]:
    """The table of a section's own keys, then its sections."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    below = {name: field.annotation for name, field in fields.items() if is_section(field.annotation)}
    if prefix:
        yield f"### {prefix.removesuffix('.')}\n"
        yield f"{(model.__doc__ or '').splitlines()[0]}\n"
    rows = [row(prefix + name, field, values[name]) for name, field in fields.items() if name not in below]
    yield from table(("key", "what it is", "allowed", "here", "runs again"), rows)
    for name, inner in below.items():
        yield from section(f"{prefix}{name}.", typing.cast("type[BaseModel]", inner), values[name])


def is_section(annotation: Any) -> bool:  # noqa: ANN401 (whatever stands behind a key)
    """Whether a key holds keys of its own."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def row(key: str, field: FieldInfo, value: object) -> list[str]:
    """A key's line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).removesuffix("...\n").strip()
    here = "empty" if value is None else f"`{text}`"
    return [f"`{key}`", str(field.description), allowed(field), here, ", ".join(run_again(key)) or "none"]


def allowed(field: FieldInfo) -> str:
    """Type and bounds of a key."""
    signs, limits = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}, field.metadata
    bounds = [
        f"{sign} {getattr(item, name):,}" for item in limits for name, sign in signs.items() if hasattr(item, name)
    ]
    empty = ["not empty"] if any(hasattr(item, "min_length") for item in limits) else []
    return ", ".join([type_name(field.annotation), *bounds, *empty])


NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "empty", Any: "anything"}


def type_name(annotation: Any) -> str:  # noqa: ANN401 (see above)
    """A type in words."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return "month" if any(getattr(item, "func", None) is check_month for item in inner) else type_name(inner[0])
    if origin is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in inner)
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(type_name(part) for part in inner)
    if origin is tuple:
        return f"list of {type_name(inner[0])}".replace("of month", "of months")
    if origin is dict:
        return f"mapping of {type_name(inner[0])} to {type_name(inner[1])}"
    return NAMES[annotation]


def run_again(key: str) -> list[str]:
    """The stages that depend on a key of params.yaml, or on a part of it, in the order of dvc.yaml."""
    return [name for name, stage in pipeline().items() if any(touches(key, param) for param in used(stage))]


def used(stage: Mapping[str, Any]) -> Iterator[str]:
    """What of params.yaml a stage depends on: its `params`, and what it is repeated for or named by."""
    yield from (param for param in body(stage).get("params", []) if isinstance(param, str))
    yield from re.findall(r"\$\{([\w.]+)\}", str({**body(stage), "foreach": stage.get("foreach", "")}))


def touches(key: str, param: str) -> bool:
    """Whether one of two keys is the other or has it inside."""
    return f"{key}.".startswith(f"{param}.") or f"{param}.".startswith(f"{key}.")


# ---- commands ----


def commands() -> Iterator[str]:
    """The command line: a heading a command."""
    yield "## Commands\n"
    yield "Stages first, as `dvc repro` calls them; then what a person needs beside them. `-h` shows the same.\n"
    parser = cli.parser()
    listed = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))  # noqa: SLF001
    for name, command in listed.choices.items():
        yield f"### tipline {name}\n"
        usage = " ".join(command.format_usage().removeprefix("usage: ").split())
        yield f"{sentence(command.description)}\n\n```\n{usage}\n```\n"
        yield from table(("argument", "what it is"), [argument(action) for action in given(command)])
    yield "### Exit codes\n"
    yield from table(("code", "meaning"), [[str(code), words] for code, words in exit_codes().items()])
    yield "`dvc repro` prints what a stage says, and ends with 255 itself."


def given(command: argparse.ArgumentParser) -> list[argparse.Action]:
    """A command's arguments, `--help` apart."""
    return [action for action in command._actions if action.dest != "help"]  # noqa: SLF001


def argument(action: argparse.Action) -> list[str]:
    """An argument's line."""
    shown = action.metavar or action.dest
    shown = " ".join(shown) if isinstance(shown, tuple) else shown
    return [f"`{' '.join([*action.option_strings, shown])}`", str(action.help)]


def sentence(text: str | None) -> str:
    """A phrase as a sentence."""
    return f"{(text or '')[:1].upper()}{(text or '')[1:]}."


def exit_codes() -> dict[int, str]:
    """What each exit code says, by the errors that have it."""
    # Others may share its code: the general one has the last word.
    kinds: list[type[errors.TiplineError]] = [*errors.TiplineError.__subclasses__(), errors.TiplineError]
    words = {kind.exit_code: (kind.__doc__ or "").splitlines()[0].rstrip(".") for kind in kinds}
    return {0: "Done", **dict(sorted(words.items())), cli.INTERRUPTED: "Interrupted by Ctrl-C"}


# ---- stages ----


def pipeline() -> dict[str, dict[str, Any]]:
    """The stages of dvc.yaml."""
    stages: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    return stages


def body(stage: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stage's definition, without `foreach`."""
    found: Mapping[str, Any] = stage.get("do", stage)
    return found


def stages() -> Iterator[str]:
    """What each stage reads and writes."""
    yield "\n## Stages\n"
    yield "`dvc repro STAGE` runs one and all that it needs; `dvc repro STAGE@2009-01` that of one month. The code that"
    yield "a stage depends on is left out here; dvc.yaml lists it.\n"
    found = pipeline().items()
    rows = [[f"`{name}`", often(stage), names(reads(stage)), names(writes(stage))] for name, stage in found]
    yield from table(("stage", "runs", "reads", "writes"), rows)


def often(stage: Mapping[str, Any]) -> str:
    """How often a stage runs."""
    if body(stage).get("always_changed"):
        return "each time"
    return "by month" if "foreach" in stage else "for all at once"


def reads(stage: Mapping[str, Any]) -> list[str]:
    """A stage's files, code apart; a key of a json file as `file: key`."""
    files = [str(dep) for dep in body(stage).get("deps", []) if not str(dep).startswith("src/")]
    keys = [param for param in body(stage).get("params", []) if isinstance(param, dict)]
    return [*files, *(f"{file}: {key}" for param in keys for file, found in param.items() for key in found)]


def writes(stage: Mapping[str, Any]) -> list[str]:
    """What a stage makes."""
    made = [*body(stage).get("outs", []), *body(stage).get("metrics", [])]
    return [next(iter(out)) if isinstance(out, dict) else str(out) for out in made]


def names(files: Iterable[str]) -> str:
    """Files in a cell, months and roles in words."""
    words = {"${item}/${key}": "ROLE/MONTH", "${item}": "MONTH", "${key}": "MONTH", "${schema}": "the schema"}
    text = ", ".join(f"`{file}`" for file in files)
    for old, new in words.items():
        text = text.replace(old, new)
    return text.replace("`the schema`", "the schema") or "MLflow's store"


# ---- variables ----


def variables() -> Iterator[str]:
    """The environment."""
    yield "## Environment variables\n"
    yield from table(("variable", "what it does"), [[f"`{name}`", text] for name, text in sorted(VARIABLES.items())])
    yield "Read by the libraries below tipline, and worth knowing:\n"
    yield from table(("variable", "what it does"), [[f"`{name}`", text] for name, text in OTHERS.items()])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of Markdown, none for no rows."""
    if not rows:
        return
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    yield from (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page().rstrip() + "\n", encoding="utf-8")
