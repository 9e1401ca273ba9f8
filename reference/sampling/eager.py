"""The PyTorch reference itself, as a backend: what every engine is compared with."""

import torch
from torch import Tensor

from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.sampling.inputs import Denoiser, Inputs


class EagerBackend:
    """Runs the reference model on the device that holds it."""

    def __init__(self, model: LumosX) -> None:
        self.model = model.eval()

    def bind(self, inputs: Inputs) -> Denoiser:
        device = self.model.head.head.weight.device
        arguments = inputs.arguments(device)

        @torch.inference_mode()
        def denoise(latents: Tensor, time: int) -> Tensor:
            times = torch.full((inputs.shape[0],), time, device=device)
            velocity: Tensor = self.model(latents.to(device), times, *arguments)
            return velocity.cpu()

        return denoise

    def describe(self) -> dict[str, str]:
        where = str(self.model.head.head.weight.device)
        return {"backend": "eager", "device": where, "torch": torch.__version__}
