"""What one op costs where it runs by itself, as on a CPU: the kernels autograd launches for it, forward and backward.

A value read several times has its gradients added, one kernel for each reader after the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from fourfold.costmodel.kernel import norm_time, special_time, stream_time
from fourfold.hardware.machine import Device
from fourfold.ir.graph import Block, Node, Tensor
from fourfold.ir.ops import op_of

EXPONENTIALS = """
    acos acosh asin asinh atan atan2 atanh celu cos cosh elu erf erfc erfinv exp exp2 expm1 gelu log log10 log1p log2
    log_sigmoid log_softmax logaddexp logsumexp logit mish pow selu sigmoid silu sin sinc sinh softmax softplus tan tanh
    xlogy
"""
SPECIAL = frozenset(EXPONENTIALS.split())
PASSED = ("add", "sub", "detach", "cat", "stack", "view", "permute")
"""Ops whose gradient is their inputs' own, or a view of it."""
NORMS = ("rms_norm", "layer_norm")
LOSS_PASSES = 6
"""Times the loss reads or writes its logits in plain kernels; two more evaluate exponentials."""
LOSS_KERNELS = 20

Size = Callable[[Tensor], float]


@dataclass(frozen=True, slots=True)
class Eager:
    """Seconds of kernels that are launched one by one; `size` gives a value's bytes, `share` how many ranks cut it."""

    device: Device
    size: Size

    def forward(self, node: Node, values: Mapping[str, Tensor], share: int) -> float:
        """Reads every input and writes the output, in one kernel."""
        kind, name = op_of(node).kind, _name(node)
        if kind == "free":
            return self.device.launch
        moved = sum(self.size(values[r]) for r in node.refs()) + self.size(node.value)
        if name in NORMS:
            return self.device.launch + norm_time(moved / share, self.device)
        return self.device.launch + self._kernel(name, moved / share)

    def backward(self, node: Node, values: Mapping[str, Tensor], share: int) -> float:
        """For each input with a gradient: reads the output's and what was kept, writes the input's."""
        out, name = self.size(node.value) / share, _name(node)
        found = self.device.launch
        for value in (values[r] for r in node.refs()):
            if value.grad:
                found += self._gradient(name, self.size(value) / share, out)
                if name in NORMS:
                    break  # that of the weight comes with the input's
        return found

    def added(self, sizes: Iterator[float]) -> float:
        """Sums of gradients, one kernel each."""
        return sum(stream_time(3.0 * size, self.device) for size in sizes)

    def copied(self, size: float) -> float:
        """A copy."""
        return stream_time(2.0 * size, self.device)

    def loss(self, logits: float) -> float:
        """The kernels of the cross-entropy around `logits` bytes, with their gradient."""
        plain = stream_time(LOSS_PASSES * logits, self.device) + 2 * special_time(2.0 * logits, self.device)
        return plain + LOSS_KERNELS * self.device.stream.overhead

    def _gradient(self, name: str, size: float, out: float) -> float:
        if name in NORMS:
            return norm_time(3.0 * out, self.device, backward=True)
        if name in ("slice", "select"):
            # A whole gradient of zeros, into which the part is copied.
            return stream_time(size, self.device) + stream_time(2.0 * out, self.device)
        reduced = stream_time(out + size, self.device) if size < out else 0.0
        return reduced if name in PASSED else reduced + self._kernel(name, 3.0 * out)

    def _kernel(self, name: str, moved: float) -> float:
        return special_time(moved, self.device) if name in SPECIAL else stream_time(moved, self.device)


def again(block: Block) -> dict[str, tuple[str, ...]]:
    """For each node, the values with a gradient that an earlier node reads too."""
    seen: set[str] = set()
    found = {}
    values = block.values()
    for node in block.nodes:
        read = tuple(name for name in dict.fromkeys(node.refs()) if values[name].grad)
        found[node.name] = tuple(name for name in read if name in seen)
        seen.update(read)
    return found


def _name(node: Node) -> str:
    return node.op.split(".")[0]
