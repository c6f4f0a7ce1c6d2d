"""Read YAML files into frozen pydantic models and report all mistakes in one message."""

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from tipline.errors import UsageError, join_lines, shorten_text

Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    """A part of a YAML file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def validate_values(values: Mapping[str, Any], model: type[Model], path: Path) -> Model:
    """Validate what a file holds; raise a UsageError that names every mistake."""
    try:
        # As JSON, because strict Python input would refuse a list where a tuple is expected.
        return model.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        # A list is also called too short if a value in it was refused.
        found = [dict(one) for one in error.errors() if not (one["type"] == "too_short" and one["input"])]
        what = "; ".join(explain_problem(problem, model) for problem in found)
        what += "" if what.endswith("?") else "."
        raise UsageError(what, str(path), "Correct the file and run the command again.") from None
    except (TypeError, ValueError) as error:  # a key that is a list, an alias that contains itself
        what = f"The file cannot be read: {join_lines(error)}."
        raise UsageError(what, str(path), "Write plain keys and values, without aliases (* and &).") from None


def read_mapping(path: Path, missing: str) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping; `missing` says what to do if there is no such file.

    DVC's own parser, which reads the same file, so that 1e-3 is a number for both and a repeated key is refused.
    """
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(f"There is no {path.name}.", str(path), missing) from None
    except MarkedYAMLError as error:
        mark, what = error.problem_mark or error.context_mark, str(error.problem or error.context)
        what = what.partition(" with value")[0]  # a repeated key's value may be long
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        hint = " Does a merge conflict stand there?" if mark and has_conflict(path) else ""
        raise UsageError(f"The file is not valid YAML: {what}.{hint}", where, "Correct the line.") from None
    except RecursionError:
        raise UsageError("The file is nested too deeply.", str(path), "Write it as `key: value` lines.") from None
    except (YAMLError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"The file is not valid YAML: {join_lines(error)}.", str(path), "Correct the line.") from None
    if not isinstance(values, dict):
        raise UsageError("The file is not a mapping of sections.", str(path), "Write it as `key: value` lines.")
    return values


def has_conflict(path: Path) -> bool:
    """Whether git has left the markers of a merge conflict in a file."""
    return bool(re.search(r"^(<{7}|>{7}) ", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE))


def explain_problem(problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    """Shorten pydantic's message; an unknown key comes with the nearest known one."""
    # Positions in a list are left out, because the message names the value.
    location = ".".join(part for part in problem["loc"] if isinstance(part, str) and part != "[key]")
    kind, value, message = problem["type"], problem["input"], problem["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(location.split(".")[-1], list_known_keys(model, problem["loc"][:-1]), 1, 0.4)
        return f"unknown key {location}" + (f", did you mean {near[0]}?" if near else "")
    if kind == "missing":
        return f"the key {location} is missing"
    if kind == "tuple_type":
        return f"{location} has to be a list with one value per line, as `- value`"
    if kind in {"too_short", "string_too_short"}:
        return f"{location} must not be empty"
    if message.startswith("Input should be "):
        hint = ": put it in quotes" if kind == "string_type" and value is not None else ""
        shown = "empty" if value is None else shorten_text(json.dumps(value, ensure_ascii=False))
        return f"{location} has to be {message.removeprefix('Input should be ')}, not {shown}{hint}"
    return f"{location}: {message}" if location else message


def list_known_keys(model: Any, location: tuple[Any, ...]) -> list[str]:  # noqa: ANN401 (a model, or a mapping to models)
    section = model
    for part in location:
        if hasattr(section, "model_fields"):
            section = {field.alias or name: field.annotation for name, field in section.model_fields.items()}[part]
        else:
            section = get_args(section)[-1]
    return [field.alias or name for name, field in section.model_fields.items()]
