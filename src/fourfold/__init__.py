"""Fourfold: a declarative parallelism compiler for PyTorch. The public names, each loaded when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourfold.backends.program import Options as Options
    from fourfold.backends.program import Program as Program
    from fourfold.compiler.api import compile as compile
    from fourfold.compiler.api import plan as plan
    from fourfold.compiler.capture import capture as capture
    from fourfold.compiler.data.tokens import TokenFile as TokenFile
    from fourfold.compiler.data.window import Delay as Delay
    from fourfold.compiler.data.window import Window as Window
    from fourfold.compiler.online.choosing import Online as Online
    from fourfold.compiler.verify import verify as verify
    from fourfold.compiler.version import VERSION as __version__  # noqa: F401
    from fourfold.hardware import load as load
    from fourfold.hardware.errors import FourfoldError as FourfoldError
    from fourfold.hardware.errors import InfeasibleError as InfeasibleError
    from fourfold.hardware.errors import ModelError as ModelError
    from fourfold.hardware.errors import ProfileError as ProfileError
    from fourfold.hardware.errors import RunError as RunError
    from fourfold.hardware.errors import UsageError as UsageError
    from fourfold.ir.answer import Answer as Answer
    from fourfold.ir.answer import Estimate as Estimate
    from fourfold.ir.mesh import Mesh as Mesh
    from fourfold.ir.plan import Optimizer as Optimizer
    from fourfold.ir.plan import Plan as Plan
    from fourfold.ir.plan import Precision as Precision
    from fourfold.ir.workload import Workload as Workload

_HOMES = {
    "Answer": "ir.answer",
    "Delay": "compiler.data.window",
    "Estimate": "ir.answer",
    "FourfoldError": "hardware.errors",
    "InfeasibleError": "hardware.errors",
    "Mesh": "ir.mesh",
    "ModelError": "hardware.errors",
    "Online": "compiler.online.choosing",
    "Optimizer": "ir.plan",
    "Options": "backends.program",
    "Plan": "ir.plan",
    "Precision": "ir.plan",
    "ProfileError": "hardware.errors",
    "Program": "backends.program",
    "RunError": "hardware.errors",
    "TokenFile": "compiler.data.tokens",
    "UsageError": "hardware.errors",
    "Window": "compiler.data.window",
    "Workload": "ir.workload",
    "capture": "compiler.capture",
    "compile": "compiler.api",
    "load": "hardware",
    "plan": "compiler.api",
    "verify": "compiler.verify",
}

__all__ = sorted((*_HOMES, "__version__"))


def __getattr__(name: str) -> Any:
    """The public name, from the module that defines it: importing fourfold itself loads neither torch nor a solver."""
    if name == "__version__":
        return import_module("fourfold.compiler.version").VERSION
    if name not in _HOMES:
        raise AttributeError(f"fourfold has no {name!r}")
    return getattr(import_module(f"fourfold.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
