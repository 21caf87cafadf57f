"""How large a tile of our own block kernels is on each architecture: fixed, so that nothing is tuned inside a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from fourfold.backends.kernels.block_spans import Sizes

WIDEST = 128
"""The largest head dimension whose tiles fit every architecture below."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and keys of a tile, and how the compiler spreads and pipelines it."""

    rows: int
    keys: int
    warps: int
    stages: int

    @property
    def sizes(self) -> Sizes:
        """Of the tile alone."""
        return Sizes(self.rows, self.keys)


@dataclass(frozen=True, slots=True)
class Tiles:
    """One tile a kernel: forward, dq, and dk with dv."""

    forward: Tile
    query: Tile
    key: Tile

    @property
    def sizes(self) -> tuple[Sizes, Sizes, Sizes]:
        """What decides which jobs there are."""
        return self.forward.sizes, self.query.sizes, self.key.sizes


HALF: Mapping[str, Tiles] = MappingProxyType(
    {
        "sm_80": Tiles(Tile(128, 64, 4, 3), Tile(64, 64, 4, 2), Tile(64, 64, 4, 2)),
        "sm_90": Tiles(Tile(128, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)),
        "gfx": Tiles(Tile(128, 32, 4, 1), Tile(64, 32, 4, 1), Tile(32, 64, 4, 1)),
        "cuda": Tiles(Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2)),
    }
)
"""Of 16-bit inputs."""

SINGLE = Tiles(Tile(32, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1))
"""Of float32 anywhere: products are exact, so they take no tensor core and many registers."""


def tiles_for(architecture: str, dtype: torch.dtype) -> Tiles:
    """The tiles of sm_NN or gfxNNN: those of its own name, else of its family."""
    if dtype == torch.float32:
        return SINGLE
    family = "gfx" if architecture.startswith("gfx") else "cuda"
    return HALF.get(architecture, HALF[family])


def architecture_of(device: torch.device) -> str:
    """sm_NN of a CUDA device, gfxNNN of a ROCm device, "cpu" of a processor, where kernels are interpreted."""
    if device.type != "cuda":
        return device.type
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
