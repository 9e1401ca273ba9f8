"""Checkpoint in, engine directory out: in stages that a killed build does not have to repeat.

Everything is written to `.<name>.partial` beside the engine and renamed at the end, so there is
never half an engine. A stage is found again by the hash of everything it depends on.
"""

import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Unpack, cast

from lumosx_rt.artifact import user_cache as cache
from lumosx_rt.artifact.manifest import (
    Manifest,
    check_files,
    read_manifest,
    record_files,
)
from lumosx_rt.artifact.report import write_report
from lumosx_rt.artifact.source import ENCODERS, CheckpointSource, RandomSource, Source
from lumosx_rt.backends.common.compiler import Compiler
from lumosx_rt.backends.common.forward_parity import forward_parity
from lumosx_rt.backends.table import compiler_of, load_backend
from lumosx_rt.builder.options import BuildOptions
from lumosx_rt.builder.stages import STAGES, put_in_place, run_stages
from lumosx_rt.calibration.formats import format_of
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.checkpoints.bundle import find_bundle
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.progress import Report
from lumosx_rt.reference.sampling.inputs import LIMITS
from lumosx_rt.runtime.memory import peak_memory_bytes

MAX_REFERENCES = 16


def build(
    checkpoint: str | Path | None,
    out: str | Path,
    *,
    backend: str = "auto",
    self_contained: bool = False,
    force: bool = False,
    report: Report = lambda line: None,
    **options: Unpack[BuildOptions],
) -> Path:
    """Build an engine directory and return its path.

    checkpoint: anything `find_bundle` recognises; or None for a `preset` with random weights.
    backend: "onnxruntime" (also "auto"), "torch" (code compiled for this kind of machine),
    "tensorrt-rtx" (a plan for GPUs that need not be here), or "tensorrt" (one for the GPU here).
    self_contained: copy text encoder, tokenizer and VAE in. force: replace what is at `out`.
    report: shown what is being done. options: `BuildOptions`. Raises LumosXError; nothing is left
    at `out` then.
    """
    given, out = Path(out), Path(os.path.abspath(out))
    asked = dict(options)
    weights = [asked.pop(name, None) for name in ("preset", "seed", "config")]
    preset, seed, config = cast(tuple[str | None, int | None, LumosXConfig | None], weights)
    wanted_references = cast(int | None, asked.pop("max_references", None))
    max_references = MAX_REFERENCES if wanted_references is None else wanted_references
    compiler = compiler_of(backend, asked, random=preset is not None)
    _check_references(max_references)
    if (checkpoint is None) == (preset is None):
        raise LumosXError("build: name either a checkpoint, or a preset for random weights")
    _check_place(out)
    started = time.monotonic()
    source: Source
    if preset is not None:
        source = RandomSource(preset, seed or 0)
    else:
        assert checkpoint is not None
        source = CheckpointSource(find_bundle(checkpoint), config)
        report(f"checkpoint: {source.bundle.kind} layout at {source.bundle.root}")
    if backend == "auto":
        report("backend: onnxruntime, the one that runs on every machine, with or without a GPU")
    report("reading the weights")
    model = source.load()
    identity = source.identity()
    if format_of(compiler.precision).quantized and compiler.document is None:
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
    facts = run_stages(partial, key, source, model, limits, compiler, self_contained, report)

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
    put_in_place(partial, out)
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


def _components(source: Source, partial: Path) -> dict[str, str]:
    """Hash of the encoders the engine belongs to: its own, else those beside the weights."""
    if (partial / "components").is_dir():
        bundle = find_bundle(partial / "components")
        if isinstance(source, CheckpointSource):
            cache.remember(source.bundle, {"transformer": source.hashes["transformer"]})
        return {name: bundle.require(name).sha256 for name in ENCODERS}
    if isinstance(source, CheckpointSource):
        cache.remember(source.bundle, source.hashes)
        return {name: digest for name, digest in source.hashes.items() if name in ENCODERS}
    return {}
