"""`python -m fourfold`: the command line."""

from __future__ import annotations

from fourfold.compiler.cli import main

if __name__ == "__main__":
    main()
