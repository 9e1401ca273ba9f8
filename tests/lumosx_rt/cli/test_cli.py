"""The command line as people and programs meet it: exit codes, results, refusals, interruption."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import lumosx_rt as rt
from lumosx_rt.cli.main import app

COMMANDS = ("build", "generate", "verify", "bench", "train", "inspect", "doctor")
SMALL = ["--frames", "5", "--height", "32", "--width", "48", "--steps", "2", "--provider", "cpu"]


def program(*words, **options):
    """A command as a program of its own."""
    command = [sys.executable, "-m", "lumosx_rt", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


# -- help and usage -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_shows_an_example_that_parses(run, command, monkeypatch):
    monkeypatch.setenv("TERMINAL_WIDTH", "300")
    monkeypatch.setenv("COLUMNS", "300")
    text = run(command, "--help").stdout
    assert "Example" in text
    examples = re.findall(rf"lumosx-rt {command}[^`\n,]*", text)
    assert examples
    parser = typer.main.get_command(app).commands[command]
    for example in examples:
        parser.make_context(command, example.split()[2:])


def test_all_commands_are_listed_without_importing_torch():
    code = (
        "import sys; sys.argv = ['lumosx-rt', '--help']; from lumosx_rt.cli.main import main\n"
        "try: main()\n"
        "finally: print('heavy:', sorted({'torch', 'triton', 'onnx', 'av'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "heavy: []" in done.stdout
    assert all(re.search(rf"\b{command}\b", done.stdout) for command in COMMANDS)


def test_the_version_is_the_packages():
    assert program("--version").stdout == f"{rt.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["fly"],
        ["build", "--colour", "red"],
        ["build"],
        ["build", "--preset", "tiny"],
        ["build", "--init", "random"],
        ["build", "--preset", "tiny", "--init", "zeros"],
        ["build", "checkpoint", "--preset", "tiny", "--init", "random"],
        ["build", "checkpoint", "--opset", "new"],
        ["generate"],
        ["generate", "engine"],
        ["generate", "engine", "scene", "--steps", "many"],
        ["verify"],
        ["inspect"],
        ["doctor", "extra"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(run, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*words, code=2)
    assert done.stdout == "" and done.stderr != "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["generate", "verify"])
def test_an_unknown_provider_is_wrong_usage(run, command, micro, scenes):
    done = run(command, micro.folder, scenes / "a", "--provider", "tpu", code=2)
    assert "'tpu'" in done.stderr and done.stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "ENGINE", "SCENE", "--steps", "1000000000"],
        ["generate", "ENGINE", "SCENE", "--guidance", "1e30"],
        ["generate", "ENGINE", "SCENE", "--guidance", "nan"],
        ["generate", "ENGINE", "SCENE", "--shift", "1e300"],
        ["generate", "ENGINE", "SCENE", "--seed", "-1"],
        ["generate", "ENGINE", "SCENE", "--frames", "4"],
        ["generate", "ENGINE", "SCENE", "--width", "1000000000"],
        ["generate", "ENGINE", "SCENE", "--max-memory", "8"],
        ["generate", "ENGINE", "SCENE", "--lossy-skip", "nan"],
        ["verify", "ENGINE", "SCENE", "--steps", "0"],
        ["bench", "ENGINE", "--shift", "inf"],
        ["bench", "ENGINE", "--suite", "x"],
        ["bench", "ENGINE", "--list", "x"],
        ["build", "--preset", "3b", "--init", "random"],
        ["build", "--preset", "tiny", "--init", "random", "--seed", "99999999999999999999999"],
        ["build", "CHECKPOINT", "--backend", "abacus"],
        ["build", "CHECKPOINT", "--max-size", "1x2"],
        ["build", "CHECKPOINT", "--max-references", "0"],
        ["calibrate", "CHECKPOINT", "--device", "cuda"],
        ["calibrate", "CHECKPOINT", "-o", "x.txt"],
        ["inspect", "3x4x6+1+2.2", "--layout-png", "x.txt"],
        ["inspect", "SCENE", "--height", "7"],
        ["--log-level", "loud", "doctor"],
    ],
    ids=" ".join,
)
def test_the_value_of_an_option_that_is_wrong_exits_with_2(
    run, words, micro, micro_bundle, scenes, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    places = {"ENGINE": micro.folder, "SCENE": scenes / "a", "CHECKPOINT": micro_bundle}
    done = run(*(places.get(word, word) for word in words), code=2)
    assert done.stdout == "" and "a bug" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_the_log_is_shown_from_the_level_that_is_asked_for(run, micro, scenes, tmp_path):
    words = ["generate", micro.folder, scenes / "a", "-o", tmp_path / "out", *SMALL, "--force"]
    quiet = run(*words).stderr
    assert "info:" not in quiet and "debug:" not in quiet
    assert "info: engine" in run("--log-level", "info", *words).stderr
    lost = CliRunner().invoke(app, ["--log-level", "debug", "inspect", str(tmp_path / "nowhere")])
    assert lost.exit_code == 1 and "Traceback" in lost.stderr and "error: " in lost.stderr
    assert "Traceback" not in run("inspect", tmp_path / "nowhere", code=1).stderr


# -- what a terminal cannot say -----------------------------------------------------------------


@pytest.mark.parametrize(
    "encoding",
    [
        "gbk",
        *(pytest.param(e, marks=pytest.mark.slow) for e in ("ascii:strict", "latin-1", "ascii")),
    ],
)
def test_what_a_terminal_cannot_say_is_escaped(encoding, tmp_path):
    words = ["\u5e3d\u5b50", "balloon \U0001f388", "\u00e9t\u00e9"]
    for i, word in enumerate(words):
        (tmp_path / f"{i} \u5e3d" / "objects").mkdir(parents=True)
        Image.new("RGB", (32, 32), "red").save(tmp_path / f"{i} \u5e3d" / f"objects/{word}.png")
        text = f"{word};one {word} here"
        (tmp_path / f"{i} \u5e3d" / "caption.txt").write_text(text, encoding="utf-8")
    lines = [
        ["inspect", f"{tmp_path}/0 \u5e3d"],
        *(["inspect", f"{tmp_path}/{i} \u5e3d", "--json"] for i in range(3)),
        ["inspect", f"{tmp_path}/nowhere \u5e3d"],
        ["generate", f"{tmp_path}/\u5e3d", f"{tmp_path}/0 \u5e3d", "-o", f"{tmp_path}/\u00e9"],
        ["generate", f"{tmp_path}/\u5e3d", f"{tmp_path}/\udcff"],
        ["build", "\u5e3d", "-o", f"{tmp_path}/\u5e3d engine"],
        ["train", "\u5e3d.py:\u5e3d"],
        ["bench", "\u5e3d", "--suite", "\U0001f388"],
        ["calibrate", "\u5e3d", "-o", f"{tmp_path}/\u5e3d.json"],
        ["--log-level", "\u5e3d", "doctor"],
        ["--help"],
    ]
    code = (
        "import json, sys\n"
        "from lumosx_rt.cli.main import main\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['lumosx-rt', *line]\n"
        "    try: main()\n"
        "    except SystemExit as end: print('ended', end.code, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(lines)],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )
    told = done.stdout.decode(encoding.partition(":")[0])
    codes = re.findall(r"ended (\d+)", told)
    assert codes == ["0", "0", "0", "0", "1", "1", "1", "1", "1", "2", "1", "2", "0"], done.stderr
    assert b"Traceback" not in done.stderr and b"this is a bug" not in done.stderr
    assert "\\u5e3d" in told  # the JSON is ASCII whatever the terminal
    if encoding != "gbk":
        assert rb"\u5e3d" in done.stderr


# -- build --------------------------------------------------------------------------------------


def test_build_prints_the_engine_and_nothing_else(run, micro_bundle, exporter, tmp_path):
    done = run("build", micro_bundle, "-o", tmp_path / "engine")
    assert done.stdout == f"{tmp_path / 'engine'}\n" and "reading the weights" in done.stderr
    done = run("build", micro_bundle, "-o", tmp_path / "engine", "--json")
    facts = json.loads(done.stdout)
    assert facts["engine"] == str(tmp_path / "engine") and facts["opset"] == 23
    assert "up to date" in done.stderr and exporter.finished == 1


def test_build_refuses_in_one_line(micro_bundle, exporter, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    (tmp_path / "config.json").write_text("[1]")
    for words, said in (
        (["nowhere"], "nowhere"),
        ([micro_bundle, "-o", tmp_path / "full"], "no engine"),
        ([micro_bundle, "-o", tmp_path / "config.json" / "x"], "config.json"),
        ([micro_bundle, "--config", tmp_path / "config.json"], "config.json"),
        ([micro_bundle, "--config", tmp_path / "nothing.json"], "nothing.json"),
        ([micro_bundle, "--backend", "abacus"], "'abacus'"),
        (["--preset", "3b", "--init", "random"], "'3b'"),
    ):
        where = [] if "-o" in words else ["-o", tmp_path / "engine"]
        done = CliRunner().invoke(app, ["build", *map(str, words), *map(str, where)])
        assert done.exit_code in (1, 2) and done.stdout == "", words
        (line,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
        assert said in line and "Traceback" not in done.stderr
    assert exporter.started == 0
    assert sorted(os.listdir(tmp_path)) == ["config.json", "full"]


def test_a_disk_that_fills_up_is_a_reason(
    run, micro_bundle, micro, exporter, copied, scenes, tmp_path, monkeypatch
):
    def full(*args, **options):
        raise OSError(28, "No space left on device", "somewhere")

    exporter.spoil = full
    done = run("build", micro_bundle, "-o", tmp_path / "engine", code=1)
    assert "error: " in done.stderr and "No space left" in done.stderr
    assert done.stdout == "" and not (tmp_path / "engine").exists()
    folder = copied(micro.folder)
    where = ["--checkpoint", micro_bundle, "--components", micro_bundle]
    monkeypatch.setattr(os, "replace", full)
    done = run("verify", folder, scenes / "a", *SMALL, *where, code=1)
    assert "error: " in done.stderr and "No space left" in done.stderr


@pytest.mark.parametrize("words", [["doctor"], ["inspect", "3x4x6+1+2.2", "--json"]])
def test_a_reader_that_goes_away_is_no_error(words):
    command = [sys.executable, "-m", "lumosx_rt", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    told = process.stderr.read()
    assert process.wait(60) == 1 and "rror" not in told and "Exception" not in told


# -- verify -------------------------------------------------------------------------------------


def test_verify_prints_its_report(run, micro, micro_bundle, copied, scenes):
    folder = copied(micro.folder)
    where = ["--checkpoint", micro_bundle, "--components", micro_bundle]
    command = ["verify", folder, scenes / "a", *SMALL, *where]
    done = run(*command)
    assert done.stdout.strip() == (folder / "report.md").read_text(encoding="utf-8").strip()
    assert "Verification: passed" in done.stdout
    section = json.loads(run(*command, "--json", "--seed", 5).stdout)
    assert section["passed"] and section["seeds"] == [5] and section["steps"] == 2
    assert [scene["scene"] for scene in section["scenes"]] == ["one-subject"]
    section = json.loads(run("verify", folder, *SMALL, *where, "--json").stdout)
    assert len(section["scenes"]) == 3


# -- inspect and doctor -------------------------------------------------------------------------


def test_inspect_says_what_things_are(run, drawn, micro_bundle, scenes, tmp_path):
    for path, kind in (
        (drawn.folder, "engine"),
        (scenes / "a", "scene"),
        (micro_bundle, "checkpoint"),
        ("3x4x6+1+2.2", "layout"),
    ):
        facts = json.loads(run("inspect", path, "--json").stdout)
        assert facts["kind"] == kind
        assert run("inspect", path).stdout.startswith(f"kind: {kind}\n")
    facts = json.loads(run("inspect", scenes / "c", "--frames", 9, "--width", 64, "--json").stdout)
    assert facts["layout"] == "3x30x4+1+3.2"
    done = run("inspect", scenes / "c", "--layout-png", tmp_path / "layout.png")
    assert Image.open(tmp_path / "layout.png").format == "PNG" and "two-subjects" in done.stdout


def test_inspect_fails_for_what_is_wrong(run, scenes, tmp_path):
    done = run("inspect", scenes / "b-bad", "--json", code=1)
    assert any("'blue coat'" in error for error in json.loads(done.stdout)["errors"])
    assert "error: " in done.stderr
    for nonsense in (scenes / "notes", tmp_path / "nowhere", "1+1"):
        done = run("inspect", nonsense, code=1)
        assert done.stdout == "" and done.stderr.startswith("error: ")


def test_doctor_reports_and_fails_where_something_is_missing(run, monkeypatch):
    done = program("doctor", "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 0 and facts["problems"] == [] and facts["packages"]["torch"]
    from lumosx_rt.runtime import doctor

    monkeypatch.setitem(doctor.CHECKS, "h264_encoder", lambda: 1 / 0)
    done = run("doctor", "--json", code=1)
    assert "h264_encoder" in json.loads(done.stdout)["problems"][0]
    assert "error: 1 problem" in done.stderr
    assert "h264_encoder" in run("doctor", code=1).stdout


# -- damaged engines ----------------------------------------------------------------------------

DAMAGES = {
    "no manifest": lambda engine: (engine / "manifest.json").unlink(),
    "no json": lambda engine: (engine / "manifest.json").write_text("{"),
    "newer": lambda engine: (engine / "manifest.json").write_text('{"format": 99}'),
    "no defaults": lambda engine: edit(engine, "defaults", {}),
    "no model": lambda engine: edit(engine, "model", {"dim": "wide"}),
    "no layouts": lambda engine: edit(engine, "layouts", {}),
    "changed": lambda engine: (engine / "transformer" / "model.onnx").write_bytes(b"x"),
    "unlisted": lambda engine: (engine / "[red]extra").write_bytes(b"x"),
}


def edit(engine: Path, entry: str, value: object) -> None:
    raw = json.loads((engine / "manifest.json").read_text(encoding="utf-8"))
    (engine / "manifest.json").write_text(json.dumps(raw | {entry: value}))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_engine_is_a_reason_and_no_traceback(
    run, micro, copied, scenes, tmp_path, damage
):
    engine = copied(micro.folder)
    DAMAGES[damage](engine)
    for command in (
        ["generate", engine, scenes / "a", "-o", tmp_path / "out"],
        ["verify", engine, scenes / "a"],
        ["inspect", engine],
    ):
        done = run(*command, code=1)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and done.stdout == ""
        if damage == "unlisted":
            assert "[red]extra" in done.stderr  # and not in red
    assert not (tmp_path / "out").exists()


def test_a_damaged_engine_as_a_program(micro, copied, scenes):
    engine = copied(micro.folder)
    DAMAGES["changed"](engine)
    done = program("verify", engine, scenes / "a")
    assert done.returncode == 1 and done.stdout == ""
    assert "error: " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("what", ["pipe", "device", "list", "lfs"])
def test_sizes_that_are_no_file_of_sizes_are_refused_at_once(run, micro_bundle, tmp_path, what):
    path = tmp_path / "config.json"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path = Path("/dev/zero")
    else:
        path.write_text("[1]" if what == "list" else "version https://git-lfs.github.com/spec/v1\n")
    said = run("build", micro_bundle, "-o", tmp_path / "engine", "--config", path, code=1).stderr
    assert str(path) in said.replace("\n", "")
