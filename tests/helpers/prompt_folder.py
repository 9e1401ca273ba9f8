"""Prompt folders, made of a few words."""

from pathlib import Path

from PIL import Image


def folder(root: Path, files: dict[str, str | int | None]) -> Path:
    """A prompt folder: a text is written, a number is a grey picture, None an empty folder."""
    for name, content in files.items():
        path = root / name
        (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif content is not None:
            Image.new("RGB", (6, 4), (content,) * 3).save(path, "PNG")
    return root
