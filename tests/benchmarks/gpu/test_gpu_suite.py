"""The GPU suite, rehearsed on a CPU: every stage, with nothing to import but torch and Triton.

Kernels are interpreted or compiled for a whole process, so everything that imports them runs in
one of its own.
"""

import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
STAGES = (
    "machine", "correctness", "first_forward", "small_package", "attention", "cross", "forward",
    "encoders", "end_to_end", "full_package", "products", "rows", "tiles",
)  # fmt: skip
rehearsal = pytest.mark.slow  # every kernel of every stage in Triton's interpreter
SUITE = "benchmarks.gpu.run"
BLOCKER = """
import sys

others = sys.meta_path[:]

class OnlyThese:
    def find_spec(self, name, path=None, target=None):
        known = name.partition(".")[0] in {allowed!r} | sys.stdlib_module_names
        if known or name.startswith("_sysconfigdata"):
            found = (other.find_spec(name, path, target) for other in others)
            return next(filter(None, found), None)

sys.meta_path[:] = [OnlyThese()]
"""


@pytest.fixture(scope="module", autouse=True)
def importable():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield


def requirements(*names: str) -> set[str]:
    """These distributions and what they need, extras left out."""
    needed: set[str] = set()
    todo = list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in needed:
            continue
        try:
            wanted = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        needed.add(name)
        todo += [re.match(r"[\w.-]+", line)[0] for line in wanted if "extra ==" not in line]
    return needed


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An environment in which Python finds only what the suite says it needs."""
    kept = requirements("torch", "triton", "numpy", "pillow", "safetensors")
    tops = importlib.metadata.packages_distributions()
    allowed = {
        top
        for top, owners in tops.items()
        if {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners} & kept
    }
    folder = tmp_path_factory.mktemp("blocker")
    blocker = BLOCKER.format(allowed=allowed | {"lumosx_rt", "benchmarks"})
    (folder / "sitecustomize.py").write_text(blocker)
    dropped = {"TRITON_INTERPRET"}
    kept_variables = {k: v for k, v in os.environ.items() if k not in dropped}
    return kept_variables | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def suite(environment, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", SUITE, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def rehearsed(bare, tmp_path_factory):
    """A folder with the rows of a rehearsal of every stage, and what was printed."""
    out = tmp_path_factory.mktemp("rehearsal")
    done = suite(bare, "--rehearse", "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


@pytest.fixture
def rows(rehearsed):
    return [json.loads(line) for line in (rehearsed[0] / "rows.jsonl").read_text().splitlines()]


def test_the_blocker_blocks(bare) -> None:
    code = "import json, numpy\ntry:\n    import onnx\nexcept ModuleNotFoundError: print('refused')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=bare)
    assert done.stdout == "refused\n"


@rehearsal
def test_every_stage_has_rows_and_a_table(rows, rehearsed) -> None:
    assert {row["stage"] for row in rows} == {"environment", *STAGES}
    told = [line.split()[2].rstrip(",") for line in rehearsed[1].splitlines() if line[:3] == "-- "]
    assert told == list(STAGES)


@rehearsal
def test_rows_are_well_formed(rows) -> None:
    environment, *others = rows
    assert {"gpu", "torch", "triton", "commit", "date"} <= environment.keys()
    assert len({(row["stage"], row["name"], row["shape"]) for row in others}) == len(others)
    for row in others:
        assert row["environment"] == environment["environment"] and len(row["code"]) == 12
        if "failed" in row:
            assert "ms" not in row
            # backends that a CPU has not, and what this environment has not
            bare = "No module named" in row["failed"] or row["stage"] == "end_to_end"
            assert bare or row["name"].endswith((":cudnn", ":efficient")), row
        elif "ms" in row:
            assert len(row["ms"]) == 2 and min(row["ms"]) > 0 and row["spread_ms"] >= 0
            rates = {"tflops", "tbps"} & row.keys()
            assert len(rates) == (row["stage"] != "encoders") or "norm_modulate" in row["name"], row
            assert all(row[rate] > 0 and row["roofline_share"] > 0 for rate in rates)


@rehearsal
def test_rehearsed_rows_are_marked(rows) -> None:
    assert all(row["rehearsal"] is True for row in rows)


@rehearsal
def test_everything_is_as_near_to_float64_as_plain_torch(rows) -> None:
    judged = [row for row in rows if row["stage"] == "correctness"]
    assert len(judged) > 15
    assert all(row["pass"] and row["error"] <= 2 * row["plain_error"] for row in judged)
    assert all(row["ratio"] <= 2 for row in rows if "ratio" in row)


@rehearsal
def test_winners_of_a_rehearsal_stay_beside_its_rows(rehearsed, rows) -> None:
    own = json.loads((ROOT / "kernels" / "tiles.json").read_text())["sm_90"]
    table = json.loads((rehearsed[0] / "tiles.json").read_text())["sm_90"]
    table = {name: entry for name, entry in table.items() if own.get(name) != entry}
    found = {row["name"].partition(": winner")[0]: row for row in rows if "entry" in row}
    (chosen,) = (row for row in rows if row["name"] == "self_attention: winner")
    pays = {"self_attention/e4m3": chosen["e4m3"]}
    plain = {name.removesuffix("/plain"): table.pop(name) for name in [*table] if "/plain" in name}
    assert table == {name: row["entry"] for name, row in found.items()} | pays
    # a winner that plugins cannot launch has one beside it that they can
    assert plain.keys() == {n for n, e in table.items() if e.get("programs_per_sm")}
    assert all(not (e["descriptors"] or e["programs_per_sm"]) for e in plain.values())
    assert "interpreted" not in (ROOT / "kernels" / "tiles.json").read_text()


@rehearsal
def test_what_is_there_is_not_measured_again(bare, rehearsed, rows) -> None:
    done = suite(bare, "--rehearse", "--out", rehearsed[0], "--stage", "products", "tiles")
    assert done.returncode == 0 and "stage products" in done.stdout
    assert len((rehearsed[0] / "rows.jsonl").read_text().splitlines()) == len(rows)


def test_a_stage_without_time_says_what_is_missing(bare, tmp_path) -> None:
    done = suite(bare, "--rehearse", "--out", tmp_path, "--stage", "cross", "--minutes", "0")
    missing = [line for line in done.stdout.splitlines() if line.startswith("missing, out of time")]
    assert len(missing) == 3 and "as released" in missing[-1]
    (environment,) = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert json.loads(environment)["stage"] == "environment"


def test_at_full_size_every_case_has_a_name_of_its_own(bare) -> None:
    code = """
import sys
from pathlib import Path
from benchmarks.gpu import scale, worker
from benchmarks.gpu.cases import Bench
bench = Bench(scale.full(), "", Path(), lambda stage: [])
for stage, cases in worker.STAGES.items():
    assert len(worker.code_of(stage)) == 12
    found = [(case.name, case.shape) for case in cases(bench)]
    assert len(found) == len(set(found)), stage
    print(stage, len(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=bare, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    counts = dict(line.split() for line in done.stdout.splitlines())
    assert list(counts) == list(STAGES) and int(counts["attention"]) == 5 * 11 + 2 * 2


@rehearsal
def test_pictures_of_a_rehearsal_are_refused(bare, rehearsed, tmp_path) -> None:
    plot = [sys.executable, "-m", "benchmarks.gpu.plot", rehearsed[0] / "rows.jsonl"]
    done = subprocess.run([*plot, "--out", tmp_path], capture_output=True, text=True, env=bare)
    assert done.returncode == 1 and "rehearsed" in done.stderr
    assert not list(tmp_path.iterdir())


# -- rows ---------------------------------------------------------------------------------------


def test_measured_and_rehearsed_rows_do_not_mix(tmp_path) -> None:
    from benchmarks.gpu.book import Book

    Book(tmp_path, "here", False).append("e", "q", "1x2x3+0+-", "", {"ms": [1.0, 1.0]})
    with pytest.raises(ValueError, match="measured rows"):
        Book(tmp_path, "here", True)


def test_rows_of_another_environment_or_an_earlier_run_do_not_count(tmp_path) -> None:
    from benchmarks.gpu.book import Book

    book = Book(tmp_path, "here", False)
    book.append("e", "q", "1x2x3+0+-", "", {"ms": [1.0, 1.0]})
    assert set(book.rows("e")) == {("q", "1x2x3+0+-", "")} and not book.rows("b")
    assert not Book(tmp_path, "there", False).rows("e")
    assert not Book(tmp_path, "here", False, since=time.time() + 9).rows("e")


def test_a_torn_line_costs_itself_only(tmp_path) -> None:
    from benchmarks.gpu.book import Book

    book = Book(tmp_path, "here", False)
    book.append("e", "one", "", "", {})
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"stage": "e", "na')
    book.append("e", "two", "", "", {})
    assert [name for name, *_ in book.rows("e")] == ["one", "two"]


# -- a worker that is lost ------------------------------------------------------------------------

WORKER = """
import json, os, sys, time
from pathlib import Path
out, state = Path(sys.argv[1]), Path(sys.argv[1], "state")
turn = int(state.read_text()) if state.exists() else 0
state.write_text(str(turn + 1))
if turn < 2:
    (out / "running.json").write_text(json.dumps({"stage": "b", "name": f"case {turn}"}))
    os.abort() if turn == 0 else time.sleep(60)
sys.exit(75 if turn == 2 else 0)
"""


def test_a_lost_worker_costs_one_row(tmp_path) -> None:
    from benchmarks.gpu.supervise import supervise

    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    assert supervise(command, tmp_path, time.time() + 60, {"a": 90.0, "b": 1.5}) == 0
    crashed, hung = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert crashed["name"] == "case 0" and "ended with status -6" in crashed["failed"]
    assert hung["name"] == "case 1" and hung["failed"] == "did not return within 1.5 s"
    assert (tmp_path / "state").read_text() == "4"


def test_a_worker_that_cannot_start_is_not_started_again(tmp_path) -> None:
    from benchmarks.gpu.supervise import supervise

    command = [sys.executable, "-c", "import sys; sys.exit(3)"]
    assert supervise(command, tmp_path, time.time() + 60, {"a": 1.0}) == 3


def test_a_worker_that_cannot_be_ended_is_left_with_its_row(tmp_path, monkeypatch) -> None:
    """As one that waits in a driver for ever: it is not waited for."""
    from benchmarks.gpu import supervise

    class Stuck:
        returncode = None

        def __init__(self, command) -> None:
            note = {"stage": "b", "name": "a case", "shape": "", "tiles": ""}
            (tmp_path / "running.json").write_text(json.dumps(note))

        def poll(self):
            return None

        def kill(self):
            pass

        def wait(self, timeout=None):
            assert timeout is not None, "it would be waited for without end"
            raise subprocess.TimeoutExpired("worker", timeout)

    monkeypatch.setattr(supervise.subprocess, "Popen", Stuck)
    status = supervise.supervise(["worker"], tmp_path, time.time() + 60, {"b": 0.3})
    (row,) = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert status == supervise.STUCK and row["name"] == "a case"
    assert "did not return within 0.3 s; its process could not be ended" in row["failed"]


def test_a_row_is_measured_again_when_the_code_of_its_stage_changed(tmp_path) -> None:
    from benchmarks.gpu.book import Book

    Book(tmp_path, "here", False, code={"a": "1", "b": "1"}.get).append("a", "one", "", "", {})
    Book(tmp_path, "here", False, code={"a": "1", "b": "1"}.get).append("b", "two", "", "", {})
    later = Book(tmp_path, "here", False, code={"a": "2", "b": "1"}.get)
    assert not later.rows("a") and set(later.rows("b")) == {("two", "", "")}


def test_the_code_of_a_stage_is_what_it_imports(tmp_path, monkeypatch) -> None:
    from benchmarks.gpu import environment

    room = tmp_path / "benchmarks" / "gpu"
    room.mkdir(parents=True)
    (tmp_path / "kernels").mkdir()
    texts = {
        "benchmarks/gpu/one.py": "import torch\nfrom benchmarks.gpu import two\n",
        "benchmarks/gpu/two.py": "def f():\n    from lumosx_rt.kernels.three import g\n",
        "kernels/three.py": "g = 1\n",
        "benchmarks/gpu/other.py": "",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(environment, "ROOT", tmp_path)

    def digest() -> str:
        environment.code_of.cache_clear()
        return environment.code_of("benchmarks.gpu.one")

    before = digest()
    (tmp_path / "benchmarks/gpu/other.py").write_text("changed = 1\n")
    assert digest() == before
    (tmp_path / "kernels/three.py").write_text("g = 2\n")
    assert digest() != before
    environment.code_of.cache_clear()


def test_a_way_that_leaves_memory_as_it_was_is_not_right() -> None:
    """Half of an output is never written: it holds what an earlier, right run left there."""
    import torch

    from benchmarks.gpu.problem import poisoned

    right, buffer = torch.arange(8.0), torch.arange(8.0)

    def half() -> torch.Tensor:
        buffer[:4] = right[:4]
        return buffer

    def whole() -> torch.Tensor:
        buffer.copy_(right)
        return buffer

    assert torch.equal(half(), right)  # what it was taken for
    assert poisoned(half)[4:].isnan().all()
    assert torch.equal(poisoned(whole), right)


def test_what_was_measured_is_adopted_and_nothing_else(tmp_path) -> None:
    from benchmarks.gpu.adopt import adopt

    into = tmp_path / "kernels.json"
    into.write_text((ROOT / "kernels/tiles.json").read_text())
    table = json.loads(into.read_text())
    table["sm_90"]["gelu_quantize"] = {"rows": 1, "num_warps": 4, "source": "measured: a test"}
    table["sm_80"]["gelu_quantize"] = {"rows": 1, "num_warps": 4, "source": "compiled: no spills"}
    (tmp_path / "tiles.json").write_text(json.dumps(table))
    assert adopt(tmp_path, into) == ["sm_90 gelu_quantize"]
    adopted = json.loads(into.read_text())
    assert adopted["sm_90"]["gelu_quantize"]["rows"] == 1
    assert adopted["sm_80"]["gelu_quantize"]["rows"] == 2 and adopt(tmp_path, into) == []
    table["sm_90"]["gelu_quantize"]["source"] = "measured: none, interpreted"
    (tmp_path / "tiles.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match="rehearsed"):
        adopt(tmp_path, into)


def test_every_call_is_at_most_ten_minutes_and_every_stage_in_one(bare) -> None:
    from benchmarks.gpu.calls import CALLS

    assert all(call.minutes <= 10 for call in CALLS.values())
    assert [stage for call in CALLS.values() for stage in call.stages] == list(STAGES)
    done = suite(bare, "everything", "--rehearse")
    assert done.returncode == 2 and "'works'" in done.stderr


# -- the roofline -------------------------------------------------------------------------------


def pairs_one_by_one(key: str) -> int:
    """Who sees whom (docs/spec.md#csam), asked for every pair of tokens."""
    from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout

    layout = SceneLayout.from_key(key)
    sets = ["video"] * layout.video_frames + [f"lone {i}" for i in range(layout.lone)]
    for subject, frames in enumerate(layout.subjects):
        sets += [f"subject {subject}"] * frames
    own = [name for name in sets for _ in range(layout.frame_tokens)]
    return sum(a == "video" or a == b for a, b in itertools.product(own, own))


@pytest.mark.parametrize("key", ["2x2x3+0+-", "2x2x3+2+-", "1x2x3+1+3.2", "3x1x4+0+2"])
def test_attention_work_is_counted_pair_by_pair(key) -> None:
    from lumosx_rt.reference.backbones import cost as roofline
    from lumosx_rt.reference.backbones.config import LumosXConfig
    from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout

    config = LumosXConfig(dim=12, num_heads=2)
    layout = SceneLayout.from_key(key)
    assert layout.attended_pairs == pairs_one_by_one(key)
    # a product with keys and one with values, a multiply-add each: 2 * 2 * dim a pair
    work = roofline.self_attention(layout, config, "e4m3")
    assert work.flops == {"e4m3": 48 * pairs_one_by_one(key)}


def test_a_forward_takes_what_the_published_analysis_says() -> None:
    from lumosx_rt.reference.backbones import cost as roofline
    from lumosx_rt.reference.backbones.config import PRESETS
    from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout

    for key, tflop in (("21x30x52+0+-", 282.8), ("21x30x52+4+4.4.4", 521.7)):
        work = roofline.forward(SceneLayout.from_key(key), PRESETS["1.3b"])
        # less by what the last block need not do for references
        assert sum(work.flops.values()) / 1e12 == pytest.approx(tflop, rel=6e-3)
        assert work.roof_ms == pytest.approx(tflop / 790 * 1e3, rel=6e-3)


def test_the_roof_is_the_slower_of_products_and_memory() -> None:
    from lumosx_rt.reference.backbones.cost import Work

    assert Work({"half": 790e9, "e4m3": 1580e9}, bytes=1.0).roof_ms == pytest.approx(2.0)
    assert Work(bytes=4.3e9).roof_ms == pytest.approx(1.0)
    rates = Work(bytes=4.3e9).rates(2.0)
    assert rates == pytest.approx({"tbps": 2.15, "roofline_share": 0.5})
