"""What a path is: an engine, a scene or a checkpoint, described for people and programs."""

from pathlib import Path
from typing import Any

from lumosx_rt.artifact.manifest import MANIFEST, check_files, read_manifest
from lumosx_rt.artifact.report import read_report
from lumosx_rt.artifact.source import encoders_of
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.checkpoints.bundle import COMPONENTS, find_bundle
from lumosx_rt.reference.encoders.umt5 import tokenized
from lumosx_rt.reference.encoders.weights import load_tokenizer
from lumosx_rt.reference.errors import BadInput, LumosXError
from lumosx_rt.reference.files import replacing
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout, layout_of
from lumosx_rt.reference.scenes.folder import SCENE_FILE
from lumosx_rt.reference.scenes.scene import Scene
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.reference.scenes.words import clean_text


def describe(
    path: Path, size: VideoSize, picture: Path | None = None, engine: Path | None = None
) -> dict[str, Any]:
    """Facts about an engine, a scene, a checkpoint, or a layout key such as 21x30x52+1+4.4.

    size: of the video, for a scene's layout. picture: where to draw the layout of a scene or key.
    engine: one that a scene is for, whose tokenizer says what is read of the caption. Raises
    LumosXError if the path is none of these, or damaged.
    """
    check_picture(picture)
    if not path.exists() and "+" in path.name:
        layout = SceneLayout.from_key(str(path))
        _draw(picture, layout)
        return {"kind": "layout"} | _layout(layout)
    if (path / MANIFEST).is_file():
        if picture is not None:
            raise BadInput(f"{path} is an engine; a layout is drawn of a scene or a layout key")
        return _engine(path)
    if path.suffix == ".toml" or any((path / n).is_file() for n in ("caption.txt", SCENE_FILE)):
        return _scene(Scene.load(path), size, picture, engine)
    try:
        return _checkpoint(path)
    except LumosXError as error:
        raise BadInput(
            f"{path} is no engine ({MANIFEST}) and no scene (caption.txt or {SCENE_FILE}); "
            f"as a checkpoint: {error}"
        ) from None


def check_picture(picture: Path | None) -> None:
    """Raise LumosXError for a name that is none of a PNG file."""
    if picture is not None and picture.suffix.lower() != ".png":
        raise BadInput(f"layout_png: got '{picture}', a file that ends in .png is needed")


def _engine(path: Path) -> dict[str, Any]:
    manifest = read_manifest(path)
    check_files(path, manifest)
    report = read_report(path)
    check, build = report.get("verify"), report.get("build", {})
    return {
        "kind": "engine",
        "backend": manifest.backend,
        "precision": manifest.precision,
        "model": manifest.model,
        "checkpoint": manifest.checkpoint,
        "layouts": manifest.layouts,
        "defaults": manifest.defaults,
        "versions": manifest.versions,
        "components": manifest.components,
        "bytes": sum(record.bytes for record in manifest.files.values()),
        "files": len(manifest.files),
        "verified": None if check is None else check["passed"],
        "device": manifest.device,
        "operators": build.get("operators", {}),
        "layers": build.get("layers", {}),
        "buckets": build.get("buckets", {}),
    }


def _scene(
    scene: Scene, size: VideoSize, picture: Path | None, engine: Path | None
) -> dict[str, Any]:
    errors, warnings = scene.problems()
    caption = clean_text(scene.caption)
    words = [clean_text(reference.word) for reference in scene.references]
    spans = [occurrences(word, caption) for word in words]
    facts: dict[str, Any] = {
        "kind": "scene",
        "name": scene.name,
        "caption": caption,
        "words": words,
        "spans": spans,
        "errors": errors,
        "warnings": warnings,
    }
    if engine is not None:
        facts["caption_tokens"] = _read(caption, engine, warnings)
    if 0 in scene.subject_sizes:  # an error above; such a scene has no layout
        return facts
    layout = layout_of(scene, size.grid)
    _draw(picture, layout, words, caption, spans)
    return facts | _layout(layout)


def _read(caption: str, engine: Path, warnings: list[str]) -> dict[str, int]:
    """Count the caption's tokens, and those that an engine reads; warns where it is cut."""
    manifest = read_manifest(engine)
    most = LumosXConfig.from_dict(manifest.model).text_len
    tokenizer = load_tokenizer(encoders_of(manifest, engine, None).require("tokenizer").path)
    prompt = tokenized(tokenizer, caption, most)
    warnings += prompt.cut("the caption")
    return {"all": prompt.tokens, "read": min(prompt.tokens, most)}


def _layout(layout: SceneLayout) -> dict[str, Any]:
    return {
        "layout": layout.key,
        "references": layout.references,
        "tokens": layout.tokens,
        "video_tokens": layout.video_tokens,
        "frame_tokens": layout.frame_tokens,
        "groups": layout.groups,
        "attention_ranges": layout.attention_ranges,
    }


def _checkpoint(path: Path) -> dict[str, Any]:
    bundle = find_bundle(path)
    parts = {}
    for name in COMPONENTS:
        part = getattr(bundle, name)
        if part is not None:
            where = (
                part.path.relative_to(bundle.root).as_posix() if part.path != bundle.root else "."
            )
            size = sum(file.stat().st_size for file in part.files)
            parts[name] = {"path": where, "format": part.format, "bytes": size}
    return {"kind": "checkpoint", "layout": bundle.kind, "parts": parts}


def occurrences(word: str, text: str) -> list[tuple[int, int]]:
    """Return every place where a word stands in a text, as character ranges."""
    spans, start = [], text.find(word) if word else -1
    while start >= 0:
        spans.append((start, start + len(word)))
        start = text.find(word, start + 1)
    return spans


def _draw(picture: Path | None, layout: SceneLayout, *words: Any) -> None:
    if picture is None:
        return
    from lumosx_rt.drawing.layout import layout_picture

    with replacing(picture) as temporary:
        layout_picture(layout, *words).save(temporary, format="PNG")


def for_people(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the same facts with words where programs are given pairs of numbers."""
    shown = dict(facts)
    if "spans" in shown:
        found = zip(shown["words"], shown.pop("spans"), strict=True)
        shown["words"] = [f"'{word}': {_places(spans)}" for word, spans in found]
    if "groups" in shown:
        video = shown["video_tokens"] // shown["frame_tokens"]
        shown["groups"] = [
            _counted("reference", start - video + 1, stop - video)
            for start, stop in shown["groups"]
        ]
        shown["attention_ranges"] = [
            f"{_counted('token', *_within(queries))} see {_counted('token', *_within(keys))}"
            for queries, keys in shown["attention_ranges"]
        ]
    if "layouts" in shown:
        shown["layouts"] = {
            n: f"{least} to {most}" for n, (least, most) in facts["layouts"].items()
        }
    if "verified" in shown:
        passed = {None: "not compared with the reference", True: "passed", False: "failed"}
        shown["verified"] = passed[shown["verified"]]
    return shown


def _places(spans: list[tuple[int, int]]) -> str:
    if not spans:
        return "not in the caption"
    several = "characters" if len(spans) > 1 else "character"
    return f"in the caption from {several} {', '.join(str(start + 1) for start, _ in spans)}"


def _within(range_: tuple[int, int]) -> tuple[int, int]:
    return range_[0], range_[1] - 1


def _counted(what: str, first: int, last: int) -> str:
    return f"{what} {first:,}" if first == last else f"{what}s {first:,} to {last:,}"


def as_text(facts: dict[str, Any], indent: str = "") -> str:
    """Facts, one a line."""
    lines = []
    for name, value in facts.items():
        label = f"{indent}{name.replace('_', ' ')}"
        if isinstance(value, dict) and value:
            lines += [f"{label}:", as_text(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], str):
            lines += [f"{label}:", *(f"{indent}  - {item}" for item in value)]
        elif value not in ({}, []):
            lines.append(f"{label}: {value}")
    return "\n".join(lines)
