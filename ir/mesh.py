"""The ranks as a grid: pipeline x data x sequence x tensor, the last axis fastest."""

from __future__ import annotations

from dataclasses import dataclass

AXES = ("pp", "dp", "sp", "tp")


@dataclass(frozen=True, slots=True)
class Mesh:
    """Degrees of the four axes. For one (pp, tp) coordinate the dp x sp ranks form one pool of tokens."""

    dp: int = 1
    tp: int = 1
    pp: int = 1
    sp: int = 1

    @property
    def ranks(self) -> int:
        """All ranks."""
        return self.dp * self.tp * self.pp * self.sp

    @property
    def pool(self) -> int:
        """Ranks that share the tokens of a step and the optimizer's shards."""
        return self.dp * self.sp

    def group(self, axis: str) -> tuple[int, ...]:
        """The ranks of the first group along `axis` ("pool" for dp x sp), in order."""
        if axis == "pool":
            return tuple(range(0, self.pool * self.tp, self.tp))
        stride = {"tp": 1, "sp": self.tp, "dp": self.tp * self.sp, "pp": self.tp * self.sp * self.dp}[axis]
        return tuple(range(0, stride * int(getattr(self, axis)), stride))

    def __str__(self) -> str:
        used = [f"{axis}{getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1]
        return " x ".join(used) or "one rank"
