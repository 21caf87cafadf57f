"""Where profiles are found: given folders, ./fourfold-hardware, ~/.config/fourfold/hardware, then the shipped ones."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from fourfold.hardware import document
from fourfold.hardware.document import Document
from fourfold.hardware.errors import ProfileError
from fourfold.hardware.profile import Profile, inherit, originate
from fourfold.hardware.schema import KINDS
from fourfold.hardware.spec import Spec

SHIPPED: Final = Path(__file__).resolve().parent / "profiles"


@dataclass(frozen=True, slots=True)
class Library:
    """The profile files by name, each name's files in the order they are searched."""

    files: Mapping[str, tuple[Path, ...]]

    def with_file(self, path: Path) -> tuple[Library, str]:
        """This library with one more file before all others, and the name that the file gives itself."""
        name = document.read(path, shown(path)).word("name") or path.stem
        resolved = path.resolve()
        others = tuple(file for file in self.files.get(name, ()) if file.resolve() != resolved)
        return replace(self, files={**self.files, name: (path, *others)}), name

    def read(self, name: str, *, asked_by: str = "", skip: tuple[Path, ...] = ()) -> tuple[Path, Document]:
        """The first file of that name not in `skip`. Raises ProfileError HW107 if there is none, HW105 if it lies."""
        found = [path for path in self.files.get(name, ()) if path not in skip]
        if not found:
            raise ProfileError(f"HW107 {asked_by}no profile named {name!r}{near(name, self.files)}")
        path = found[0]
        twins = [other for other in found[1:] if _root(other) == _root(path)]
        if twins:
            raise ProfileError(f"HW105 {shown(path)} and {shown(twins[0])} both define {name!r}; rename one")
        text = document.read(path, shown(path))
        if text.word("name") not in ("", name):
            raise ProfileError(
                f"HW105 {shown(path)}: calls itself {text.word('name')!r}; name the file after the profile"
            )
        return path, text

    def profile(self, name: str) -> Profile:
        """The profile of that name with everything it inherits.

        Raises ProfileError: HW106 for a cycle, HW107 for an unknown name, HW108 for a base of another kind,
        HW109 for an unknown kind.
        """
        path, text = self.read(name)
        return self._resolve(path, text, ())

    def _resolve(self, path: Path, text: Document, trail: tuple[Path, ...]) -> Profile:
        if text.word("kind") not in KINDS:
            raise ProfileError(
                f"HW109 {text.file}: kind is {text.word('kind')!r}; it must be one of {', '.join(KINDS)}"
            )
        base_name = text.word("extends")
        if not base_name:
            return originate(text)
        trail = (*trail, path)
        if base_name in self.files and all(file in trail for file in self.files[base_name]):
            steps = " -> ".join((*(file.stem for file in trail), base_name))
            raise ProfileError(f"HW106 {text.file}: extends goes round in a circle: {steps}")
        base_path, base_text = self.read(base_name, asked_by=f"{text.file}: extends: ", skip=trail)
        base = self._resolve(base_path, base_text, trail)
        if base.kind != text.word("kind"):
            raise ProfileError(
                f"HW108 {text.file}: a {text.word('kind')} cannot extend {base_name!r}, which is a {base.kind}"
            )
        return inherit(base, text)


def open_library(folders: Iterable[Path] = ()) -> Library:
    """The library over `folders`, the user's two folders and the shipped profiles, in that order."""
    found: dict[Path, Path] = {}  # a file that two folders lead to is searched once, where it is met first
    for folder in (*folders, *user_folders(), SHIPPED):
        for path in _written(folder):
            found.setdefault(path.resolve(), path)
    files: dict[str, tuple[Path, ...]] = {}
    for path in found.values():
        files[path.stem] = (*files.get(path.stem, ()), path)
    return Library(files)


def _written(folder: Path) -> list[Path]:
    """The profile files in a folder and below it; none where there is no folder, or in one that vanishes meanwhile."""
    return sorted(Path(at, name) for at, _, names in os.walk(folder) for name in names if name.endswith(".toml"))


def open_for(wanted: Spec, folders: Iterable[str | Path] = ()) -> tuple[Library, str]:
    """The library to look in, and the profile's name; profiles beside a given file are found before all others."""
    given = tuple(Path(folder) for folder in folders)
    if not wanted.is_file:
        return open_library(given), wanted.name
    path = Path(wanted.name)
    if not path.is_file():
        raise ProfileError(
            f"HW112 {wanted.name}: no such file; give a .toml file or a name from `fourfold hardware list`"
        )
    return open_library((path.parent, *given)).with_file(path)


def user_folders() -> tuple[Path, Path]:
    """Where users keep their own profiles: beside the work, then for the whole account."""
    return Path("fourfold-hardware"), Path.home() / ".config" / "fourfold" / "hardware"


def near(name: str, names: Iterable[str]) -> str:
    """A closing half-sentence with the closest names, or the command that lists them."""
    close = difflib.get_close_matches(name, sorted(names), 2, 0.6)
    if close:
        return "; did you mean " + " or ".join(repr(one) for one in close) + "?"
    return "; `fourfold hardware list` shows the names"


def shown(path: Path) -> str:
    """A file as messages call it: short for shipped files and files under the working folder."""
    full = path.resolve()
    if full.is_relative_to(SHIPPED):
        return "shipped/" + full.relative_to(SHIPPED).as_posix()
    return full.relative_to(Path.cwd()).as_posix() if full.is_relative_to(Path.cwd()) else full.as_posix()


def _root(path: Path) -> Path:
    """The folder a file was found through; shipped files lie one folder deeper, by kind."""
    return SHIPPED if path.is_relative_to(SHIPPED) else path.parent
