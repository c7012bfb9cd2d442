"""Annotated parameter types, reduced to plain values: those that a command line or a YAML file can give."""

import inspect
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import AllowInfNan, ConfigDict, TypeAdapter

from attribution.checks import MAY_BE_INFINITE

PLAIN = (bool, int, float, str, type(None))
LISTS = (list, tuple, set, frozenset, Sequence, Iterable, Collection)


class Choice:
    """Placeholder for a config node that will be instantiated."""


@cache
def parameters(target: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Return the type of each named parameter of a class or function, and whether it accepts further ones (``**kwargs``).

    The type is ``Any`` if the annotation is absent or cannot be resolved.
    """
    try:
        signature = inspect.signature(target).parameters
    except ValueError:  # a function of C
        return {}, True
    hints = _hints(target)
    named = {}
    for name, parameter in signature.items():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            annotation = hints.get(name, Any)
            named[name] = Union[annotation, None] if parameter.default is None else annotation  # noqa: UP007
    return named, any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.values())


@cache
def required(target: Callable[..., Any]) -> frozenset[str]:
    """Return the names of the parameters without a default."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        parameters = inspect.signature(target).parameters.values()
    except ValueError:  # a function of C
        return frozenset()
    return frozenset(p.name for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty)


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    if is_dataclass(target):
        names = {field.name for field in fields(target)}
        source: Any = target
    else:
        source = inspect.unwrap(target.__init__ if isinstance(target, type) else target)
        names = set(inspect.signature(source).parameters)
    try:
        return {name: hint for name, hint in get_type_hints(source, include_extras=True).items() if name in names}
    except NameError:  # a name that is imported for type checkers only
        return {}


def fits(value: Any, annotation: Any) -> bool:
    """Return whether a plain value, with a :class:`Choice` for each object, has the annotated type.

    Values are not converted: text is not a number, ``True`` is not a number, and 1000.0 is not a whole number. NaN is not a number,
    and numbers are finite unless they are annotated with ``MAY_BE_INFINITE``.
    """
    return _adapter(plain(annotation)).validator.isinstance_python(value)


@cache
def _adapter(annotation: Any) -> TypeAdapter:
    return TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False))


def plain(annotation: Any) -> Any:
    """Return the annotation with lists for sequences, text for paths, values for enumerations and :class:`Choice` for objects."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in (Any, object, inspect.Parameter.empty) or isinstance(annotation, TypeVar | str):
        return Any
    if annotation is None or annotation in PLAIN or origin is Literal:
        return annotation
    if origin is Annotated:
        infinite = MAY_BE_INFINITE in arguments[1:] or AllowInfNan(True) in arguments[1:]
        return Annotated[plain(arguments[0]), AllowInfNan(True)] if infinite else plain(arguments[0])
    if origin in (Union, types.UnionType):
        return Union[tuple(plain(argument) for argument in arguments)]  # noqa: UP007
    kind = origin or annotation
    if kind is tuple and Ellipsis not in arguments and arguments:
        return list[Union[tuple(plain(argument) for argument in arguments)]]  # noqa: UP007
    if kind in LISTS:
        return list[plain(arguments[0]) if arguments else Any]
    if isinstance(kind, type) and issubclass(kind, Mapping):
        key, value = (plain(argument) for argument in arguments) if arguments else (Any, Any)
        return dict[key, value]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return Literal[tuple(member.value for member in kind)]
    if isinstance(kind, type) and issubclass(kind, PurePath):
        return str
    return Choice


def takes(annotation: Any, target: Callable[..., Any]) -> bool:
    """Return whether a parameter with this annotation takes what ``target`` builds, as far as classes tell."""
    classes = _classes(annotation)
    return not isinstance(target, type) or classes is None or issubclass(target, classes)


def class_names(annotation: Any) -> str:
    """Return the names of the classes in an annotation, as in "a Measure or a Draws"."""
    return _either([f"a {kind.__name__}" for kind in _classes(annotation) or ()])


def _classes(annotation: Any) -> tuple[type, ...] | None:
    """Return the classes of objects in an annotation; None if it also takes objects that are known by their behavior only."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _classes(arguments[0])
    if origin in (Union, types.UnionType):
        parts = [_classes(argument) for argument in arguments]
        return None if None in parts else tuple(kind for part in parts if part is not None for kind in part)
    if plain(annotation) is not Choice:
        return None if plain(annotation) is Any else ()
    kind = origin or annotation
    behavior = not isinstance(kind, type) or getattr(kind, "_is_protocol", False) or kind.__module__ == "collections.abc"
    return None if behavior else (kind,)


def describe_type(annotation: Any, many: bool = False) -> str:
    """Describe a type from :func:`plain` in words that complete "must be …"; ``many`` gives the plural."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _WORDS:
        return _WORDS[annotation][many]
    if origin is Annotated:
        return describe_type(arguments[0], many)
    if origin is Literal:
        return _either([str(value) for value in arguments])
    if origin is Union:
        kinds = [argument for argument in arguments if not (argument is int and float in arguments)]
        return _either([describe_type(kind, many) for kind in sorted(kinds, key=lambda kind: kind is type(None))])
    if origin is list:
        items = "" if arguments[0] is Any else f" of {describe_type(arguments[0], many=True)}"
        return f"lists{items}" if many else f"a list{items}"
    if origin is dict:
        return "mappings {name: value, ...}" if many else "a mapping {name: value, ...}"
    return "objects" if many else "an object: a choice of a group, or a mapping with _target_"


_WORDS = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    None: ("null", "null"),
    type(None): ("null", "null"),
    Any: ("anything", "values"),
}
"""Singular and plural."""


def _either(alternatives: Sequence[str]) -> str:
    return ", ".join(alternatives[:-1]) + " or " + alternatives[-1] if len(alternatives) > 1 else alternatives[0]


def item(annotation: Any) -> Any:
    """Return the type of a list's items if a type from :func:`plain` allows exactly one kind of list, and None otherwise."""
    kinds = get_args(annotation) if get_origin(annotation) is Union else (annotation,)
    lists = [kind for kind in kinds if get_origin(kind) is list]
    return get_args(lists[0])[0] if len(lists) == 1 else None
