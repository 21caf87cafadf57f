"""Initial weights: the model's own, the same under every plan, and one list of what nothing sets."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fourfold.backends.communication.processes import run
from fourfold.backends.weights.initial import Initialised
from fourfold.hardware.errors import ModelError, RunError

CPU = torch.device("cpu")
PLANS = [(2, 1, 3), (1, 2, 0), (3, 1, 2)]
MORE = [(2, 2, 3), (2, 1, 0), (1, 2, 3)]


def source(model: nn.Module, seed: int = 0) -> Initialised:
    return Initialised(model, seed, CPU)


def weights(case: Any, tiny: Any, seed: int) -> dict[str, list[Any]]:
    """The whole weights after init(seed), which every rank must hold alike."""

    def work(rank: int) -> dict[str, list[Any]]:
        program = case.program()
        program.init(seed=seed)
        return tiny.plain(program.full_state_dict(everywhere=True))

    first, *others = run(work, case.ranks)
    assert all(other == first for other in others)
    return first


@pytest.mark.parametrize("plan", [*PLANS, *(pytest.param(p, marks=pytest.mark.slow) for p in MORE)], ids=str)
@pytest.mark.parametrize("model", ["llama", pytest.param("gpt", marks=pytest.mark.slow)])
def test_the_same_seed_gives_the_same_bits_under_every_plan(
    model: str, plan: tuple[int, int, int], alone: Callable[[str, bool], dict[str, list[Any]]], tiny: Any
) -> None:
    assert weights(tiny.case(getattr(tiny, model), *plan), tiny, seed=5) == alone(model, False)


@pytest.fixture(scope="module")
def alone(tiny: Any) -> Callable[[str, bool], dict[str, list[Any]]]:
    """The weights on one rank with seed 5, of the model built on the CPU or on the meta device."""
    made: dict[tuple[str, bool], dict[str, list[Any]]] = {}

    def find(model: str, meta: bool) -> dict[str, list[Any]]:
        def make() -> nn.Module:
            with torch.device("meta" if meta else "cpu"):
                return getattr(tiny, model)()

        if (model, meta) not in made:
            made[model, meta] = weights(tiny.case(make), tiny, seed=5)
        return made[model, meta]

    return find


@pytest.mark.parametrize("model", ["llama", "gpt"])
def test_a_model_without_data_is_initialised_as_one_with(
    model: str, alone: Callable[[str, bool], dict[str, list[Any]]]
) -> None:
    assert alone(model, True) == alone(model, False)


def test_another_seed_gives_other_weights(alone: Callable[[str, bool], dict[str, list[Any]]], tiny: Any) -> None:
    other, first = weights(tiny.case(tiny.llama), tiny, seed=6), alone("llama", False)
    assert all((other[name] == first[name]) == ("norm" in name) for name in first)


def test_the_callers_generators_and_model_are_left_alone(tiny: Any) -> None:
    model = tiny.gpt()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(9)
    random.seed(9)
    wanted = torch.rand(3)
    torch.manual_seed(9)
    made = source(model)
    assert all(made(name) is not None for name in before)
    assert torch.equal(torch.rand(3), wanted)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert made.kept == {}


def test_each_module_begins_like_its_own_constructor() -> None:
    """Bounds and spread of torch's Linear, Embedding and LayerNorm, and the padding row."""
    with torch.device("meta"):
        model = nn.ModuleDict(
            {"linear": nn.Linear(400, 300), "table": nn.Embedding(500, 64, padding_idx=3), "norm": nn.LayerNorm(8)}
        )
    made = source(model)
    weight, table = made("linear.weight"), made("table.weight")
    assert weight is not None
    assert table is not None
    assert 0.045 < weight.abs().max() <= 0.05
    assert weight.std() == pytest.approx(0.05 / 3**0.5, rel=0.02)
    assert table.std() == pytest.approx(1.0, rel=0.02)
    assert not table[3].any()
    assert made("norm.weight").tolist() == [1.0] * 8
    assert made("norm.bias").tolist() == [0.0] * 8


class Hooked(nn.Module):
    """A model with its own rule for every module, and one for weights on the residual path, as GPT-2 has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 64)
        self.free = nn.Parameter(torch.empty(8))

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        if isinstance(module, Hooked):
            nn.init.normal_(module.last.weight, std=0.001)
            nn.init.ones_(module.free)


def test_the_models_own_rule_comes_last_and_outer_modules_after_inner() -> None:
    with torch.device("meta"):
        model = nn.Sequential(Hooked(), nn.Linear(64, 64))
    made = source(model)
    assert made("0.first.weight").std() == pytest.approx(0.02, rel=0.1)
    assert made("0.last.weight").std() == pytest.approx(0.001, rel=0.1)
    assert not made("0.first.bias").any()
    assert made("0.free").tolist() == [1.0] * 8
    assert made("1.weight").std() == pytest.approx(0.125 / 3**0.5, rel=0.1)


class Outer(nn.Module):
    """Initialises what it holds, as modules with their own constructors do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.inner.weight, 3.0)


def test_a_module_that_initialises_its_children_is_heard() -> None:
    with torch.device("meta"):
        model = Outer()
    assert source(model)("inner.weight").unique().tolist() == [3.0]


class Tables(nn.Module):
    """Tensors that are set, half set, and never set."""

    def __init__(self, reset: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 2.0))
        self.some = nn.Parameter(torch.full((4,), 2.0))
        self.register_buffer("angles", torch.arange(4.0), persistent=False)
        self.register_buffer("ids", torch.arange(4))
        self.register_buffer("mask", torch.ones(4, dtype=torch.bool))
        if reset:
            self.reset_parameters = self._reset

    def _reset(self) -> None:
        nn.init.ones_(self.scale)
        with torch.no_grad():
            self.some[:2] = 0.0
        self.angles = torch.arange(4.0) * 2
        self.ids.copy_(torch.arange(4))
        self.mask[:2] = False

    def state(self, made: Initialised) -> dict[str, list[float] | None]:
        names = ("scale", "some", "angles", "ids", "mask")
        found: dict[str, Tensor | None] = {name: made(name) for name in names}
        return {name: None if value is None else value.tolist() for name, value in found.items()}


def test_what_is_not_wholly_written_is_not_set() -> None:
    """Marked by NaN, or for whole numbers by two runs from other values; buffers as well as parameters."""
    with torch.device("meta"):
        empty, resetting = Tables(False), Tables(True)
    assert set(empty.state(source(empty)).values()) == {None}
    assert resetting.state(source(resetting)) == {
        "scale": [1.0] * 4,
        "some": None,
        "angles": [0.0, 2.0, 4.0, 6.0],
        "ids": [0, 1, 2, 3],
        "mask": None,
    }


def test_what_is_not_written_keeps_the_models_own_value() -> None:
    model = Tables(False)
    made = source(model)
    assert made.model is model
    assert model.state(made)["some"] == [2.0] * 4
    assert model.state(made)["mask"] == [True] * 4
    assert set(made.kept) == {"scale", "some", "angles", "ids", "mask"}
    assert Tables(True).state(source(Tables(True)))["some"] == [2.0] * 4


def test_an_initialiser_that_fails_is_named() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def reset_parameters(self) -> None:
            self.a.weight.data.fill_(float(self.b.weight.sum()))

    with torch.device("meta"):
        model = Reads()
    with pytest.raises(ModelError, match=r"Reads\.reset_parameters\(\) fails when one module alone holds data: .*meta"):
        source(model)("a.weight")


def test_unset_tensors_are_listed_in_one_error(tiny: Any) -> None:
    class Scaled(nn.Module):
        """A plain module's ways to lose what its constructor computed: a scale and a table."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(58, 12), nn.Linear(12, 58)
            self.scale = nn.Parameter(torch.full((12,), 2.0))
            self.register_buffer("table", torch.arange(12.0), persistent=False)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.tokens(tokens) * self.scale + self.table)

    def bare() -> nn.Module:
        with torch.device("meta"):
            return Scaled()

    def work(rank: int) -> tuple[str, list[float]]:
        try:
            case.program().init()
        except ModelError as error:
            text = str(error)
        program = whole.program()
        program.init()
        state = program.full_state_dict(everywhere=True)
        return text, [float(state["scale"].sum()), float(dict(program.root.named_buffers())["table"].sum())]

    case, whole = tiny.case(bare, 2), tiny.case(Scaled, 2)
    for text, values in run(work, 2):
        assert text.startswith("Scaled's own initialisation leaves 2 tensors unset: scale, table; give their modules")
        assert values == [24.0, 66.0]


def test_values_that_differ_between_ranks_are_refused(tiny: Any) -> None:
    def work(rank: int) -> str:
        program = case.program()
        model = tiny.llama()
        with torch.no_grad():
            model.head.weight[3, 2] += rank
        try:
            program.copy_from(model)
        except RunError as error:
            return str(error)
        return "nothing"

    case = tiny.case(tiny.llama, 2)
    text = "the model must hold the same weights on every rank: head.weight differs between rank 0 and rank 1"
    assert run(work, 2) == (text, text)


@pytest.mark.slow
def test_models_of_transformers_begin_as_they_do_there() -> None:
    """Their rule, which scales GPT-2's residual projections from outside; and rotary tables, from no data at all."""
    hf = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama = hf.LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=100)
    gpt = hf.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=100, n_positions=64)
    for kind, config in ((hf.LlamaForCausalLM, llama), (hf.GPT2LMHeadModel, gpt)):
        with torch.device("meta"):
            bare = kind(config)
        made, real = source(bare), kind(config)
        wanted = {**dict(real.named_parameters()), **dict(real.named_buffers())}
        for name, value in wanted.items():
            found = made(name)
            assert found is not None, name
            assert float(found.std()) == pytest.approx(float(value.std()), rel=0.15), name
            assert value.numel() > 64 or torch.equal(found, value), name
