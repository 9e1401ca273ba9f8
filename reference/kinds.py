"""What a function of the Python interface is given, against what its signature says.

Numbers and paths of any kind are made plain (an integer of numpy becomes an int, a str a Path where
a Path is named); everything else of another kind is one refusal, before anything runs.
"""

import functools
import inspect
import operator
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from lumosx_rt.reference.errors import BadInput

P = ParamSpec("P")
R = TypeVar("R")
_UNFIT = object()
_LONGEST_PATH, _LONGEST_NAME = 4096, 255  # bytes


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function refuse arguments of other kinds than it names. Raises BadInput then."""
    signature, name = inspect.signature(function), function.__name__

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = _hints(function)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise BadInput(f"{name}: {error}") from None
        for argument, value in bound.arguments.items():
            hint = hints.get(argument, Any)
            if signature.parameters[argument].kind is inspect.Parameter.VAR_KEYWORD:
                bound.arguments[argument] = _options(value, hint, name)
            else:
                bound.arguments[argument] = plain(value, hint, f"{name}: {argument}")
        return function(*bound.args, **bound.kwargs)

    return call


def check_fields(instance: Any) -> None:
    """Do as `checked` for a frozen dataclass that was just made.

    Which of several texts is meant (`Literal`) is for the dataclass to check, with all the rest.
    """
    kind: Any = type(instance)
    hints = _hints(kind)
    for one in fields(instance):
        value, hint = getattr(instance, one.name), hints.get(one.name, Any)
        hint = str if typing.get_origin(hint) is Literal else hint
        made = plain(value, hint, f"{kind.__name__}: {one.name}")
        if made is not value:
            object.__setattr__(instance, one.name, made)


def plain(value: Any, hint: Any, what: str) -> Any:
    """Return the value as `hint` names it. Raises BadInput where it is of another kind."""
    found = _fitted(value, hint)
    if found is _UNFIT:
        raise BadInput(f"{what} must be {_words(hint)}, got {value!r:.60}")
    return found


@functools.cache
def _hints(of: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(of)
    except NameError:  # a name for type checkers alone
        return {}


def _options(given: dict[str, Any], hint: Any, name: str) -> dict[str, Any]:
    """Make `**options` plain that a TypedDict describes; others are the function's to know."""
    if typing.get_origin(hint) is not typing.Unpack:
        return given
    (table,) = typing.get_args(hint)
    hints = _hints(table)
    return {
        key: plain(value, hints.get(key, Any), f"{name}: {key}") for key, value in given.items()
    }


def _fitted(value: Any, hint: Any) -> Any:
    """Return the value, made plain, or _UNFIT. What a hint does not tell is taken as it is."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        named = any(kind is Path or typing.get_origin(kind) is os.PathLike for kind in inner)
        if named and isinstance(value, str | os.PathLike):
            as_given = str in inner or any(typing.get_origin(kind) is os.PathLike for kind in inner)
            return _UNFIT if not _is_path(value) else value if as_given else Path(value)
        if any(type(value) is kind for kind in inner):
            return value
        fitting = (_fitted(value, kind) for kind in inner)
        return next((found for found in fitting if found is not _UNFIT), _UNFIT)
    if origin is Literal:
        return value if isinstance(value, str | int) and value in inner else _UNFIT
    if hint is None or hint is type(None):
        return None if value is None else _UNFIT
    if hint in (int, float):
        return _number(value, hint)
    if hint is Path:
        return Path(os.fspath(value)) if _is_path(value) else _UNFIT
    if hint is str:
        return value if isinstance(value, str) else _UNFIT
    kind = origin or hint
    if kind is Any or not isinstance(kind, type):
        return value  # a type variable too: says nothing
    if kind in (tuple, list) or (_is_abstract(kind) and issubclass(kind, Iterable)):
        if kind is Mapping:
            return value if isinstance(value, Mapping) else _UNFIT
        return _listed(value, inner[0] if inner else Any)
    if getattr(kind, "_is_protocol", False):
        return value if callable(value) or "__call__" not in vars(kind) else _UNFIT
    return value if isinstance(value, kind) else _UNFIT


def _listed(value: Any, hint: Any) -> Any:
    """Return a list of any kind, its members made plain, as a tuple."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return _UNFIT
    try:
        found = tuple(_fitted(one, hint) for one in value)
    except (TypeError, RuntimeError):  # an array or a tensor without axes
        return _UNFIT
    return _UNFIT if any(one is _UNFIT for one in found) else found


def _is_abstract(kind: type) -> bool:
    return kind.__module__ == "collections.abc"


def _number(value: Any, kind: type) -> Any:
    if isinstance(value, bool | str | bytes):
        return _UNFIT
    try:
        return operator.index(value) if kind is int else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return _UNFIT


def _is_path(value: Any) -> bool:
    """Tell whether a file could have this name: no system takes longer ones, or ones with a NUL."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        return False
    try:
        name = os.fsencode(value)
    except UnicodeEncodeError:
        return False
    whole = b"\0" not in name and len(name) < _LONGEST_PATH
    return whole and all(len(part) <= _LONGEST_NAME for part in name.split(b"/"))


def _words(hint: Any) -> str:
    inner = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(kind) for kind in inner))
    if typing.get_origin(hint) is Literal:
        return ", ".join(map(repr, inner))
    plainly = {int: "an integer", float: "a number", str: "text", Path: "a path", bool: "a bool"}
    plainly[type(None)] = "None"
    kind = typing.get_origin(hint) or hint
    return plainly.get(kind, f"a {getattr(kind, '__name__', str(kind))}")
