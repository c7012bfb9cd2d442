"""The source code of users' classes and functions, and the names of installed ones.

A network or a data source that a user wrote changes whenever its code does, so its identity includes a digest of that code: the
syntax tree of its module, and of every module that this one imports, without comments, docstrings and formatting. Three kinds of
modules are excluded. ``attribution`` and ``experiments`` have versions of their own; packages in site-packages and the standard
library are identified by name. Imports are read from the syntax tree, so a module that is imported by a computed name
(``importlib.import_module(name)``) is excluded too.
"""

import ast
import functools
import hashlib
import importlib.util
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

PROJECT = ("attribution", "experiments")
"""Packages whose classes carry a NAME and a VERSION."""

_INSTALLED = {"site-packages", "dist-packages"}
_DEFINITIONS = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def in_project(value: Callable[..., Any]) -> bool:
    """Return whether a class or function belongs to ``attribution`` or ``experiments``."""
    return (value.__module__ or "").split(".")[0] in PROJECT


def is_installed(value: Callable[..., Any]) -> bool:
    """Return whether a class or function comes from site-packages or the standard library."""
    name, file = _module_of(value), getattr(sys.modules.get(_module_of(value)), "__file__", None)
    if file and _in_site_packages(file):
        return True
    # Classes that exec or make_dataclass made may claim to come from the standard library: builtins, types.
    first, *nested = getattr(value, "__qualname__", value.__name__).split(".")
    original = _attribute(name, first) if name in sys.modules else None
    return _installed(name, file) and original is not None and (bool(nested) or original is value)


def public_name(value: Callable[..., Any]) -> str:
    """The shortest path from which an installed class or function can be imported, e.g. ``torch.optim.AdamW``."""
    module, name = _module_of(value), getattr(value, "__qualname__", value.__name__)
    if _attribute(module, value.__name__) is value:  # torch.tanh calls itself _VariableFunctionsClass.tanh
        name = value.__name__
    if module == "builtins":
        return name
    first, parts = name.split(".")[0], module.split(".")
    target = _attribute(module, first)
    packages = [".".join(parts[: length + 1]) for length in range(len(parts))]
    home = next((package for package in packages if target is not None and _attribute(package, first) is target), module)
    return f"{home}.{name}"


def qualified_name(value: Callable[..., Any]) -> str:
    """Module and name of a user's class or function. A script has the same name whether it is run or imported."""
    module = value.__module__
    if module == "__main__":
        main = sys.modules["__main__"]
        module = main.__spec__.name if main.__spec__ else Path(getattr(main, "__file__", None) or "__main__").stem
    return f"{module}.{value.__qualname__}"


def source_digest(value: Callable[..., Any]) -> str:
    """SHA-256 of the code that defines a user's class or function: its module and the modules that this one imports.

    Raises:
        ValueError: the source cannot be read, e.g. because the class was typed at a prompt or made by ``exec``.
    """
    file = getattr(sys.modules.get(value.__module__), "__file__", None)
    path = Path(file) if file else None
    if path is None or path.suffix != ".py" or not path.is_file() or not _defined(path, value.__qualname__):
        raise ValueError(
            f"the source of {value.__module__}.{value.__qualname__} cannot be read, so a change of its code would go unnoticed: "
            "put it into a Python file and import it from there"
        )
    return _digest(path, _package(value.__module__, path))


def lambda_source(function: Any) -> str:
    """The code of a lambda, without comments and formatting.

    Raises:
        ValueError: several lambdas share the line.
    """
    path, line = Path(sys.modules[function.__module__].__file__ or ""), function.__code__.co_firstlineno
    lambdas = {ast.unparse(node) for node in ast.walk(_tree(path)) if isinstance(node, ast.Lambda) and node.lineno == line}
    if len(lambdas) != 1:
        raise ValueError(f"{path.name} line {line} has {len(lambdas)} different lambdas: define the function with def")
    return lambdas.pop()


def _module_of(value: Any) -> str:
    if value.__module__ is not None:
        return value.__module__
    owner = getattr(value, "__self__", None)  # builtin functions of C extensions, such as torch.tanh
    return getattr(owner if isinstance(owner, type) else type(owner), "__module__", "builtins")


def _attribute(module: str, name: str) -> Any:
    """An attribute of an imported module, or None. Packages with lazy imports may raise anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return getattr(sys.modules[module], name, None)
        except Exception:
            return None


@functools.cache
def _in_site_packages(file: str) -> bool:
    return bool(_INSTALLED & set(Path(file).parts))


def _installed(module: str, file: str | None) -> bool:
    if file and _in_site_packages(file):
        return True
    if module.split(".")[0] not in sys.stdlib_module_names:
        return False
    return not file or file == "frozen" or Path(file).is_relative_to(sysconfig.get_path("stdlib"))


@functools.cache
def _digest(path: Path, package: str) -> str:
    """SHA-256 of the file at ``path`` and of the modules that it imports."""
    modules: dict[str, str] = {}
    queue = [(path, package)]
    while queue:
        for name, imported, its_package in _imports(*queue.pop()):
            if name not in modules and imported != path:
                modules[name] = _file_digest(imported)
                queue += [(imported, its_package)] if imported.suffix == ".py" else []
    return hashlib.sha256(repr((_file_digest(path), sorted(modules.items()))).encode()).hexdigest()[:20]


@functools.cache
def _tree(path: Path) -> ast.Module:
    """The syntax tree without docstrings."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | _DEFINITIONS) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return tree


@functools.cache
def _file_digest(path: Path) -> str:
    code = ast.unparse(_tree(path)).encode() if path.suffix == ".py" else path.read_bytes()
    return hashlib.sha256(code).hexdigest()


@functools.cache
def _defined(path: Path, name: str) -> bool:
    """Return whether the file defines or assigns the first part of a qualified name.

    Also true for a lambda, whose name starts with '<'.
    """
    first, nodes = name.split(".")[0], list(ast.walk(_tree(path)))
    assigned = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return first.startswith("<") or first in assigned | {node.name for node in nodes if isinstance(node, _DEFINITIONS)}


def _package(module: str, path: Path) -> str:
    """The package that relative imports of ``module`` start from."""
    name = getattr(sys.modules[module], "__package__", None)
    if name is not None:
        return name
    return module if path.name == "__init__.py" else module.rpartition(".")[0]


def _imports(path: Path, package: str) -> Iterator[tuple[str, Path, str]]:
    """Name, file and package of what a module imports from outside the project, site-packages and the standard library."""
    for name in sorted(_imported_names(_tree(path), package)):
        if name.split(".")[0] in PROJECT or (spec := _spec(name)) is None or not spec.has_location or not spec.origin:
            continue
        if not _installed(name, spec.origin):
            yield name, Path(spec.origin), name if spec.submodule_search_locations is not None else name.rpartition(".")[0]


def _imported_names(tree: ast.Module, package: str) -> set[str]:
    """Names of the modules that a module imports, and of what may be one: ``from a import b`` gives a and a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                # "import a.b" also makes a available, "import a.b as c" does not.
                names |= {alias.name} if alias.asname else {".".join(parts[: end + 1]) for end in range(len(parts))}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            names |= {base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)} - {""}
    return names


@functools.cache
def _spec(name: str) -> ModuleSpec | None:
    """Locate a module without importing it: its path, or None."""
    parent, _, last = name.rpartition(".")
    try:
        if not parent:
            return importlib.util.find_spec(last)
        above = _spec(parent)
        return PathFinder.find_spec(name, above.submodule_search_locations) if above and above.submodule_search_locations else None
    except (ImportError, ValueError):  # ValueError: a module in sys.modules that has no spec, such as __main__
        return None
