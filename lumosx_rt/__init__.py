"""Compile a LumosX checkpoint into an engine, run it, and prove that it makes the same video.

    import lumosx_rt as rt

    rt.build("checkpoints/tiny", "engines/tiny")
    engine = rt.load("engines/tiny")
    videos = engine.generate(rt.Scene.load("samples/drawn/two"), seeds=[0, 1])
    videos[0].save("two.mp4")

Names are imported when they are first used, so `import lumosx_rt` stays instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lumosx_rt.reference.version import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from lumosx_rt.artifact.certificate import NotVerified as NotVerified
    from lumosx_rt.bench.run import benchmark as benchmark
    from lumosx_rt.builder.build import build as build
    from lumosx_rt.builder.calibrate import calibrate as calibrate
    from lumosx_rt.builder.train import train as train
    from lumosx_rt.calibration.calibration_file import Calibration as Calibration
    from lumosx_rt.parity.verify import verify as verify
    from lumosx_rt.reference.errors import BadInput as BadInput
    from lumosx_rt.reference.errors import Flat as Flat
    from lumosx_rt.reference.errors import LumosXError as LumosXError
    from lumosx_rt.reference.errors import NotFinite as NotFinite
    from lumosx_rt.reference.errors import TooLittleMemory as TooLittleMemory
    from lumosx_rt.reference.errors import Unsupported as Unsupported
    from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout as SceneLayout
    from lumosx_rt.reference.sampling.memory_plan import MemoryPlan as MemoryPlan
    from lumosx_rt.reference.sampling.request import Request as Request
    from lumosx_rt.reference.sampling.shortcuts import Lossy as Lossy
    from lumosx_rt.reference.scenes.scene import Reference as Reference
    from lumosx_rt.reference.scenes.scene import Scene as Scene
    from lumosx_rt.reference.scenes.scene import Subject as Subject
    from lumosx_rt.reference.scenes.video_size import VideoSize as VideoSize
    from lumosx_rt.reference.training.recipe import Recipe as Recipe
    from lumosx_rt.reference.training.recipe import Stage as Stage
    from lumosx_rt.runtime.engine import Engine as Engine
    from lumosx_rt.runtime.engine import load as load
    from lumosx_rt.runtime.service import Service as Service
    from lumosx_rt.runtime.streaming import Event as Event
    from lumosx_rt.runtime.video import Video as Video

_HOMES = {
    "BadInput": "reference.errors",
    "Calibration": "calibration.calibration_file",
    "Engine": "runtime.engine",
    "Event": "runtime.streaming",
    "Flat": "reference.errors",
    "Lossy": "reference.sampling.shortcuts",
    "LumosXError": "reference.errors",
    "MemoryPlan": "reference.sampling.memory_plan",
    "NotFinite": "reference.errors",
    "NotVerified": "artifact.certificate",
    "Recipe": "reference.training.recipe",
    "Reference": "reference.scenes.scene",
    "Request": "reference.sampling.request",
    "Scene": "reference.scenes.scene",
    "SceneLayout": "reference.mechanisms.lumosx.layout",
    "Service": "runtime.service",
    "Stage": "reference.training.recipe",
    "Subject": "reference.scenes.scene",
    "TooLittleMemory": "reference.errors",
    "Unsupported": "reference.errors",
    "Video": "runtime.video",
    "VideoSize": "reference.scenes.video_size",
    "benchmark": "bench.run",
    "build": "builder.build",
    "calibrate": "builder.calibrate",
    "load": "runtime.engine",
    "train": "builder.train",
    "verify": "parity.verify",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lumosx_rt' has no attribute '{name}'")
    value = getattr(import_module(f"lumosx_rt.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
