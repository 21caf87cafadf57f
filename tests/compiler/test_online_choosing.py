"""On the rank that decides: hints are solved in the background, late ones are stood in for, a log is run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import online_policies as policies
import pytest

from fourfold.compiler.online.choosing import Chooser, Online, named
from fourfold.compiler.online.log import as_text
from fourfold.hardware.errors import InfeasibleError, RunError, UsageError
from fourfold.ir.batch import BatchPlan
from fourfold.passes.batch import POLICIES

LENGTHS = (900, 400, 300, 200, 50)


@contextmanager
def choosing(online: Online, **bounds: int) -> Iterator[Chooser]:
    found = Chooser(online, lambda: policies.terms(**bounds))
    try:
        yield found
    finally:
        found.close()


def test_a_hinted_batch_is_solved_elsewhere_and_a_late_one_is_stood_in_for(tmp_path: Path) -> None:
    path = tmp_path / "go"
    with choosing(Online(policy=partial(policies.released, path=path))) as chooser:
        chooser.ahead(LENGTHS)
        late, origin = chooser.used(LENGTHS, 0)
        assert (origin, late.policy) == ("late", "bytescale")
        path.touch()
        chooser._known[LENGTHS].result(60)
        found, origin = chooser.used(LENGTHS, 1)
        assert (origin, found.policy) == ("ahead", "released")
        assert found.pieces == POLICIES["bytescale"](LENGTHS, policies.terms()).pieces
        chooser.ahead(LENGTHS)
        assert chooser.used(LENGTHS, 2) == (found, "ahead")
    solved = path.with_suffix(".log").read_text().split()
    assert len(solved) == 1 and solved[0] != str(os.getpid()), "once, in another process"


def test_what_nobody_hinted_is_solved_here_and_known_from_then_on(tmp_path: Path) -> None:
    path = tmp_path / "go"
    path.touch()
    with choosing(Online(policy=partial(policies.released, path=path))) as chooser:
        assert [chooser.used(LENGTHS, step)[1] for step in range(2)] == ["unhinted", "ahead"]
        assert "background" not in chooser.__dict__
    assert path.with_suffix(".log").read_text().split() == [str(os.getpid())]


def test_a_quick_policy_that_cannot_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "go"
    with choosing(Online(policy=partial(policies.released, path=path), quick="pack")) as chooser:
        long = (1500, 40)
        chooser.ahead(long)
        path.touch()
        found, origin = chooser.used(long, 0)
        assert found.policy == "released" and origin in ("waited", "ahead")


def test_deterministic_waits_and_knows_no_paces(tmp_path: Path) -> None:
    online = Online("bytescale", deterministic=True, quick=policies.refusing)
    want = POLICIES["bytescale"](LENGTHS, policies.terms())
    with choosing(online) as chooser:
        chooser.paces = chooser.paces.after((2.0, 1.0), (1.0, 1.0))
        chooser.ahead(LENGTHS)
        assert chooser.used(LENGTHS, 0)[0] == want
        assert chooser.used(LENGTHS, 1) == (want, "ahead")
    with choosing(online) as chooser:
        assert chooser.used(LENGTHS, 0) == (want, "unhinted")


def test_paces_give_the_slow_rank_less() -> None:
    with choosing(Online(policy="pack"), capacity=2048) as chooser:
        lengths = (1000, 10)
        before = chooser.used(lengths, 0)[0].held
        fullest = max(before, key=lambda key: before[key])[0]
        chooser.paces = chooser.paces.after([1.5 if r == fullest else 1.0 for r in (0, 1)], (1.0, 1.0))
        after = chooser.used(lengths, 1)[0].held
        assert max(after, key=lambda key: after[key])[0] == 1 - fullest


@pytest.mark.parametrize(("policy", "says"), [("dying", "died (exit code 7)"), ("failing", "ValueError: one too many")])
def test_a_lost_solver_is_told_once_and_stood_in_for(policy: str, says: str) -> None:
    with choosing(Online(policy=getattr(policies, policy))) as chooser, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(2):
            lengths = (*LENGTHS, step + 1)
            chooser.ahead(lengths)
            assert chooser._known[lengths].exception(60) is not None
            found, origin = chooser.used(lengths, step)
            assert (found.policy, origin) == ("bytescale", "lost")
    mine = [str(one.message) for one in told if one.category is RuntimeWarning]
    assert len(mine) == 1 and says in mine[0]


@pytest.mark.slow
def test_a_lost_solver_changes_no_deterministic_placement(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text(str(os.getpid()))
    online = Online(policy=partial(policies.dying_for_some, path=path), deterministic=True)
    with choosing(online) as chooser, pytest.warns(RuntimeWarning, match="died"):
        chooser.ahead(LENGTHS)
        found, origin = chooser.used(LENGTHS, 0)
        assert (found.policy, origin) == ("here", "lost")


def test_what_was_hinted_before_the_end_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "go"
    with choosing(Online(policy=partial(policies.released, path=path), deterministic=True)) as chooser:
        for more in range(3):
            chooser.ahead((*LENGTHS, more + 1))
        chooser.close()
        path.touch()
        with pytest.warns(RuntimeWarning, match="died|ended"):
            origins = [chooser.used((*LENGTHS, more + 1), more)[1] for more in range(3)]
        # The first may have been on its way to a process that was not there to be ended yet.
        assert origins[0] in ("lost", "waited") and origins[1:] == ["lost"] * 2


def test_a_policy_that_no_other_process_can_have_is_used_here() -> None:
    with choosing(Online(policy=lambda lengths, terms: POLICIES["pack"](lengths, terms))) as chooser:
        chooser.ahead(LENGTHS)
        with pytest.warns(RuntimeWarning, match="nothing is placed in the background"):
            assert chooser.used(LENGTHS, 0)[1] == "lost"


def test_errors_are_those_of_the_policy() -> None:
    with choosing(Online(policy=policies.refusing)) as chooser:
        chooser.ahead(LENGTHS)
        assert isinstance(chooser._known[LENGTHS].exception(60), InfeasibleError)
        with pytest.raises(InfeasibleError, match="no placement of these lengths"):
            chooser.used(LENGTHS, 0)
    with (
        choosing(Online(policy=policies.losing)) as chooser,
        pytest.raises(RunError, match=r"of step 7 by bytescale \(unhi"),
    ):
        chooser.used(LENGTHS, 7)
    with pytest.raises(UsageError, match="policy 'best' is not known; give one of pack"):
        named("best")


def logged(path: Path, online: Online, batches: list[tuple[int, ...]]) -> list[BatchPlan]:
    with choosing(online) as chooser:
        return [chooser.used(lengths, step)[0] for step, lengths in enumerate(batches)]


def test_a_log_is_run_again(tmp_path: Path) -> None:
    path, batches = tmp_path / "placed.jsonl", [LENGTHS, (5, 6), LENGTHS]
    used = logged(path, Online("bytescale", log=path), batches)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["origin"]) for row in rows] == [(0, "unhinted"), (1, "unhinted"), (2, "ahead")]
    assert [BatchPlan.read(json.dumps(row["batch"])) for row in rows] == used
    with choosing(Online(policy=policies.failing, replay=path)) as chooser:
        chooser.ahead(LENGTHS)
        assert [chooser.used(lengths, step) for step, lengths in enumerate(batches)] == [(b, "replayed") for b in used]
        with pytest.raises(UsageError, match=r"step 3 of 5 sequences .* holds steps 0 to 2"):
            chooser.used(LENGTHS, 3)
        with pytest.raises(UsageError, match="had another batch in it"):
            chooser.used((5, 7), 1)
    with choosing(Online(replay=path), ranks=4) as chooser, pytest.raises(UsageError, match="for 2 ranks of 1024"):
        chooser.used(LENGTHS, 0)


def test_of_a_step_taken_again_the_last_holds_and_a_cut_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "placed.jsonl"
    for policy in ("pack", "static_cp"):
        logged(path, Online(policy=policy, log=path), [LENGTHS])
    with path.open("a") as file:
        file.write('{"step": 1, "ori')
    assert logged(path, Online(replay=path), [LENGTHS])[0].policy == "static_cp"
    with path.open("a") as file:
        file.write("\n")
    with pytest.raises(UsageError, match=r"placed.jsonl:3 is no line"):
        logged(path, Online(replay=path), [LENGTHS])


def test_a_log_that_cannot_be_written_or_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written: No such file"):
        logged(tmp_path, Online(log=tmp_path / "no" / "log"), [LENGTHS])
    with pytest.raises(UsageError, match="cannot be read"):
        logged(tmp_path, Online(replay=tmp_path / "none"), [LENGTHS])


def test_a_placement_is_one_line() -> None:
    batch = POLICIES["pack"](LENGTHS, policies.terms())
    assert "\n" not in as_text(batch) and BatchPlan.read(as_text(batch)) == batch


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
import online_policies as policies
from functools import partial
from pathlib import Path
from fourfold.compiler.online.choosing import Chooser, Online

print("trained", flush=True)
path = Path({path!r})
chooser = Chooser(Online(policy=partial(policies.released, path=path)), policies.terms)
chooser.ahead((5, 6))
while not path.with_suffix(".log").exists():
    pass
"""


@pytest.mark.slow
def test_a_script_without_a_guard_is_run_once_and_leaves_no_process(tmp_path: Path) -> None:
    path = tmp_path / "go"
    text = SCRIPT.format(folder=str(Path(__file__).parent), path=str(path))
    (tmp_path / "train.py").write_text(text)
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, str(tmp_path / "train.py")], capture_output=True, text=True, timeout=60, env=paths
    )
    assert (found.returncode, found.stdout) == (0, "trained\n"), found.stderr
    solver = int(path.with_suffix(".log").read_text())
    assert not Path(f"/proc/{solver}").exists() or "Z" in Path(f"/proc/{solver}/stat").read_text().split()[2]
