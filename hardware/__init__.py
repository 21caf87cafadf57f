"""What the machine is: profiles as TOML data, checked, resolved to plain SI numbers, and its topology.

`load` gives a Machine; `catalog`, `origin`, `check_file` and `match` answer about the profiles themselves.
"""

from __future__ import annotations

from fourfold.hardware.catalog import catalog, match, origin
from fourfold.hardware.checks import Message, check_file
from fourfold.hardware.loading import load
from fourfold.hardware.topology import Machine

__all__ = ["Machine", "Message", "catalog", "check_file", "load", "match", "origin"]
