"""Identities: what a value is, as plain JSON, and the fingerprint of that.

A class of ``attribution`` or ``experiments`` is identified by its NAME and VERSION, which do not depend on where it is defined. An
installed class is identified by its public name (``torch.optim.AdamW``), and a user's class by its name and its source code.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import types
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attribution.nodes.source import in_project, is_installed, lambda_source, public_name, qualified_name, source_digest

SOURCE = "source code"
"""Key of the digest of a user's code in a description. It has a space so that no field can have its name."""


def execution(**kwargs: Any) -> Any:
    """A dataclass field that says how something is computed. It is not part of the identity."""
    return dataclasses.field(metadata={"identity": False}, **kwargs)


def added(**kwargs: Any) -> Any:
    """A dataclass field that was added to a class after results were stored. Give ``default`` or ``default_factory``.

    The field is left out of the description while it has its default, so older results keep their fingerprints.

    Raises:
        TypeError: no default is given.
    """
    if not kwargs.keys() & {"default", "default_factory"}:
        raise TypeError("a field that is added to a class needs a default: the value that older results were computed with")
    return dataclasses.field(metadata={"added": True}, **kwargs)


def describe(value: Any) -> Any:
    """The identity of a value as plain JSON. An object may describe itself by a method ``description()``.

    Raises:
        TypeError: the content of a value of this type is not known, or a class of the project has no NAME.
        ValueError: the source of a user's class or function cannot be read.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, np.generic):
        return describe(value.item())
    if isinstance(value, Enum | Path):
        return str(value)
    if isinstance(value, type):
        return public_name(value) if is_installed(value) else class_identity(value)
    if (described := getattr(value, "described", None)) is not None:
        return described
    if callable(method := getattr(value, "description", None)):
        return method()
    if dataclasses.is_dataclass(value):
        return {**class_identity(type(value)), **describe_fields(value)}
    if isinstance(value, functools.partial):
        return {"call": describe(value.func), "args": describe(value.args), "keywords": describe(value.keywords)}
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, Sequence):
        return [describe(v) for v in value]
    if isinstance(value, torch.Tensor | np.ndarray):
        return {"sha256": digest(np.asarray(value)), "shape": list(value.shape)}
    if isinstance(value, types.MethodType):
        return {"method": value.__func__.__name__, "of": describe(value.__self__)}
    if inspect.isroutine(value) or isinstance(value, np.ufunc):
        return public_name(value) if is_installed(value) else _function_identity(value)
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be part of an identity: use plain values and dataclasses")


def describe_fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass instance that are part of its identity, as plain JSON."""
    described = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value) if f.metadata.get("identity", True)}
    for field in dataclasses.fields(value):
        if field.metadata.get("added") and described[field.name] == describe(_default(field)):
            del described[field.name]
    return described


def class_identity(kind: type) -> dict[str, Any]:
    """The identity of a class: ``class``, ``version`` if it has one, and the digest of its source if a user wrote it.

    Raises:
        TypeError: a class of ``attribution`` or ``experiments`` has no NAME, or another class has the same NAME.
        ValueError: the source of a user's class cannot be read.
    """
    version = {"version": kind.VERSION} if hasattr(kind, "VERSION") else {}
    if is_installed(kind):
        return {"class": public_name(kind), **version}
    name = kind.__dict__.get("NAME")
    if name is not None:
        _claim(name, qualified_name(kind))
    if in_project(kind):
        if name is None:
            raise TypeError(
                f"{kind.__module__}.{kind.__qualname__} is part of an identity: give it a NAME and a VERSION of its own"
            )
        return {"class": name, **version}
    return {"class": name or qualified_name(kind), **version, SOURCE: source_digest(kind), **_captured(*_methods(kind))}


def short_name(kind: type) -> str:
    """The NAME of a class, or the name in its definition if it has none of its own."""
    return kind.__dict__.get("NAME") or kind.__name__


def key(*parts: Any) -> str:
    """Return a string key for values that several nodes share. Nodes are represented by their fingerprints."""
    return json.dumps([getattr(part, "fingerprint", None) or describe(part) for part in parts], sort_keys=True)


def fingerprint_of(description: Any) -> str:
    """20 hexadecimal digits of the SHA-256 of a description."""
    return hashlib.sha256(json.dumps(description, sort_keys=True, allow_nan=True).encode()).hexdigest()[:20]


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 over dtypes, shapes and contents."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


_claimed: dict[str, str] = {}
"""Where each NAME that entered an identity is defined."""


def _claim(name: str, definition: str) -> None:
    if (first := _claimed.setdefault(name, definition)) != definition:
        raise TypeError(f"{first} and {definition} have the same NAME = {name!r}: give one of them another NAME")


def _function_identity(function: Callable[..., Any]) -> dict[str, Any]:
    name = qualified_name(function)
    if in_project(function):
        raise TypeError(f"the function {name} has no version: make it a dataclass with a NAME and a VERSION")
    identity = {"function": name, SOURCE: source_digest(function)}
    if "<" not in name:  # defined at the top of a module or in a class: its source says everything
        return identity
    expression = {"lambda": lambda_source(function)} if name.endswith("<lambda>") else {}
    defaults = describe([getattr(function, "__defaults__", None), getattr(function, "__kwdefaults__", None)])
    return {**identity, **expression, "defaults": defaults, **_captured(function)}


def _methods(kind: type) -> list[Any]:
    """Methods of a class that was defined within a function, and may use that function's variables."""
    if "<locals>" not in kind.__qualname__:
        return []
    defined = (value for value in vars(kind).values() if isinstance(value, types.FunctionType))
    return [method for method in defined if Path(method.__code__.co_filename).is_file()]  # not those that dataclass generates


def _captured(*functions: Any) -> dict[str, Any]:
    """The variables of enclosing functions that ``functions`` use: ``{}``, or ``closure`` with their descriptions."""
    variables = {}
    for function in functions:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name != "__class__" and cell.cell_contents not in functions:
                variables[name] = describe(cell.cell_contents)
    return {"closure": variables} if variables else {}


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
