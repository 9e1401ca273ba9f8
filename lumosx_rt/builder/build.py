"""Checkpoint in, engine directory out: in stages that a killed build does not have to repeat.

Everything is written to `.<name>.partial` beside the engine and renamed at the end, so there is
never half an engine. A stage is found again by the hash of everything it depends on.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from lumosx_rt.artifact import user_cache as cache
from lumosx_rt.artifact.manifest import (
    CALIBRATION,
    FileRecord,
    Manifest,
    check_files,
    read_manifest,
    record_files,
)
from lumosx_rt.artifact.report import write_report
from lumosx_rt.artifact.source import ENCODERS, CheckpointSource, RandomSource, Source
from lumosx_rt.backends.common.compiler import Compiler, Report
from lumosx_rt.backends.common.forward_parity import forward_parity
from lumosx_rt.backends.compiler import compiler_of
from lumosx_rt.backends.loading import load_backend
from lumosx_rt.export.limits import Limits
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.saving import save_bundle
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.checkpoints.bundle import find_bundle
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.files import write_atomically
from lumosx_rt.reference.sampling.inputs import LIMITS
from lumosx_rt.reference.scenes.video_size import VideoSize
from lumosx_rt.runtime.memory import peak_memory_bytes

MAX_REFERENCES = 16
STAGES = "stages.json"


def build(
    checkpoint: str | Path | None,
    out: str | Path,
    *,
    preset: str | None = None,
    seed: int = 0,
    backend: str = "auto",
    precision: str | None = None,
    opset: int | None = None,
    device: str = "auto",
    targets: str | Sequence[str] | None = None,
    max_references: int = MAX_REFERENCES,
    max_seeds: int | None = None,
    max_size: VideoSize | None = None,
    buckets: str | Sequence[int] | None = None,
    weight_streaming: bool = False,
    calibration: str | Path | None = None,
    config: LumosXConfig | None = None,
    self_contained: bool = False,
    force: bool = False,
    report: Report = lambda line: None,
) -> Path:
    """Build an engine directory and return its path.

    checkpoint: anything `find_bundle` recognises; or None for a `preset` with random weights.
    backend: "onnxruntime" (also "auto"), "torch" (code compiled for this kind of machine),
    "tensorrt-rtx" (a plan for GPUs that need not be here), or "tensorrt" (one for the GPU here).
    precision: "fp32", "fp16" (onnxruntime: matrices stored in half precision, computed in float32;
    a plan computes in it), "bf16" (the released mixed precision) or "fp8" (e4m3, by the scales of
    the file `calibration`, or observed on noise for a preset); by default fp32, and bf16 for a GPU.
    opset: onnxruntime's. device: torch's, "auto" (a GPU if there is one), "cpu" or "cuda".
    targets ("sm_89,sm_120"), max_seeds, max_size (the checkpoint's own), buckets (in fp8: the
    references that each of several plans serves, "4,16") and weight_streaming (weights stay on the
    host where the GPU is small) are a plan's.
    self_contained: copy text encoder, tokenizer and VAE in. force: replace what stands at `out`.
    report: told what is being done. Raises LumosXError; nothing is left at `out` then.
    """
    given, out = Path(out), Path(os.path.abspath(out))
    compiler = compiler_of(
        backend,
        precision,
        opset,
        device,
        targets=targets,
        max_seeds=max_seeds,
        max_size=max_size,
        buckets=buckets,
        weight_streaming=weight_streaming,
        calibration=None if calibration is None else Path(calibration),
        random=preset is not None,
    )
    _check_references(max_references)
    if (checkpoint is None) == (preset is None):
        raise LumosXError("build: name either a checkpoint, or a preset for random weights")
    _check_place(out)
    started = time.monotonic()
    source: Source
    if preset is not None:
        source = RandomSource(preset, seed)
    else:
        assert checkpoint is not None
        source = CheckpointSource(find_bundle(checkpoint), config)
        report(f"checkpoint: {source.bundle.kind} layout at {source.bundle.root}")
    if backend == "auto":
        report("backend: onnxruntime, the one that runs on every machine, with or without a GPU")
    report("reading the weights")
    model = source.load()
    identity = source.identity()
    if compiler.precision == "fp8" and compiler.document is None:
        from lumosx_rt.calibration.noise import noise_calibration

        report("random weights: scales are observed on noise")
        document = noise_calibration(model, identity["sha256"])
        compiler = replace(cast(Any, compiler), document=document)  # compilers are dataclasses
    if compiler.document is not None:
        compiler.document.check(model, identity["sha256"])
    _check_disk(out, model, compiler)

    versions = compiler.versions
    limits = compiler.limits(source.defaults, max_references)
    wanted = {
        "checkpoint": identity,
        "model": asdict(model.config),
        "precision": compiler.precision,
        "max_references": max_references,
        "self_contained": self_contained,
        "defaults": source.defaults,
        "versions": versions,
        **compiler.options,
    }
    if compiler.document is not None:
        wanted["calibration"] = asdict(compiler.document)
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    if out.exists() and not force:
        problem = _why_not_up_to_date(out, key, compiler)
        if problem:
            raise LumosXError(f"{problem}\nchoose another name, or replace it with --force")
        report(f"{given} is up to date")
        return given
    partial = out.with_name(f".{out.name}.partial")
    facts = _run_stages(partial, key, source, model, limits, compiler, self_contained, report)

    components = _components(source, partial)
    manifest = Manifest(
        model=asdict(model.config),
        checkpoint=identity | {"build": key},
        backend=compiler.backend,
        precision=compiler.precision,
        device=compiler.device,
        versions=versions,
        layouts=limits.table(),
        defaults=source.defaults,
        components=components,
    )
    if compiler.provider is not None:
        report("checking the engine against the reference")
        # compiled here, just now or before, whether or not the cache could note it
        made = load_backend(partial, manifest, compiler.provider, trust=True)
        facts["parity"] = forward_parity(model, made, compiler.precision, compiler.document)
    checks = facts["parity"]
    facts |= {
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    failed = [check for check in checks if not check["relative_error"] <= check["gate"]]
    if failed:
        shutil.rmtree(partial)  # or the same wrong graph would be found again
        worst = max(failed, key=lambda check: check["relative_error"] / check["gate"])
        raise LumosXError(
            f"the {compiler.precision} {compiler.backend} engine differs from the reference by "
            f"{worst['relative_error']:.1e} (gate {worst['gate']:.0e}); it was not kept. "
            f"{compiler.remedy}"
        )
    files = record_files(partial)
    files.pop(STAGES)
    manifest = replace(manifest, files=files)
    write_report(partial, manifest, build=facts)
    manifest.write(partial)
    _put_in_place(partial, out)
    report(f"{given} built in {facts['seconds']} s")
    return given


def _check_references(max_references: int) -> None:
    most = LIMITS["references"][1]
    if not 0 < max_references <= most:
        raise LumosXError(f"max_references: got {max_references}, accepted are 1 to {most}")


def _check_disk(out: Path, model: LumosX, compiler: Compiler) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    needed = int(parameters * compiler.bytes_per_parameter * 1.1) + (64 << 20)
    folder = _nearest_folder(out)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise LumosXError(
            f"{folder} has {free >> 20} MiB free, the engine needs about {needed >> 20} MiB"
        )


def _check_place(out: Path) -> None:
    if out.exists() and not (out / "manifest.json").is_file():
        raise LumosXError(f"{out} exists and is no engine; choose another name, or move it away")
    folder = _nearest_folder(out)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise LumosXError(f"{out}: {folder} is no folder that can be written; choose another place")


def _nearest_folder(out: Path) -> Path:
    return next(parent for parent in out.parents if parent.exists())


def _why_not_up_to_date(out: Path, key: str, compiler: Compiler) -> str | None:
    try:
        manifest = read_manifest(out)
        check_files(out, manifest)
    except LumosXError as error:
        return str(error)
    if manifest.checkpoint.get("build") != key:
        return f"{out} is an engine built from other inputs"
    if not compiler.vouches_for(out):
        return f"{out} holds compiled code that was made elsewhere"
    return None


def _run_stages(
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
        shutil.rmtree(partial, ignore_errors=True)
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
        state = json.loads((partial / STAGES).read_text())
        if state["key"] != key:
            return {}
        present = record_files(partial)
        for stage in state["done"].values():
            if any(asdict(present[name]) != record for name, record in stage["files"].items()):
                return {}
    except (OSError, ValueError, KeyError):
        return {}
    found: dict[str, dict[str, Any]] = state["done"]
    return found


def _finish(
    partial: Path, key: str, done: dict[str, dict[str, Any]], stage: str, facts: dict[str, Any]
) -> None:
    files: dict[str, FileRecord] = record_files(partial)
    files.pop(STAGES, None)
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
            raise LumosXError(
                f"--self-contained: {bundle.root} has no {', '.join(missing)} to copy in"
            )
        report("copying text encoder, tokenizer and VAE")
        encoder, vae_coder = load_text_encoder(bundle), load_vae(bundle, dtype=None)
        save_bundle(
            target, vae=vae_coder.model, text_encoder=encoder.model, tokenizer=encoder.tokenizer
        )


def _components(source: Source, partial: Path) -> dict[str, str]:
    """Hashes of the encoders the engine belongs to: its own, else those beside the weights."""
    if (partial / "components").is_dir():
        bundle = find_bundle(partial / "components")
        if isinstance(source, CheckpointSource):
            cache.remember(source.bundle, {"transformer": source.hashes["transformer"]})
        return {name: bundle.require(name).sha256 for name in ENCODERS}
    if isinstance(source, CheckpointSource):
        cache.remember(source.bundle, source.hashes)
        return {name: digest for name, digest in source.hashes.items() if name in ENCODERS}
    return {}


def _put_in_place(partial: Path, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    (partial / STAGES).unlink()
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)
