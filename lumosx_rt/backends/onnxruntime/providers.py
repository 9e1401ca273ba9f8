"""Where onnxruntime runs a graph: what each provider is called, and what it is given.

    cpu, cuda       of the packages onnxruntime and onnxruntime-gpu
    tensorrt        TensorRT inside onnxruntime-gpu, for any NVIDIA GPU
    tensorrt-rtx    TensorRT for RTX, a package of its own beside plain onnxruntime

The two TensorRTs compile the graph when it is loaded, for one range of sizes, and keep what they
compiled in the user cache, never in the engine. Both take the whole graph or refuse it; cuda leaves
arithmetic of sizes to the CPU, and is refused where anything else would run there.
Arithmetic is the graph's own: half precision is never switched on here, and TF32 is off on CUDA
(TensorRT itself multiplies fp32 in TF32 unless NVIDIA_TF32_OVERRIDE=0 is in the environment).
"""

import atexit
import hashlib
import importlib
import os
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumosx_rt.artifact import user_cache as cache
from lumosx_rt.artifact.manifest import Manifest
from lumosx_rt.export.limits import Limits
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.errors import Unsupported
from lumosx_rt.reference.sampling.inputs import AXES
from lumosx_rt.reference.scenes.video_size import VideoSize

NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}
COMPILING = ("tensorrt", "tensorrt-rtx")
MAX_SEEDS = 4
# what arithmetic of sizes is made of, which onnxruntime keeps on the CPU where it is quickest
_SIZES = frozenset(
    "Shape Size Gather GatherND Concat Slice Squeeze Unsqueeze Reshape Cast Range Where Equal Not "
    "Less Greater And Or Add Sub Mul Div Mod Max Min Neg Abs Floor Ceil Expand ConstantOfShape "
    "Constant Identity ReduceProd ReduceMax ReduceSum Split Flatten Transpose".split()
)
_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
_INSTALL = {
    "cuda": "pip install onnxruntime-gpu in place of onnxruntime, with CUDA and cuDNN",
    "tensorrt": "pip install onnxruntime-gpu in place of onnxruntime, with CUDA, cuDNN and the "
    "TensorRT that it was made for (libnvinfer.so.10 for 1.31)",
    "tensorrt-rtx": "pip install onnxruntime onnxruntime-ep-nv-tensorrt-rtx, on a machine with an "
    "NVIDIA driver",
}


@dataclass(frozen=True)
class Serving:
    """What a provider that compiles needs to know of an engine."""

    limits: Limits
    """The sizes it compiles for."""
    profiles: tuple[str, str, str]
    """The least, usual and most shape of every input, as `name:1x2x3,...`."""
    engines: Path
    """Where it keeps what it compiled of these very weights."""
    timings: Path
    """Where it keeps how fast kernels were, for any engine."""


def serving_of(manifest: Manifest) -> Serving:
    """For the video size of the engine's defaults, upright or lying, and anything smaller."""
    defaults, layouts = manifest.defaults, manifest.layouts
    size = VideoSize(defaults["frames"], defaults["height"], defaults["width"])
    limits = Limits.around(
        size.grid,
        max_references=layouts["references"][1],
        max_seeds=min(MAX_SEEDS, layouts["seeds"][1]),
    )
    # its weights too: a provider's own name for what it compiled tells graphs apart, not weights
    content = "".join(
        f"{name} {record.sha256}\n" for name, record in sorted(manifest.files.items())
    )
    digest = hashlib.sha256(content.encode()).hexdigest()
    profiles = profiles_of(LumosXConfig.from_dict(manifest.model), limits)
    folder = cache.cache_dir() / "providers"
    return Serving(limits, profiles, folder / "engines" / digest, folder / "timings")


def profiles_of(config: LumosXConfig, limits: Limits) -> tuple[str, str, str]:
    """Return the least, usual and most shapes of all inputs, as providers read them."""
    known = {"channels": config.in_dim, "text_len": config.text_len, "text_dim": config.text_dim}
    known |= {"pairs": config.head_dim // 2}
    shapes = {
        name: limits.shapes(
            name, tuple(axis if isinstance(axis, int) else known.get(axis, -1) for axis in axes)
        )
        for name, axes in AXES.items()
    }
    least, usual, most = (
        ",".join(f"{name}:{'x'.join(map(str, sizes[i]))}" for name, sizes in shapes.items())
        for i in range(3)
    )
    return least, usual, most


def options_of(provider: str, serving: Serving | None) -> dict[str, str]:
    """Return what a provider is asked for; all values are text. Makes the folders it names."""
    if provider == "cpu":
        return {}
    if provider == "cuda":
        # grow by what is asked for: requests of other shapes would double the arena over and over
        return {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}
    if serving is None:
        raise Unsupported(f"provider: '{provider}' compiles for an engine's sizes, and got none")
    own = provider == "tensorrt-rtx"
    engines = _made(serving.engines)
    prefix, external = (
        ("nv", "nv_use_external_data_initializer") if own else ("trt", "trt_load_user_initializer")
    )
    sizes = ("min", "opt", "max")
    options = {
        f"{prefix}_profile_{size}_shapes": shapes
        for size, shapes in zip(sizes, serving.profiles, strict=True)
    }
    options[external] = "1"  # or weights beyond 2 GiB do not fit the graph it is handed
    # a captured graph would be replayed for the next request, whose sizes and buffers are others
    if own:
        return options | {"enable_cuda_graph": "0", "nv_runtime_cache_path": engines}
    return options | {
        "device_id": "0",
        "trt_fp16_enable": "0",
        "trt_bf16_enable": "0",
        "trt_cuda_graph_enable": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": engines,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": _made(serving.timings),
    }


def open_session(
    ort: Any,
    graph: Path,
    provider: str,
    settings: Any,
    serving: Serving | None = None,
    part: bytes | None = None,
) -> Any:
    """A session that runs on this provider. Raises LumosXError where it does not.

    ort: the module onnxruntime. settings: a SessionOptions, which is added to. part: a model that
    is run in place of the graph, with weights that are beside it.
    """
    if part is not None:
        folder = "session.model_external_initializers_file_folder_path"
        settings.add_session_config_entry(folder, str(graph.parent))
    device = _plugin_device(ort) if provider == "tensorrt-rtx" else None
    name = NAMES[provider]
    if device is None and name not in ort.get_available_providers():
        found = ", ".join(ort.get_available_providers())
        raise Unsupported(
            f"provider: '{provider}' is onnxruntime's {name}, which is not installed here (there "
            f"is {found}); {_mended(provider)}"
        )
    options = options_of(provider, serving)
    if provider in COMPILING:  # or what it cannot compile would run on the CPU, unsaid
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if provider == "cuda":
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        if device is None:
            chosen = {"providers": [(name, options)]}
        else:
            settings.add_provider_for_devices([device], options)
            chosen = {}
        session = ort.InferenceSession(part or graph, settings, enable_fallback=0, **chosen)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        where, mended = ("", "") if provider == "cpu" else (f" on {name}", f"; {_mended(provider)}")
        if provider in COMPILING:
            mended += "; an older TensorRT may take the graph of build --opset 20"
        raise Unsupported(
            f"{graph.name}: onnxruntime cannot load it{where}: {_reason(error)}{mended}"
        ) from None
    if session.get_providers()[0] != name:
        raise Unsupported(
            f"onnxruntime did not load {name} (its libraries are missing or do not match); "
            f"{_mended(provider)}"
        )
    if provider == "cuda":
        _check_placement(graph, session)
    return session


def _check_placement(graph: Path, session: Any) -> None:
    """Raise LumosXError where a node that computes runs on the CPU: it would take its time there,
    and copy what it works on back and forth."""
    left = Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == NAMES["cpu"]
        for node in part.get_nodes()
        if node.op_type not in _SIZES
    )
    if left:
        what = ", ".join(f"{op} x{count}" for op, count in left.most_common(5))
        raise Unsupported(
            f"{graph.name}: {NAMES['cuda']} lacks {what}, which would run on the CPU; build the "
            f"engine again with --opset 20, or for --backend torch; or take --provider cpu"
        )


def _mended(provider: str) -> str:
    other = "--provider cpu or cuda" if provider in COMPILING else "--provider cpu"
    return f"{_INSTALL[provider]}; or take {other}"


def _plugin_device(ort: Any) -> Any | None:
    """Return the first GPU of the separate package; None where onnxruntime itself has the
    provider."""
    name = NAMES["tensorrt-rtx"]
    if name in ort.get_available_providers():
        return None
    wanted = f"provider: 'tensorrt-rtx' is onnxruntime's {name}"
    try:
        plugin = importlib.import_module(_PLUGIN)
        if not any(device.ep_name == name for device in ort.get_ep_devices()):
            ort.register_execution_provider_library(name, plugin.get_library_path())
    except ImportError:
        raise Unsupported(
            f"{wanted}, which is not installed here; {_mended('tensorrt-rtx')}"
        ) from None
    except Exception as error:
        raise Unsupported(
            f"{wanted}, which does not load: {_reason(error)}; {_mended('tensorrt-rtx')}"
        ) from None
    devices = [device for device in ort.get_ep_devices() if device.ep_name == name]
    if not devices:
        raise Unsupported(f"{wanted}, which finds no GPU here; {_mended('tensorrt-rtx')}")
    return devices[0]


def _made(folder: Path) -> str:
    """Make a folder of the user cache; where it cannot be had, one for this process alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return str(folder)
    except OSError:
        pass
    own = tempfile.mkdtemp(prefix="lumosx-")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own


def _reason(error: Exception) -> str:
    """Return the first line of what onnxruntime says, without the place in its source."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return re.sub(r"^/\S+:\d+ \S.*?\) (?=\S)", "", line)
