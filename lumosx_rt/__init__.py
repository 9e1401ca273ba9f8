"""Compile a LumosX checkpoint into an engine, run it, and prove that it makes the same video.

    import lumosx_rt as rt

    rt.build("checkpoints/tiny", "engines/tiny")
    engine = rt.load("engines/tiny")
    videos = engine.generate(rt.Scene.load("samples/two-friends"), seeds=[0, 1])
    videos[0].save("two-friends.mp4")

Names are imported when they are first used, so `import lumosx_rt` stays instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lumosx_rt.builder import build as build
    from lumosx_rt.engine import Engine as Engine
    from lumosx_rt.engine import load as load
    from lumosx_rt.lossy import Lossy as Lossy
    from lumosx_rt.proof.parity import verify as verify
    from lumosx_rt.reference.binding import VideoSize as VideoSize
    from lumosx_rt.reference.errors import LumosXError as LumosXError
    from lumosx_rt.reference.layout import SceneLayout as SceneLayout
    from lumosx_rt.reference.scene import Scene as Scene
    from lumosx_rt.running.guards import Flat as Flat
    from lumosx_rt.running.guards import NotFinite as NotFinite
    from lumosx_rt.running.runtime import Video as Video

_HOMES = {
    "Engine": "engine",
    "Flat": "running.guards",
    "Lossy": "lossy",
    "LumosXError": "reference.errors",
    "NotFinite": "running.guards",
    "Scene": "reference.scene",
    "SceneLayout": "reference.layout",
    "Video": "running.runtime",
    "VideoSize": "reference.binding",
    "build": "builder",
    "load": "engine",
    "verify": "proof.parity",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lumosx_rt' has no attribute '{name}'")
    value = getattr(import_module(f"lumosx_rt.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
