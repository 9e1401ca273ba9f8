"""The device that compiled code is for."""

import platform
from typing import Any, Literal, get_args

import torch


def device_facts(device: str) -> dict[str, Any]:
    """Return what a package is compiled for: the processor's or the GPU's instructions.

    device: "cpu" or "cuda", which becomes {"name", "machine"} and "instructions", or "capability"
    and "cudnn" (its number, "0" where torch has none).
    """
    machine = platform.machine()
    if device == "cpu":
        instructions = torch.backends.cpu.get_cpu_capability()
        return {"name": "cpu", "machine": machine, "instructions": instructions}
    name = torch.cuda.get_device_name()
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    cudnn = str(torch.backends.cudnn.version() or 0)
    return {"name": name, "machine": machine, "capability": capability, "cudnn": cudnn}


Provider = Literal["auto", "cpu", "cuda", "tensorrt", "tensorrt-rtx"]


PROVIDERS: tuple[str, ...] = get_args(Provider)
