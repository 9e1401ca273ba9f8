"""What may be asked of a build beside its checkpoint: each option by its name."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.scenes.video_size import VideoSize


class BuildOptions(TypedDict, total=False):
    """Options of weights, of limits and of backends; None, or unsaid, is the default.

    Which options a backend has is in its `*Options` dataclass (lumosx_rt/backends/*/room.py).
    """

    preset: str | None
    """Random weights of this size, "tiny", "1.3b" or "14b", in place of a checkpoint."""
    seed: int | None
    """Of random weights; 0 by default."""
    config: LumosXConfig | None
    """The transformer's sizes, where nothing beside the weights says them."""
    max_references: int | None
    """Most pictures in a scene; 16 by default."""
    precision: str | None
    """A number format (calibration/formats.py); by default fp32, and bf16 for a GPU."""
    calibration: str | Path | None
    """The scales of a quantized format, a file of `lumosx-rt calibrate`."""
    opset: int | None
    """onnxruntime: the operator set."""
    device: str | None
    """torch: "auto" (a GPU if there is one), "cpu" or "cuda"."""
    targets: str | Sequence[str] | None
    """tensorrt-rtx: kinds of GPU, like "sm_89,sm_120"."""
    max_seeds: int | None
    """Plans: most videos of a scene at once."""
    max_size: VideoSize | None
    """Plans: the largest video, by default the checkpoint's own."""
    buckets: str | Sequence[int] | None
    """tensorrt-rtx in fp8: the references that each of several plans serves, like "4,16"."""
    weight_streaming: bool
    """Plans: weights stay on the host where the GPU is small."""
