"""Models of the user's own: `path/to/file.py:function`, imported and called."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fourfold.hardware.errors import FourfoldError, ModelError, UsageError


def is_file(text: str) -> bool:
    """Whether a model is named by file and function rather than by a shipped name."""
    return ":" in text or "/" in text or text.endswith(".py")


def made_by(text: str, overrides: Mapping[str, Any]) -> nn.Module:
    """What the function `file.py:function` returns under `overrides`, its keywords.

    Raises UsageError when the file, the function or a keyword is not there; ModelError when importing or calling it
    fails, or what it returns is no nn.Module.
    """
    place, _, name = text.rpartition(":") if ":" in text else (text, "", "")
    path = Path(place)
    if not name:
        raise UsageError(
            f"{text} names no function: a model is path/to/file.py:function, a config.json of transformers or its "
            "folder, or a shipped name"
        )
    if not path.is_file():
        raise UsageError(f"{path} is not a file: a model is path/to/file.py:function, or a shipped name")
    function = _function(_imported(path), name, path)
    _check_keywords(function, overrides, text)
    with _named(text):
        made = function(**overrides)
    if isinstance(made, type) and issubclass(made, nn.Module):
        raise ModelError(f"{text} returned the class {made.__name__}: it must return an instance")
    if not isinstance(made, nn.Module):
        raise ModelError(f"{text} returned {type(made).__name__}: it must return a torch.nn.Module")
    return made


def _imported(path: Path) -> ModuleType:
    """The file as a module; its folder can be imported from while it loads, as when it is run."""
    name = f"fourfold_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file: a model is path/to/file.py:function")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        with _named(str(path)):
            spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


def _function(module: ModuleType, name: str, path: Path) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if callable(found):
        function: Callable[..., Any] = found
        return function
    own = [k for k, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
    near = get_close_matches(name, own, n=3, cutoff=0.4) or own
    raise UsageError(f"{path} has no function {name!r}; it has {', '.join(near) or 'none'}")


def _check_keywords(function: Callable[..., Any], overrides: Mapping[str, Any], text: str) -> None:
    signature = inspect.signature(function)
    try:
        signature.bind(**overrides)
    except TypeError as error:
        raise UsageError(f"{text} takes {signature}: {error}") from None


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Failures of the user's code as one line that says where."""
    try:
        yield
    except FourfoldError:
        raise
    except Exception as error:
        place = _place(error)
        text = (str(error).splitlines() or [""])[0]
        raise ModelError(f"{what} failed at {place}: {type(error).__name__}: {text}") from error


def _place(error: Exception) -> str:
    """The file and line that raised it; of a syntax error, those that cannot be read."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"
