"""Scenes that reach out of their folder, or whose scene.toml is no text anybody wrote."""

from pathlib import Path

import pytest

from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.scenes.scene import Scene
from tests.helpers.prompt_folder import folder


@pytest.mark.parametrize("place", ["objects/lamp.png", "objects", "subjects/1", "caption.txt"])
def test_links_out_of_the_folder_are_refused(tmp_path, place):
    outside = folder(tmp_path / "outside", {"lamp.png": 1, "caption.txt": "secret"})
    root = folder(tmp_path / "inside", {"background/park.png": 1, "subjects": None})
    (root / place).parent.mkdir(exist_ok=True)
    target = outside / Path(place).name if "." in place else outside
    (root / place).symlink_to(target)
    with pytest.raises(LumosXError, match="leads out of the folder"):
        Scene.from_folder(root)


def test_names_that_cannot_be_written_are_refused(tmp_path):
    root = folder(tmp_path, {"caption.txt": "x", "objects/a\nb.png": 1})
    with pytest.raises(LumosXError, match=r"'a\\nb.png'; rename it"):
        Scene.from_folder(root)


@pytest.mark.parametrize(
    "image", ["../o.png", "/etc/hosts", "a/../../o.png", "link.png", "x\\u0000"]
)
def test_toml_stays_in_its_folder(tmp_path, image):
    folder(tmp_path, {"o.png": 1})
    content = f'caption = "a"\nobjects = [{{ word = "a", image = "{image}" }}]'
    root = folder(tmp_path / "x", {"scene.toml": content})
    (root / "link.png").symlink_to(tmp_path / "o.png")
    with pytest.raises(LumosXError, match="object 1: .* leads out of the folder"):
        Scene.load(root)


@pytest.mark.parametrize("content", ["caption = ", "a = " + "[" * 5000, "\ud800", "x" * (1 << 21)])
def test_toml_that_is_none(tmp_path, content):
    (tmp_path / "scene.toml").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(LumosXError, match="scene.toml"):
        Scene.load(tmp_path)
