"""What is to be measured: on what, by how many processes, how finely."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fourfold.backends.calibrate.clock import Clock, cores


@dataclass(frozen=True, slots=True)
class Ask:
    """One measurement: `ranks` processes at once on "cpu" or "cuda"; `quick` takes the fewest points that tell."""

    device: str
    ranks: int
    quick: bool

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def place(self, rank: int) -> torch.device:
        """The device of a rank, made current."""
        if not self.on_gpu:
            return torch.device("cpu")
        torch.cuda.set_device(rank)
        return torch.device("cuda", rank)

    def clock(self, device: torch.device) -> Clock:
        """How kernels are timed there: on a CPU the ranks take turns on the cores."""
        share = 1.0 if self.on_gpu else max(1.0, self.ranks / cores())
        return Clock(device, share, least=3, budget=0.02 if self.quick else 0.1)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Dtypes whose products are timed, the one models are computed in first."""
        return ("bf16", "fp32") if self.on_gpu else ("fp32",)

    @property
    def products(self) -> tuple[tuple[int, int, int], ...]:
        """(tokens, outputs, inputs) of the linear layers that are timed."""
        if not self.on_gpu:
            return CPU_PRODUCTS if self.quick else (*CPU_PRODUCTS, *CPU_MORE_PRODUCTS)
        return GPU_PRODUCTS if self.quick else (*GPU_PRODUCTS, *GPU_MORE_PRODUCTS)

    @property
    def streams(self) -> tuple[int, ...]:
        """Elements of the elementwise operands."""
        if self.on_gpu:
            return tuple(2**power for power in ((20, 24, 28) if self.quick else (18, 20, 22, 24, 26, 28)))
        return tuple(2**power for power in ((12, 15, 17, 19, 20) if self.quick else (12, 14, 16, 18, 19, 20, 21, 22)))

    @property
    def attentions(self) -> tuple[tuple[int, int, int, int], ...]:
        """(documents, length, heads, head size) of the attention calls that are timed."""
        if self.on_gpu:
            lengths = (2048, 8192) if self.quick else (512, 2048, 8192, 32768)
            return tuple((max(1, 8192 // length), length, 32, 128) for length in lengths)
        return CPU_ATTENTIONS if self.quick else (*CPU_ATTENTIONS, *CPU_MORE_ATTENTIONS)

    @property
    def messages(self) -> tuple[int, ...]:
        """Bytes of the collectives that are timed, as the cost model counts them."""
        if self.on_gpu:
            return tuple(2**power for power in range(16, 28 if self.quick else 31, 2))
        return tuple(2**power for power in ((10, 16, 20, 23) if self.quick else (6, 10, 14, 18, 20, 22, 24)))

    @property
    def groups(self) -> tuple[int, ...]:
        """Sizes of the groups of neighbours whose collectives are timed, all such groups at once."""
        return tuple(size for size in range(2, self.ranks + 1) if self.ranks % size == 0)


CPU_PRODUCTS = (
    (256, 128, 128),
    (1024, 128, 128),
    (1024, 384, 128),
    (512, 128, 512),
    (1024, 256, 256),
    (1024, 768, 256),
    (2048, 64, 256),
    (512, 1024, 512),
)
CPU_MORE_PRODUCTS = (
    (64, 512, 512),
    (128, 256, 256),
    (4096, 128, 256),
    (4096, 512, 128),
    (1024, 1024, 1024),
    (2048, 768, 768),
    (256, 2048, 512),
    (512, 512, 2048),
)
GPU_PRODUCTS = (
    (8192, 4096, 4096),
    (8192, 1024, 4096),
    (8192, 14336, 4096),
    (8192, 4096, 14336),
    (2048, 4096, 4096),
    (2048, 2048, 2048),
    (512, 4096, 4096),
    (1024, 1024, 1024),
)
GPU_MORE_PRODUCTS = (
    (16384, 4096, 4096),
    (16384, 14336, 4096),
    (4096, 14336, 4096),
    (4096, 4096, 14336),
    (2048, 14336, 4096),
    (8192, 8192, 8192),
    (8192, 512, 4096),
    (8192, 2048, 8192),
    (8192, 28672, 8192),
    (2048, 128256, 4096),
    (512, 14336, 4096),
    (128, 8192, 8192),
)
CPU_ATTENTIONS = (
    (8, 128, 4, 32),
    (4, 256, 4, 32),
    (2, 512, 4, 32),
    (1, 1024, 4, 32),
    (4, 256, 8, 16),
    (4, 256, 2, 64),
    (1, 128, 1, 32),
)
CPU_MORE_ATTENTIONS = ((16, 64, 4, 32), (1, 512, 8, 64), (1, 2048, 4, 32), (2, 512, 8, 16), (1, 1024, 4, 128))
