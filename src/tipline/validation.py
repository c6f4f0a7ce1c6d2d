"""YAML files that a person writes, read into frozen pydantic models; what is wrong with them is said in one message."""

from __future__ import annotations

import difflib
import json
import re
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tipline.errors import UsageError, shorten_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Model = TypeVar("Model", bound=BaseModel)

# What pydantic says of a value -> what the value has to be.
WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "literal_error": "{expected}",
    "greater_than_equal": "{ge:,.10g} or more",
    "greater_than": "above {gt:,.10g}",
    "less_than_equal": "{le:,.10g} at most",
    "less_than": "below {lt:,.10g}",
}


class Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, where YAML would silently take the last; 1e-3 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        """The mapping of a node."""
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                problem = f"the key {key!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# PyYAML takes 1e-3 for text, as YAML 1.1 did; DVC, which reads and writes the same file, takes it for a number.
POWER_OF_TEN = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
Loader.add_implicit_resolver("tag:yaml.org,2002:float", POWER_OF_TEN, list("-+.0123456789"))


def load_yaml(path: Path, model: type[Model], absent: str) -> Model:
    """Read and check a file.

    Parameters
    ----------
    absent
        What to do where there is no such file.

    Raises
    ------
    UsageError
        Naming each thing that is wrong.
    """
    values = read_mapping(path, absent)
    try:
        # As json, because strict python input would refuse a list where a tuple is asked for.
        return model.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        told = [explain(dict(problem), model) for problem in error.errors() if not is_an_echo(dict(problem))]
        what = "; ".join(told)
        what += "" if what.endswith("?") else "."
        raise UsageError(what, str(path), "Correct the file and run it again.") from None


def read_mapping(path: Path, absent: str) -> dict[str, Any]:
    """The file as a mapping."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506 (a SafeLoader)
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(f"There is no {path.name}.", str(path), absent) from None
    except yaml.MarkedYAMLError as error:
        mark, what = error.problem_mark or error.context_mark, error.problem or error.context
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        raise UsageError(f"The file is not valid YAML: {what}.", where, "Correct the line.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        what = f"The file is not valid YAML: {' '.join(str(error).split())}."
        raise UsageError(what, str(path), "Correct the line.") from None
    if not isinstance(values, dict):
        raise UsageError("The file is not a mapping of sections.", str(path), "Write it as `key: value` lines.")
    return values


def is_an_echo(problem: Mapping[str, Any]) -> bool:
    """Whether a list is called too short only because a value in it was refused."""
    return bool(problem["type"] == "too_short" and problem["input"])


def explain(problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One problem that pydantic found, in words, with the nearest known key for an unknown one."""
    # Places in a list are left out: the value itself is named.
    location = ".".join(part for part in problem["loc"] if isinstance(part, str) and part != "[key]")
    kind, bounds = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(location.split(".")[-1], known_keys(model, problem["loc"][:-1]), 1, 0.4)
        return f"unknown key {location}" + (f", did you mean {near[0]}?" if near else "")
    if kind == "missing":
        return f"the key {location} is missing"
    if kind in {"too_short", "string_too_short"}:
        return f"{location} must not be empty"
    if kind in WANTED:
        return f"{location} has to be {WANTED[kind].format(**bounds)}, not {written(problem['input'], kind)}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{location}: {message}" if location else message


def written(value: object, kind: str) -> str:
    """What stands in the file, and what is to be done about quotes where these are what is wrong."""
    if isinstance(value, str) and kind in {"int_type", "float_type"} and re.fullmatch(r"[-+.\deE]*\d", value):
        return f"the text {value!r}: take the quotes off"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f"{json.dumps(value)}: put it in quotes"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a mapping"
    return "empty" if value is None else shorten_text(repr(value) if isinstance(value, str) else json.dumps(value))


def known_keys(model: Any, location: tuple[Any, ...]) -> list[str]:  # noqa: ANN401 (a model, or a mapping to models)
    """The keys that a file may have at a place."""
    section = model
    for part in location:
        if hasattr(section, "model_fields"):
            section = {field.alias or name: field.annotation for name, field in section.model_fields.items()}[part]
        else:
            section = get_args(section)[-1]
    return [field.alias or name for name, field in section.model_fields.items()]
