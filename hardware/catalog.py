"""What there is: profiles by name, the origin of each of their values, and the profile of a device torch reports."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final

from fourfold.hardware import document
from fourfold.hardware.errors import ProfileError
from fourfold.hardware.library import Library, open_for, open_library, shown
from fourfold.hardware.schema import KINDS
from fourfold.hardware.spec import parse

ORDER: Final = {kind: place for place, kind in enumerate(("cluster", "node", "device", "calibration", "broken"))}


def catalog() -> tuple[tuple[str, str, str], ...]:
    """Every profile that can be named, as (name, kind, summary): clusters, nodes, devices, calibrations. No bases.

    A file that cannot be read is listed as broken, with the reason as its summary.
    """
    found = []
    for name, files in open_library().files.items():
        try:
            text = document.read(files[0], shown(files[0]))
        except ProfileError as error:
            found.append((name, "broken", str(error)))
            continue
        kind = text.word("kind")
        if kind not in KINDS:
            found.append((name, "broken", f"HW109 {text.file}: kind is {kind!r}"))
        elif text.leaves.get("abstract") is not True:
            found.append((name, kind, text.word("summary")))
    return tuple(sorted(found, key=lambda row: (ORDER[row[1]], row[0])))


def origin(name: str) -> tuple[tuple[str, str, str, str, str], ...]:
    """Where each value of a profile is from: (field path, value, file, status, source), in file order."""
    library, key = named(name)
    leaves = library.profile(key).leaves.items()
    return tuple((path, text_of(leaf.value), leaf.file, leaf.status, leaf.source) for path, leaf in leaves)


def named(name: str) -> tuple[Library, str]:
    """The library to read `name` from, a profile's name or a .toml file, and the profile's name in it."""
    return open_for(parse(name))


def match(torch_name: str) -> str:
    """The device profile of the device that torch reports under this name.

    Raises ProfileError: HW302 where no profile matches, for another part's numbers would be wrong; HW303 where two do.
    """
    library = open_library()
    devices = [name for name, kind, _ in catalog() if kind == "device"]
    hits = [name for name in devices if _matches(library, name, torch_name)]
    if not hits:
        raise ProfileError(
            f"HW302 no profile matches the device {torch_name!r}, and another part's numbers would be wrong; "
            "measure it with `fourfold hardware detect --write FILE`, or write a profile with match.name for it"
        )
    if len(hits) > 1:
        raise ProfileError(
            f"HW303 {torch_name!r} matches {' and '.join(hits)}; narrow match.name or add match.not_name"
        )
    return hits[0]


def text_of(value: object) -> str:
    """A value of a profile on one line, much as its file has it."""
    if isinstance(value, list):
        return "[" + ", ".join(text_of(one) for one in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _matches(library: Library, name: str, torch_name: str) -> bool:
    profile = library.profile(name)
    wanted = any(fnmatchcase(torch_name, pattern) for pattern in profile.texts("match.name"))
    return wanted and not any(fnmatchcase(torch_name, pattern) for pattern in profile.texts("match.not_name"))
