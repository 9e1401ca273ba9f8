"""The cache remembers several places, and nothing fails where there is no place for a cache."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lumosx_rt.artifact import user_cache as cache
from lumosx_rt.reference.checkpoints.bundle import find_bundle


def bundle(folder: Path):
    """A bundle of one part, whose content is the same everywhere."""
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    return find_bundle(folder)


def remembered(digest: str) -> list[str]:
    return [found.root.name for found in cache.places(digest)]


def test_a_copy_that_is_removed_does_not_hide_the_original(tmp_path, own_cache):
    for name in ("original", "copy"):
        cache.remember(bundle(tmp_path / name), {"tokenizer": "d" * 64})
    assert remembered("d" * 64) == ["copy", "original"]
    (tmp_path / "copy").rename(tmp_path / "away")
    found = cache.recall("d" * 64)
    assert found is not None and found.root == tmp_path / "original"


def test_places_are_bounded_and_the_last_comes_first(tmp_path, own_cache):
    for number in range(cache.PLACES + 3):
        cache.remember(bundle(tmp_path / str(number)), {"tokenizer": "d"})
    assert remembered("d") == [str(number) for number in range(cache.PLACES + 2, 2, -1)]
    cache.remember(find_bundle(tmp_path / "5"), {"tokenizer": "d"})
    assert remembered("d")[:2] == ["5", "10"] and len(remembered("d")) == cache.PLACES


def test_a_note_of_an_earlier_version_is_read(tmp_path, own_cache):
    bundle(tmp_path / "one")
    (own_cache / "bundles").mkdir(parents=True)
    (own_cache / "bundles" / "d.json").write_text(f'{{"root": "{tmp_path / "one"}"}}')
    assert remembered("d") == ["one"]


def test_a_relative_cache_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUMOSX_CACHE", "cache-here")
    assert cache.cache_dir() == tmp_path / "cache-here"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cache.cache_dir() == tmp_path / "cache-here"


def spoil_file(place: Path) -> None:
    place.write_text("a file")


def spoil_pipes(place: Path) -> None:
    for kind in ("hashes", "bundles", "compiled"):
        (place / kind).mkdir(parents=True)
        os.mkfifo(place / kind / "d.json")


def spoil_link(place: Path) -> None:
    place.symlink_to(place)


def spoil_kinds(place: Path) -> None:
    place.mkdir()
    for kind in ("hashes", "bundles", "compiled"):
        (place / kind).write_text("a file")


@pytest.mark.parametrize("spoil", [spoil_file, spoil_pipes, spoil_link, spoil_kinds])
def test_a_cache_that_is_none_costs_time_and_nothing_else(tmp_path, monkeypatch, spoil):
    monkeypatch.setenv("LUMOSX_CACHE", str(tmp_path / "cache"))
    spoil(tmp_path / "cache")
    found = bundle(tmp_path / "one")
    assert cache.content_hash(found.tokenizer) == found.tokenizer.sha256
    cache.remember(found, {"tokenizer": "d"})
    assert cache.recall("e") is None and not cache.compiled_here("e")
    cache.note_compiled("e")


@pytest.mark.parametrize("number", [13, 28, 30, 122])
def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, own_cache, monkeypatch, number):
    def fails(*args, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cache, "write_atomically", fails)
    monkeypatch.setattr(cache, "read_json", fails)
    found = bundle(tmp_path / "one")
    cache.remember(found, {"tokenizer": cache.content_hash(found.tokenizer)})
    assert cache.recall("d") is None and not cache.compiled_here("d")


def test_an_unknown_user_without_a_home_has_a_place_of_this_process(tmp_path):
    code = (
        "import pathlib; from lumosx_rt.artifact import user_cache as cache\n"
        "def nobody(): raise RuntimeError('Could not determine home directory.')\n"
        "pathlib.Path.home = nobody\n"
        "cache.note_compiled('d'); print(cache.compiled_here('d'), cache.cache_dir())"
    )
    known = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    known = {k: v for k, v in known.items() if k != "LUMOSX_CACHE"} | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=known)
    assert done.stdout.startswith(f"True {tmp_path}"), done.stderr
    assert not list(tmp_path.iterdir())  # nothing is left of it
