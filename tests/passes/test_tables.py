"""Tables of sequence methods say what their code does, at lengths that it was not run at."""

from __future__ import annotations

import pytest

from fourfold.ir.plan import Sharing
from fourfold.passes.sequence.tables import CHUNKS, Heads, recorded, table

WAYS = (
    *(Sharing(method, layout) for method in ("ring", "gather_kv", "token_ring") for layout in ("zigzag", "striped")),
    Sharing("rsa", "contiguous"),
    Sharing("ring", "contiguous"),
)


@pytest.mark.parametrize("causal", (True, False))
@pytest.mark.parametrize("n", (2, 3, 8))
@pytest.mark.parametrize("way", (*WAYS, "ulysses", "usp"), ids=str)
def test_what_a_table_says_is_what_the_method_does(way: Sharing | str, n: int, causal: bool) -> None:
    if way == "usp" and n < 4:
        pytest.skip("two and three ranks leave no ring beside an exchange")
    sharing = Sharing("ulysses", "contiguous", n) if way == "ulysses" else way
    sharing = Sharing("usp", "zigzag", 2) if way == "usp" else sharing
    assert isinstance(sharing, Sharing)
    heads = Heads(8, 4, 16, "bfloat16", causal)
    for rank in {0, n - 1}:
        for times in (1, 3, 10):
            length = 2 * n * CHUNKS * times
            assert table(sharing, n, heads, rank).at(length) == recorded(sharing, n, heads, length, rank)
