"""The reference with its calibrated sites in FP8, simulated: what FP8 engines are measured by."""

from torch import Tensor

from lumosx_rt.calibration.calibration_file import Calibration
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.sampling.inputs import Denoiser, Inputs


class SimulatedBackend:
    """Shares the model, which is as it was between calls. Raises LumosXError where the calibration
    is of another."""

    def __init__(self, model: LumosX, document: Calibration) -> None:
        self._exact, self._sites = EagerBackend(model), document.quantized
        self._simulation = document.simulation(model)

    def bind(self, inputs: Inputs) -> Denoiser:
        run = self._exact.bind(inputs)

        def denoise(latents: Tensor, time: int) -> Tensor:
            with self._simulation.running(self._sites):
                return run(latents, time)

        return denoise

    def describe(self) -> dict[str, str]:
        return self._exact.describe() | {"precision": "fp8, simulated"}
