"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A shipped model, such as llama-8b; path/to/file.py:function; or a config.json of transformers.",
    ),
]
PlanFile = Annotated[str, typer.Argument(metavar="PLAN", help="A plan that `plan --save` wrote.")]
Hardware = Annotated[
    str | None,
    typer.Option("--hardware", metavar="NAME", help="A machine: dgx-h200, dgx-h200:4 (nodes), or a .toml file."),
]
Length = Annotated[str | None, typer.Option("--length", metavar="N", help="Tokens of every sequence, such as 8k.")]
Lengths = Annotated[
    str | None,
    typer.Option("--lengths", metavar="FILE", help="One a line; or wikipedia, prolong, pretrain, commoncrawl, heavy."),
]
Tokens = Annotated[str | None, typer.Option("--tokens-per-step", metavar="N", help="Tokens of one step, such as 4M.")]
Pins = Annotated[
    list[str] | None,
    typer.Option("--pin", metavar="KEY=VALUE", help="Fix a choice: tp=2, zero=3, recompute=full. Repeatable."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change the model: layers=4. Repeatable."),
]
Optimizer = Annotated[
    str | None,
    typer.Option("--optimizer", metavar="NAME", help="adamw, sgd, muon, ... or its bytes a parameter."),
]
Precision = Annotated[
    str | None,
    typer.Option("--precision", metavar="P", help="bf16, fp32 or fp64."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
