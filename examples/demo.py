"""`make demo`: plan an 8-billion-parameter Llama for eight H200s, then train a small one on this machine, twice.

The same as `fourfold demo`. compiler/cli/demo.py is the code; examples/train.py trains with the API alone.
"""

from __future__ import annotations

import sys

from fourfold.compiler.cli.app import run

if __name__ == "__main__":
    sys.exit(run(["demo", *sys.argv[1:]]))
