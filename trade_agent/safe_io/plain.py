"""Plain values: a dict with str or int keys, a list, a tuple, str, int, float, bool or None."""

from collections.abc import Callable
from typing import Any, TypeVar

from trade_agent.errors import UnsafeFileError

MAX_DEPTH = 32
MAX_VALUES = 500_000
Leaf = TypeVar("Leaf")


def copy_plain(obj: Any, where: str, leaf: Callable[[Any, str], Any], strings: dict[str, str], depth: int = 0) -> Any:
    """Copy ``obj`` into plain values, ``leaf`` deciding about everything else; ValueError names the place.

    Dict subclasses and numpy scalars become plain. Pickle stores an object that occurs twice as a reference, so equal
    strings are made one object and containers are always copied: equal states then give equal bytes, whatever the
    interpreter shared.
    """
    import numpy as np

    if depth > MAX_DEPTH:
        raise ValueError(f"{where} is nested more than {MAX_DEPTH} deep")
    if isinstance(obj, np.bool_ | np.integer | np.floating | np.str_):
        obj = obj.item()
    if obj is None or type(obj) in (bool, int, float):
        return obj
    if type(obj) is str:
        return strings.setdefault(obj, obj)
    if isinstance(obj, dict):
        result = {}
        for key, value in obj.items():
            if type(key) not in (str, int):
                raise ValueError(f"{where} has a key of type {type(key).__name__}; keys are text or whole numbers")
            plain_key = strings.setdefault(key, key) if type(key) is str else key
            result[plain_key] = copy_plain(value, f"{where}[{key!r}]", leaf, strings, depth + 1)
        return result
    if type(obj) is list:
        return [copy_plain(value, f"{where}[{i}]", leaf, strings, depth + 1) for i, value in enumerate(obj)]
    if type(obj) is tuple:
        return tuple(copy_plain(value, f"{where}[{i}]", leaf, strings, depth + 1) for i, value in enumerate(obj))
    return leaf(obj, where)


def check_plain(root: Any, name: str, *, leaf: type[Leaf], dicts: tuple[type, ...] = (dict,)) -> list[Leaf]:
    """Return the leaves of what was unpickled; refuse it unless it is plain and of bounded depth and size.

    A pickle can refer to one container from many places, or from itself: 32 lists can unfold to 2**32 values.
    """
    if type(root) not in dicts:
        raise UnsafeFileError(f"{name} holds a {type(root).__name__} instead of a dict")
    count = 0
    leaves: list[Leaf] = []

    def check(obj: Any, depth: int) -> None:
        nonlocal count
        count += 1
        if count > MAX_VALUES:
            raise UnsafeFileError(f"{name} unfolds to more than {MAX_VALUES} values")
        if obj is None or type(obj) in (bool, int, float, str):
            return
        if type(obj) is leaf:
            leaves.append(obj)
            return
        if type(obj) not in (*dicts, list, tuple):
            raise UnsafeFileError(f"{name} holds a {type(obj).__name__}, neither a plain value nor a {leaf.__name__}")
        if depth > MAX_DEPTH:
            raise UnsafeFileError(f"{name} is nested more than {MAX_DEPTH} deep")
        if isinstance(obj, dict):
            if any(type(key) not in (str, int) for key in obj):
                raise UnsafeFileError(f"{name} has a key that is neither text nor a whole number")
            obj = obj.values()
        for value in obj:
            check(value, depth + 1)

    check(root, 0)
    return leaves
