"""mkdocs hook: pages may link files of the repository (pictures, records); the site gets copies.

A link `../benchmarks/results/x.json` works in the repository. In the site it becomes a link to
`repository/benchmarks/results/x.json`.
"""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = re.compile(r"(\]\()((?:\.\./)+)([^)#\s]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add every file outside docs/ that a page links."""
    for page in list(files.documentation_pages()):
        text = Path(page.abs_src_path).read_text("utf-8")
        for match in OUTSIDE.finditer(text):
            name = outside(page.src_uri, match)
            if name is not None and files.get_file_from_path(f"repository/{name}") is None:
                source = str(ROOT / name)
                files.append(File.generated(config, f"repository/{name}", abs_src_path=source))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links to such files at their copies."""

    def moved(match: re.Match[str]) -> str:
        name = outside(page.file.src_uri, match)
        if name is None:
            return match[0]
        up = "../" * (len(PurePosixPath(page.file.src_uri).parts) - 1)
        return f"{match[1]}{up}repository/{name}"

    return OUTSIDE.sub(moved, markdown)


def outside(page: str, match: re.Match[str]) -> str | None:
    """The path from the repository's root if a link leaves docs/."""
    depth = len(PurePosixPath(page).parts) - 1
    return match[3] if match[2].count("../") > depth else None
