"""YAML -> checked configuration.

The YAML of a run is checked against the typed signatures of the constructors that it calls (see
:mod:`maskgen.registry`). Every problem is reported at once, with its path, the allowed values and the nearest known
name. Nothing is constructed before the whole configuration is valid.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal

import pydantic
import yaml

from maskgen.registry import Nested, Part, nearest, split
from maskgen.renamed import new_name


class ConfigError(ValueError):
    """All that is wrong with a configuration, one line a problem."""

    def __init__(self, source: str, problems: list[str]):
        self.problems = problems
        noun = "problem" if len(problems) == 1 else "problems"
        super().__init__(f"{source}: {len(problems)} {noun}\n" + "\n".join(f"  - {p}" for p in problems))


class Config(dict[str, Any]):
    """Settings as read, and what was wrong with their writing: :func:`check` reports it with all the rest."""

    def __init__(self, settings: Mapping[str, Any], problems: list[str]):
        super().__init__(settings)
        self.problems = problems


class _Loader(yaml.SafeLoader):
    """Safe YAML with 1e-4 a number and keys given twice noted (PyYAML keeps the last in silence)."""

    def __init__(self, stream: str):
        super().__init__(stream)
        self.problems: list[str] = []

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key in (k for k, _ in node.value if isinstance(k, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                self.problems.append(f"line {key.start_mark.line + 1}: key {key.value!r} is given twice; remove one")
            seen.add((key.tag, key.value))
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse(text: str) -> tuple[Any, list[str]]:
    """The value of a piece of YAML and all that is wrong with it; the value is None where it cannot be read."""
    try:
        loader = _Loader(text)
        return loader.get_single_data(), loader.problems
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        what = ", ".join(filter(None, (error.context, error.problem)))
        return None, [f"not valid YAML: {what}{where}" + ("; indent with spaces" if "\\t" in what else "")]
    except yaml.YAMLError as error:
        return None, [f"not valid YAML: {' '.join(str(error).split())}"]


def configs_folder() -> Path:
    """The YAML files that come with maskgen: inside an installed package, at the top of a checkout."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "configs"


def find(name: str) -> Path:
    """A configuration by path or by its name below ``configs/`` (``generation/emoji``).

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    folder = configs_folder()
    for path in (Path(name), folder / name, folder / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))
    raise ConfigError(name, [f"no such file; {nearest(name, known)}maskgen comes with: {', '.join(known)}"])


def load(name: str, overrides: list[str] | None = None) -> Config:
    """Read a YAML file and lay ``key.sub=value`` overrides on it; values are read as YAML.

    Raises:
        ConfigError: no such file, or no mapping in it. Keys given twice and overrides that make no sense are left in
            `problems` for :func:`check`.
    """
    path = find(name)
    try:
        settings, problems = parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [f"not a text file in UTF-8: {error}"]) from None
    if not isinstance(settings, dict):
        found = "the file is empty" if settings is None else f"found a {type(settings).__name__}"
        raise ConfigError(str(path), problems or [f"a mapping of settings (key: value) is needed, {found}"])
    return override(Config(settings, problems), overrides or [])


def override(config: Config, overrides: Sequence[str]) -> Config:
    """Lay ``key.sub=value`` overrides on a configuration, which changes."""
    for text in overrides:
        config.problems += _override(config, text)
    return config


def _override(config: dict[str, Any], override: str) -> list[str]:
    """Lay one override on `config`; give what is wrong with it."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        return [f"{override}: an override is written key.sub=value"]
    value, problems = parse(text)
    *parents, last = dotted.split(".")
    for depth, key in enumerate(parents, start=1):
        if isinstance(config.get(key), str):  # `ratio: cosine` is short for `ratio: {type: cosine}`
            config[key] = {"type": config[key]}
        elif config.get(key) is None:
            config[key] = {}
        config = config[key]
        if not isinstance(config, dict):
            return [f"{override}: {'.'.join(parents[:depth])} is a value, not a mapping, so it has no {last!r}"]
    if not problems:
        config[last] = value
    return [f"{override}: {problem}" for problem in problems]


def check(constructor: Callable[..., Any], config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Check `config` as the arguments of `constructor`; return them, leaves coerced to the annotated types.

    Raises:
        ConfigError: with every problem found, nested parts included.
    """
    problems = list(getattr(config, "problems", []))
    checked = _arguments(constructor, config, "", (), problems)
    if problems:
        raise ConfigError(source, problems)
    return checked


def parameters(constructor: Callable[..., Any]) -> dict[str, tuple[Any, bool]]:
    """Each argument of `constructor`: its annotation, and whether it must be given."""
    bound: dict[str, Any] = {}
    target = constructor
    if isinstance(constructor, partial):
        target, bound = constructor.func, constructor.keywords
    function = target.__init__ if inspect.isclass(target) else target
    hints = typing.get_type_hints(function, include_extras=True)
    return {
        name: (hints.get(name, Any), p.default is inspect.Parameter.empty)
        for name, p in inspect.signature(constructor).parameters.items()
        if name not in bound and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }


def _arguments(
    constructor: Callable[..., Any],
    config: Mapping[str, Any],
    path: str,
    given: tuple[str, ...],
    problems: list[str],
) -> dict[str, Any]:
    allowed = {k: v for k, v in parameters(constructor).items() if k not in given}
    checked = {}
    for key, value in config.items():
        if key in allowed:
            checked[key] = _value(allowed[key][0], value, f"{path}{key}", problems)
        elif key in given:
            problems.append(f"{path}{key}: is known from the other parts of the run; remove it")
        elif (renamed := new_name(constructor, str(key))) is not None:
            new = renamed if renamed.startswith("stage.") else f"{path}{renamed}"
            problems.append(f"{path}{key}: is now called {new}; rename it")
        else:
            names = ", ".join(allowed) or "none"
            problems.append(f"{path}{key}: unknown key; {nearest(key, allowed)}allowed: {names}")
    problems += [f"{path}{key}: is required" for key, (_, need) in allowed.items() if need and key not in config]
    return checked


def _value(annotation: Any, value: Any, path: str, problems: list[str]) -> Any:
    part = _part(annotation)
    if part is not None and typing.get_origin(annotation) is Sequence:
        if not isinstance(value, list):
            problems.append(f"{path}: a list of parts is needed ([{{type: NAME}}, ...]), found {value!r}")
            return value
        return [_spec(part, item, f"{path}[{i}]", problems) for i, item in enumerate(value)]
    if part is not None:
        return None if value is None and _optional(annotation) else _spec(part, value, path, problems)
    nested = _marked(annotation, Nested)
    if nested is not None:
        if not isinstance(value, Mapping):
            problems.append(f"{path}: a mapping of settings is needed, found {value!r}")
            return value
        return _arguments(nested.kind, value, f"{path}.", nested.given, problems)
    if inspect.isclass(annotation) and hasattr(annotation, "__dataclass_fields__"):
        if not isinstance(value, Mapping):
            problems.append(f"{path}: a mapping of settings is needed, found {value!r}")
            return value
        return _dataclass(annotation, value, path, problems)
    if annotation is str and isinstance(value, Path):
        value = str(value)
    try:
        checked = pydantic.TypeAdapter(annotation).validate_python(value)
    except pydantic.ValidationError as error:
        problems.append(f"{path}: {_explain(annotation, value, error)}")
        return value
    if isinstance(value, bool) and isinstance(checked, (int, float)) and not isinstance(checked, bool):
        problems.append(f"{path}: {value!r}: input should be a number")  # pydantic takes true for 1
    return checked


def _dataclass(kind: Callable[..., Any], value: Mapping[str, Any], path: str, problems: list[str]) -> Any:
    """The dataclass of these fields; where each is right, it may have something against them itself."""
    found = len(problems)
    checked = _arguments(kind, value, f"{path}.", (), problems)
    if len(problems) == found:
        try:
            return kind(**checked)
        except ValueError as error:
            problems += str(error).splitlines()
    return checked


def _spec(part: Part, value: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(value, (str, Mapping)):
        problems.append(f"{path}: a name or a mapping with 'type' is needed, found {value!r}")
        return value
    name, arguments = split(value, part.default)
    names = ", ".join(part.table)
    if name is None:
        problems.append(f"{path}.type: is required; allowed: {names}")
        return value
    if not isinstance(name, str) or name not in part.table:
        problems.append(f"{path}: unknown {name!r}; {nearest(name, part.table)}allowed: {names}")
        return value
    return {"type": name, **_arguments(part.table[name], arguments, f"{path}.", part.given, problems)}


def _part(annotation: Any) -> Part | None:
    """The Part in an annotation, also inside ``... | None`` and ``Sequence[...]``."""
    return _marked(annotation, Part)


def _marked(annotation: Any, kind: type) -> Any:
    """The mark of this kind in an annotation, or None."""
    for a in (annotation, *typing.get_args(annotation)):
        if typing.get_origin(a) is Annotated:
            return next((m for m in a.__metadata__ if isinstance(m, kind)), None)
    return None


def _optional(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, UnionType) and NoneType in typing.get_args(annotation)


def _explain(annotation: Any, value: Any, error: pydantic.ValidationError) -> str:
    if typing.get_origin(annotation) is Literal:
        allowed = [str(a) for a in typing.get_args(annotation)]
        return f"{value!r} is not allowed; {nearest(value, allowed)}allowed: {', '.join(allowed)}"
    messages = []
    for e in error.errors():
        item = f"item {e['loc'][-1] + 1}: " if e["loc"] and isinstance(e["loc"][-1], int) else ""
        messages.append(item + e["msg"][0].lower() + e["msg"][1:])
    return f"{value!r}: {'; or '.join(dict.fromkeys(messages))}"
