"""Every error a user can cause: one class per kind of mistake, each with the exit code of the command line."""

from __future__ import annotations


class FourfoldError(Exception):
    """A mistake or a limit the user can do something about; its text says what, where, and what works."""

    exit_code = 1


class UsageError(FourfoldError):
    """The call itself is wrong: an option, a pin, a batch."""

    exit_code = 2


class InfeasibleError(FourfoldError):
    """No plan fits the machine."""

    exit_code = 10


class ModelError(FourfoldError):
    """The model cannot be captured, cut or initialised as asked."""

    exit_code = 11


class ProfileError(FourfoldError):
    """A hardware profile is missing or wrong; the text starts with its HW code."""

    exit_code = 12


class RunError(FourfoldError):
    """A run failed: world size, ranks that disagree, an unwritable folder."""

    exit_code = 13
