"""The stages of a build, each kept once it is done and found again by a hash of its inputs.

Everything is written to `.<name>.partial` beside the engine and renamed at the end, so there is
never half an engine.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lumosx_rt.artifact.manifest import CALIBRATION, STAGES, FileRecord, record_files
from lumosx_rt.artifact.source import ENCODERS, RandomSource, Source
from lumosx_rt.backends.common.compiler import Compiler
from lumosx_rt.export.limits import Limits
from lumosx_rt.reference.backbones.saving import save_bundle
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import BadInput, LumosXError
from lumosx_rt.reference.files import read_json, write_atomically
from lumosx_rt.reference.places import remove
from lumosx_rt.reference.progress import Report


def run_stages(
    partial: Path,
    key: str,
    source: Source,
    model: LumosX,
    limits: Limits,
    compiler: Compiler,
    self_contained: bool,
    report: Report,
) -> dict[str, Any]:
    """Run what an earlier, killed build of the same key has not finished; returns its facts."""
    done = _finished_stages(partial, key)
    if "components" not in done:
        remove(partial)
        partial.mkdir(parents=True)
        _copy_components(partial, source, self_contained, report)
        if compiler.document is not None:
            compiler.document.write(partial / CALIBRATION)
        _finish(partial, key, done, "components", {})
    if "transformer" in done and compiler.vouches_for(partial):
        report("compiled transformer: found from an earlier build")
    else:
        shutil.rmtree((partial / compiler.files[0]).parent, ignore_errors=True)
        facts = compiler.compile(model, partial, limits, report)
        _finish(partial, key, done, "transformer", facts)
    made: dict[str, Any] = done["transformer"]["facts"]
    return made


def _finished_stages(partial: Path, key: str) -> dict[str, dict[str, Any]]:
    try:
        state = read_json(partial / STAGES)
        if state["key"] != key:
            return {}
        present = record_files(partial)
        for stage in state["done"].values():
            if any(asdict(present[name]) != record for name, record in stage["files"].items()):
                return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, LumosXError):
        return {}
    found: dict[str, dict[str, Any]] = state["done"]
    return found


def _finish(
    partial: Path, key: str, done: dict[str, dict[str, Any]], stage: str, facts: dict[str, Any]
) -> None:
    files: dict[str, FileRecord] = record_files(partial)
    done[stage] = {"files": {name: asdict(r) for name, r in files.items()}, "facts": facts}
    write_atomically(partial / STAGES, json.dumps({"key": key, "done": done}))


def _copy_components(partial: Path, source: Source, self_contained: bool, report: Report) -> None:
    target = partial / "components"
    if isinstance(source, RandomSource):
        if source.preset != "tiny":
            report("components: none; random weights of this size come without encoders")
            return
        from lumosx_rt.reference.encoders.random import random_components

        text_encoder, tokenizer, vae = random_components(source.seed)
        save_bundle(target, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer)
    elif self_contained:
        bundle = source.bundle
        from lumosx_rt.reference.encoders.umt5 import load_text_encoder
        from lumosx_rt.reference.encoders.wan_vae import load_vae

        missing = [name for name in ENCODERS if getattr(bundle, name) is None]
        if missing:
            raise BadInput(
                f"--self-contained: {bundle.root} has no {', '.join(missing)} to copy in"
            )
        report("copying text encoder, tokenizer and VAE")
        encoder, vae_coder = load_text_encoder(bundle), load_vae(bundle, dtype=None)
        save_bundle(
            target, vae=vae_coder.model, text_encoder=encoder.model, tokenizer=encoder.tokenizer
        )
