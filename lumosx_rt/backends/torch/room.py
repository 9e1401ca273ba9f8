"""The backend torch: one AOTInductor package for every scene, for one kind of machine."""

from dataclasses import dataclass
from pathlib import Path

import torch

from lumosx_rt.artifact.manifest import PACKAGE
from lumosx_rt.backends.common.compiler import calibration_for, check_whole
from lumosx_rt.backends.common.room import BackendRoom, LoadRequest
from lumosx_rt.backends.torch.checks import check_package
from lumosx_rt.backends.torch.compile import DTYPES, TorchCompiler
from lumosx_rt.backends.torch.run import TorchBackend
from lumosx_rt.backends.torch.toolchain import check_toolchain
from lumosx_rt.calibration.apply.graph import check_carriable
from lumosx_rt.calibration.formats import format_of
from lumosx_rt.reference.errors import Unsupported
from lumosx_rt.reference.sampling.inputs import Backend

DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class TorchOptions:
    """What can be asked of a torch package."""

    precision: str | None = None
    """By default fp32 on a CPU and bf16 on a GPU."""
    device: str = "auto"
    """What it is compiled for: "auto" (a GPU if there is one), "cpu" or "cuda"."""
    calibration: Path | None = None
    """The scales of fp8."""


def compiler(options: TorchOptions, random: bool) -> TorchCompiler:
    """Check a request. Raises LumosXError for what is not here, also of what compiles C++."""
    precision, device = options.precision, options.device
    if device not in DEVICES:
        raise Unsupported(f"device: got '{device}', accepted are {', '.join(DEVICES)}")
    quantized = precision is not None and format_of(precision).quantized
    if precision is not None and not quantized and precision not in DTYPES:
        raise Unsupported(
            f"precision: got '{precision}', torch takes {', '.join(DTYPES)} or fp8; {precision} is "
            "--backend onnxruntime"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise Unsupported("device: got 'cuda', torch finds no GPU here; accepted is --device cpu")
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    check_toolchain("cpu" if on_cpu else "cuda")
    chosen = precision or ("fp32" if on_cpu else "bf16")
    document = calibration_for(format_of(chosen), options.calibration, random)
    if document is not None and on_cpu:
        check_carriable(document)
    return TorchCompiler(chosen, "cpu" if on_cpu else "cuda", document)


def load(request: LoadRequest) -> Backend:
    """Check the package and load it on the device it was compiled for."""
    check_whole(request.folder, request.manifest, request.lossy)
    folder, provider = request.folder, request.provider
    device = "cuda" if "capability" in request.manifest.device else "cpu"
    if provider not in ("auto", device):
        other = f"torch --device {provider}" if provider in ("cpu", "cuda") else "onnxruntime"
        raise Unsupported(
            f"provider: got '{provider}', {folder} was compiled for {device}; build it again with "
            f"--backend {other}, or leave --provider away"
        )
    check_package(folder, request.manifest, trust=request.trust)
    return TorchBackend(folder / PACKAGE, device)


TORCH = BackendRoom(name="torch", options=TorchOptions, compiler=compiler, load=load)
