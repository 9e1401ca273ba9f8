"""Clips: uint8 frames to an H.264 mp4 and back.

Writing is the released setting (16 frames a second, x264 at rate factor 10) and atomic. Reading is
hardened: mp4 and mov only, so that no playlist reaches other files or hosts; common codecs only;
sizes checked from the header, and decoded bytes counted while they come.
"""

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.files import open_regular, replacing

CODECS = ("h264", "hevc", "av1", "vp9", "mpeg4", "mjpeg")
MAX_FILE_BYTES = 4 << 30
MAX_DECODED_BYTES = 1 << 30
MAX_FRAME_PIXELS = 16_000_000

_BT601_LIMITED = (6, 1)  # matrix and range that the RGB conversion uses; untagged, players guess


def write_clip(
    path: str | os.PathLike[str],
    frames: NDArray[np.uint8],
    fps: float = 16,
    *,
    rate_factor: int = 10,
) -> Path:
    """Write frames, uint8 [frames, height, width, 3], as H.264 (yuv420p) mp4; return the path.

    rate_factor: x264's crf, 1 (largest file) to 51; 10 is the release's "quality 8"
    (docs/spec.md#precision). The
    codec needs even sizes: an odd side gets its last row or column once more. A file at `path` is
    replaced only when the new one is whole. Raises LumosXError for anything but such frames, and if
    it cannot be written.
    """
    path = Path(path)
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise BadInput(
            f"clip: frames must be uint8 [frames, height, width, 3], got {frames.dtype} "
            f"{list(frames.shape)}"
        )
    if not 1 <= fps <= 1000 or rate_factor not in range(1, 52):
        raise BadInput(
            f"clip: fps {fps} and rate factor {rate_factor}; accepted are 1 to 1000, and 1 to 51"
        )
    import av

    _, height, width, _ = frames.shape
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    try:
        with (
            replacing(path) as part,
            av.open(part, "w", format="mp4", options={"movflags": "faststart"}) as container,
        ):
            rate = Fraction(fps).limit_denominator(1001)
            stream = container.add_stream("libx264", rate=rate, options={"crf": str(rate_factor)})
            stream.width, stream.height = width + width % 2, height + height % 2
            stream.pix_fmt = "yuv420p"
            context = stream.codec_context
            context.colorspace, context.color_range = _BT601_LIMITED
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(
                    np.pad(frame, odd, mode="edge"), format="rgb24"
                )
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadInput(f"clip '{path}' cannot be written: {error}") from error
    return path


SAVED = (".mp4", ".gif", ".webp", ".png")


def save_video(frames: NDArray[np.uint8], fps: float, path: Path) -> Path:
    """Write frames, uint8 [frames, height, width, 3], in the format of the suffix.

    .mp4; .gif and .webp as animations; .png as one numbered picture a frame. Returns the path, of
    pictures the first one's. Raises LumosXError for any other suffix, and if it cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in SAVED:
        raise BadInput(
            f"video '{path}': its suffix names the format; accepted are {', '.join(SAVED)}"
        )
    if suffix == ".mp4":
        return write_clip(path, frames, fps=fps)
    pictures = [Image.fromarray(frame) for frame in frames]
    try:
        if suffix == ".png":
            names = [path.with_name(f"{path.stem}-{i:04d}.png") for i in range(len(pictures))]
            for name, picture in zip(names, pictures, strict=True):
                with replacing(name) as temporary:
                    picture.save(temporary, format="PNG")
            return names[0]
        if suffix == ".gif":  # which counts hundredths of a second
            options: dict[str, Any] = {"format": "GIF", "duration": max(20, 10 * round(100 / fps))}
        else:
            options = {"format": "WEBP", "duration": round(1000 / fps), "lossless": True}
        with replacing(path) as temporary:
            pictures[0].save(
                temporary, save_all=True, append_images=pictures[1:], loop=0, **options
            )
    except OSError as error:
        raise BadInput(f"video '{path}' cannot be written: {error}") from error
    return path


def read_clip(
    path: str | os.PathLike[str],
    *,
    max_frames: int = 4096,
    max_bytes: int = MAX_DECODED_BYTES,
) -> tuple[NDArray[np.uint8], float]:
    """Read an mp4 or mov clip: (uint8 [frames, height, width, 3], frames a second).

    max_frames and max_bytes (decoded) are refusals, not cuts. Raises LumosXError for a file that is
    missing, damaged, of another format or codec, or above a limit.
    """
    import av

    name = os.fspath(path)
    frames: list[NDArray[np.uint8]] = []
    with open_regular(path, MAX_FILE_BYTES, "clip") as file:
        try:
            # a file object, not a path: there is nothing else that the demuxer could open
            with av.open(file, "r", format="mp4") as container:
                stream: Any = container.streams.best("video")
                size, fps = _size_and_rate(stream, name)
                room = min(max_frames, max_bytes // (size[0] * size[1] * 3))
                for picture in container.decode(stream):
                    if (picture.height, picture.width) != size:
                        raise BadInput(
                            f"clip '{name}' changes size at frame {len(frames)}; encode it again"
                        )
                    if len(frames) == room:
                        raise BadInput(
                            f"clip '{name}' has more than {room} frames of {size[1]} x {size[0]}, "
                            f"accepted are {max_frames} frames and {max_bytes:,} decoded bytes; "
                            "cut it or scale it down"
                        )
                    frames.append(picture.to_ndarray(format="rgb24").astype(np.uint8, copy=False))
        except (av.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BadInput(
                f"clip '{name}' cannot be read after frame {len(frames)}: {reason}; accepted are "
                "whole mp4 and mov files"
            ) from error
    if not frames:
        raise BadInput(f"clip '{name}' holds no frames; encode it again")
    return np.stack(frames), fps


def _size_and_rate(stream: Any, name: str) -> tuple[tuple[int, int], float]:
    """((height, width), frames a second) by the header. Raises LumosXError if not acceptable."""
    if stream is None:
        raise BadInput(f"clip '{name}' has no video; give one that has")
    codec = stream.codec_context.codec.canonical_name
    if codec not in CODECS:
        raise BadInput(f"clip '{name}' is coded in {codec}; accepted are {', '.join(CODECS)}")
    height, width = stream.codec_context.height, stream.codec_context.width
    if not 0 < height * width <= MAX_FRAME_PIXELS:
        raise BadInput(
            f"clip '{name}' is {width} x {height}, accepted are 1 to {MAX_FRAME_PIXELS:,} pixels; "
            "scale it down"
        )
    fps = float(stream.average_rate or stream.base_rate or 0)
    if not 0 < fps <= 1000:
        raise BadInput(f"clip '{name}' has no frame rate that can be ({fps}); encode it again")
    return (height, width), fps
