"""Pages of the documentation: links and anchors exist, generated pages are current, limits hold."""

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

import lumosx_rt as rt

ROOT = Path(__file__).parents[2]
FLOORS = tuple(ROOT / name / "README.md" for name in ("kernels", "calibration", "examples"))
PAGES = sorted([*ROOT.glob("*.md"), *FLOORS, *(ROOT / "docs").rglob("*.md")])
UNTRACKED = ("checkpoints/lumosx", "checkpoints/wan2.1")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CITED = re.compile(r"docs/([\w/-]+\.md) ?((?:(?:,|\s|and|to)*#[\w.-]+)+)")
PATH = re.compile(r"`((?:\w+/)+[\w.-]*)`")
PLACES = ("reference", "kernels", "export", "calibration", "lumosx_rt", "benchmarks", "tests")


def plain(text: str) -> str:
    """A page without code, where nothing is a link."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


@cache
def anchors(page: Path) -> frozenset[str]:
    """What a link to a page may end in."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = set(re.findall(r"\{#([\w.-]+)\}", text))
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        bare = re.sub(r"\{#.*\}", "", heading)
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", bare).strip().lower()))
    return frozenset(found)


def broken(page: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    problems = []
    for link in LINK.findall(plain(page.read_text("utf-8"))):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            problems.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target):
            problems.append(f"{link}: no such anchor")
    return problems


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    assert not broken(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(page: Path) -> None:
    folders = {folder.name for folder in ROOT.iterdir() if folder.is_dir()} - {"out", "engines"}
    for path in PATH.findall(page.read_text("utf-8")):
        if path.split("/")[0] in folders and not path.startswith(UNTRACKED):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("floor", ["kernels", "calibration"])
def test_a_floor_lists_its_files(floor: str) -> None:
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / floor / "README.md").read_text("utf-8"), re.M)
    listed = {name for row in rows for name in re.findall(r"`([\w/]+\.py)`", row)}
    there = {file.relative_to(ROOT / floor).as_posix() for file in (ROOT / floor).rglob("*.py")}
    assert listed == {name for name in there if not name.startswith("plugins/")}


def test_a_broken_link_is_noticed(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A b: c {#own}\n\n[x](page.md#own) [x](#a-b-c) [x](no.md) [x](#no) `[x](y)`\n"
    )
    assert broken(page) == ["no.md: no such file", "#no: no such anchor"]


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
    listed = re.findall(r"([\w/-]+\.md)", navigation)
    there = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES if "docs" in page.parts]
    assert sorted(listed) == sorted(there)


def test_citations_in_the_code_exist() -> None:
    count = 0
    for folder in PLACES:
        for file in (ROOT / folder).rglob("*.py"):
            for page, cited in CITED.findall(file.read_text("utf-8")):
                for anchor in re.findall(r"#([\w.-]+)", cited):
                    count += 1
                    known = anchors(ROOT / "docs" / page)
                    assert anchor == "anchor" or anchor.rstrip(".") in known, f"{file}: #{anchor}"
    assert count > 90


def test_the_readme_keeps_its_limits() -> None:
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 150
    assert not [line for line in lines if len(line) > 120]


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_current(generate) -> None:
    for name, text in (("cli.md", generate.cli_page()), ("api.md", generate.api_page())):
        assert (ROOT / "docs" / name).read_text("utf-8") == text, "python docs/generate.py"


def test_every_public_name_is_on_the_api_page() -> None:
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    assert all(getattr(rt, name) for name in rt.__all__)
    assert re.findall(r"^\[\]\(\)\{#(\w+)\}$", text, re.MULTILINE) == list(rt.__all__)
    for name, place in zip(rt.__all__, re.findall(r"^::: ([\w.]+)$", text, re.M), strict=True):
        assert place.endswith(f".{name}")


def test_every_command_and_option_is_on_the_command_line_page(generate) -> None:
    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    for name, command in generate.program().commands.items():
        section = text.partition(f"\n## {name} {{#{name}}}\n")[2].partition("\n## ")[0]
        assert section
        for parameter in command.params:
            if parameter.name != "help":
                said = parameter.opts if parameter.param_type_name == "option" else [name]
                assert all(word in section for word in said), (name, parameter.name)


def test_no_section_is_cited_by_number() -> None:
    # a hash of story.py's text says which results of the drawn world can be compared
    kept = ROOT / "reference" / "world" / "story.py"
    for folder in PLACES:
        for file in {*(ROOT / folder).rglob("*.py")} - {kept}:
            found = re.search(r"\bSPEC \d", file.read_text("utf-8"))
            assert found is None, f"{file}: cite docs/spec.md#anchor"
