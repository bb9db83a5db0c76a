"""YAML -> checked configuration.

The YAML of a run is checked against the typed signatures of the constructors it will call (see :mod:`maskgen.parts`),
every problem is reported at once with its path, the allowed values and the nearest known name, and nothing is
constructed before all is right.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal

import pydantic
import yaml

from maskgen.parts import Part, nearest, split


class ConfigError(ValueError):
    """All that is wrong with a configuration, one line a problem."""

    def __init__(self, source: str, problems: list[str]):
        self.problems = problems
        noun = "problem" if len(problems) == 1 else "problems"
        super().__init__(f"{source}: {len(problems)} {noun}\n" + "\n".join(f"  - {p}" for p in problems))


class _Loader(yaml.SafeLoader):
    """Safe YAML, with a key given twice an error (PyYAML keeps the last in silence) and 1e-4 a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(k, deep=deep) for k, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


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


def load(name: str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Read a YAML file and lay ``key.sub=value`` overrides on it; values are read as YAML."""
    path = find(name)
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"not valid YAML: {error}"]) from None
    if not isinstance(config, dict):
        raise ConfigError(str(path), [f"a mapping of settings is needed, found {type(config).__name__}"])
    for override in overrides or []:
        _override(config, override)
    return config


def _override(config: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(override, ["an override is written key.sub=value"])
    *parents, last = dotted.split(".")
    for key in parents:
        if isinstance(config.get(key), str):  # `ratio: cosine` is short for `ratio: {type: cosine}`
            config[key] = {"type": config[key]}
        config = config.setdefault(key, {})
        if not isinstance(config, dict):
            raise ConfigError(override, [f"{key!r} is a value, not a mapping, so it has no {last!r}"])
    config[last] = yaml.load(text, Loader=_Loader)


def check(constructor: Callable[..., Any], config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Check `config` as the arguments of `constructor`; return them with leaves coerced to the annotated types.

    Raises:
        ConfigError: with every problem found, nested parts included.
    """
    problems: list[str] = []
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
        else:
            names = ", ".join(allowed) or "none"
            problems.append(f"{path}{key}: unknown key; {nearest(key, allowed)}allowed: {names}")
    problems += [f"{path}{key}: is required" for key, (_, need) in allowed.items() if need and key not in config]
    return checked


def _value(annotation: Any, value: Any, path: str, problems: list[str]) -> Any:
    part = _part(annotation)
    if part is not None:
        return None if value is None and _optional(annotation) else _spec(part, value, path, problems)
    if inspect.isclass(annotation) and hasattr(annotation, "__dataclass_fields__"):
        if not isinstance(value, Mapping):
            problems.append(f"{path}: a mapping of settings is needed, found {value!r}")
            return value
        return _arguments(annotation, value, f"{path}.", (), problems)
    if annotation is str and isinstance(value, Path):
        value = str(value)
    try:
        return pydantic.TypeAdapter(annotation).validate_python(value)
    except pydantic.ValidationError as error:
        problems.append(f"{path}: {_explain(annotation, value, error)}")
        return value


def _spec(part: Part, value: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(value, (str, Mapping)):
        problems.append(f"{path}: a name or a mapping with 'type' is needed, found {value!r}")
        return value
    name, arguments = split(value, part.default)
    names = ", ".join(part.table)
    if name is None:
        problems.append(f"{path}.type: is required; allowed: {names}")
        return value
    if name not in part.table:
        problems.append(f"{path}: unknown {name!r}; {nearest(name, part.table)}allowed: {names}")
        return value
    return {"type": name, **_arguments(part.table[name], arguments, f"{path}.", part.given, problems)}


def _part(annotation: Any) -> Part | None:
    """The Part in an annotation, also inside ``... | None``."""
    for a in (annotation, *typing.get_args(annotation)):
        if typing.get_origin(a) is Annotated:
            return next((m for m in a.__metadata__ if isinstance(m, Part)), None)
    return None


def _optional(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, UnionType) and NoneType in typing.get_args(annotation)


def _explain(annotation: Any, value: Any, error: pydantic.ValidationError) -> str:
    if typing.get_origin(annotation) is Literal:
        allowed = [str(a) for a in typing.get_args(annotation)]
        return f"{value!r} is not allowed; {nearest(value, allowed)}allowed: {', '.join(allowed)}"
    messages = dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in error.errors())
    return f"{value!r}: {'; or '.join(messages)}"
