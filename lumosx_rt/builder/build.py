"""Checkpoint in, engine directory out: in stages that a killed build does not have to repeat.

Everything is written to `.<name>.partial` beside the engine and renamed at the end, so there is
never half an engine. A stage is found again by the hash of everything it depends on.
"""

import hashlib
import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Unpack, cast

from lumosx_rt.artifact import user_cache as cache
from lumosx_rt.artifact.manifest import Manifest, record_files
from lumosx_rt.artifact.report import write_report
from lumosx_rt.artifact.source import ENCODERS, CheckpointSource, RandomSource, Source
from lumosx_rt.backends.common.compiler import Compiler
from lumosx_rt.backends.common.forward_parity import forward_parity
from lumosx_rt.backends.table import compiler_of, load_backend
from lumosx_rt.builder.options import BuildOptions
from lumosx_rt.builder.place import check_place, put_in_place, why_not_up_to_date
from lumosx_rt.builder.stages import run_stages
from lumosx_rt.calibration.formats import format_of
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.checkpoints.bundle import find_bundle
from lumosx_rt.reference.errors import BadInput, TooLittleMemory
from lumosx_rt.reference.kinds import checked
from lumosx_rt.reference.numbers import whole_number
from lumosx_rt.reference.places import held, nearest_folder, place_of
from lumosx_rt.reference.progress import Report
from lumosx_rt.reference.sampling.inputs import LIMITS
from lumosx_rt.runtime.memory import peak_memory_bytes

MAX_REFERENCES = 16


@checked
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
    A link at `out` stays, and is followed. A second process that builds there waits for the first.
    report: shown what is being done. options: `BuildOptions`. Raises LumosXError; nothing is left
    at `out` then.
    """
    given, out = Path(out), place_of(out)
    asked = dict(options)
    weights = [asked.pop(name, None) for name in ("preset", "seed", "config")]
    preset, seed, config = cast(tuple[str | None, int | None, LumosXConfig | None], weights)
    wanted_references = asked.pop("max_references", None)
    max_references = whole_number(
        MAX_REFERENCES if wanted_references is None else wanted_references,
        "max_references",
        1,
        LIMITS["references"][1],
    )
    compiler = compiler_of(backend, asked, random=preset is not None)
    if (checkpoint is None) == (preset is None):
        raise BadInput("build: name either a checkpoint, or a preset for random weights")
    source = _source(checkpoint, preset, seed, config)
    if isinstance(source, CheckpointSource):
        report(f"checkpoint: {source.bundle.kind} layout at {checkpoint}")
    if backend == "auto":
        report("backend: onnxruntime, the one that runs on every machine, with or without a GPU")
    waited: list[str] = []

    def wait(line: str) -> None:
        waited.append(line)
        report(line)

    with held(out, "build", wait):
        again = force and not waited  # or what the other process has just built may be enough
        facts = _build(out, source, compiler, max_references, self_contained, force, again, report)
    if facts is None:
        report(f"{given} is up to date")
    else:
        report(f"{given} built in {facts['seconds']} s")
    return given


def _source(
    checkpoint: str | Path | None, preset: str | None, seed: int | None, config: LumosXConfig | None
) -> Source:
    if preset is not None:
        return RandomSource(preset, 0 if seed is None else seed)
    assert checkpoint is not None
    return CheckpointSource(find_bundle(checkpoint), config)


def _build(
    out: Path,
    source: Source,
    compiler: Compiler,
    max_references: int,
    self_contained: bool,
    force: bool,
    again: bool,
    report: Report,
) -> dict[str, Any] | None:
    """Build at a place that is held. Returns the facts of the report; None: it is up to date.

    again: also where it is.
    """
    started = time.monotonic()
    there = check_place(out, force)
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
    if there and not again:
        problem = why_not_up_to_date(out, key, compiler)
        if problem is None:
            return None
        if not force:
            raise BadInput(f"{problem}\nchoose another name, or replace it with --force")
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
        raise BadInput(
            f"the {compiler.precision} {compiler.backend} engine differs from the reference by "
            f"{worst['relative_error']:.1e} (gate {worst['gate']:.0e}); it was not kept. "
            f"{compiler.remedy}"
        )
    manifest = replace(manifest, files=record_files(partial))
    write_report(partial, manifest, build=facts)
    manifest.write(partial)
    put_in_place(partial, out, force=force)
    return facts


def _check_disk(out: Path, model: LumosX, compiler: Compiler) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    needed = int(parameters * compiler.bytes_per_parameter * 1.1) + (64 << 20)
    folder = nearest_folder(out)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise TooLittleMemory(
            f"{folder} has {free >> 20} MiB free, the engine needs about {needed >> 20} MiB"
        )


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
