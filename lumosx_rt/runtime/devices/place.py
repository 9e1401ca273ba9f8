"""Where the parts of an engine run, and what of a GPU's memory they may take."""

import logging
from typing import Literal, NamedTuple, get_args

from lumosx_rt.artifact.manifest import Manifest
from lumosx_rt.reference.errors import LumosXError, Unsupported
from lumosx_rt.reference.sampling.inputs import Backend

log = logging.getLogger("lumosx_rt")
EncodersDevice = Literal["auto", "cpu", "cuda"]
ENCODERS_DEVICES: tuple[str, ...] = get_args(EncodersDevice)


class Devices(NamedTuple):
    """Torch's names of where the backend computes, and where text encoder and VAE do."""

    backend: str
    encoders: str

    @classmethod
    def of(cls, backend: Backend, encoders: str = "auto") -> "Devices":
        """Return them for a backend; a backend that does not say is on the CPU.

        Raises LumosXError for a device that there is not.
        """
        if encoders not in ENCODERS_DEVICES:
            raise Unsupported(
                f"encoders_device: got '{encoders:.60}', accepted are {', '.join(ENCODERS_DEVICES)}"
            )
        own = str(getattr(backend, "device", "cpu"))
        import torch

        if encoders == "cuda" and not torch.cuda.is_available():
            raise Unsupported("encoders_device: got 'cuda', torch finds no GPU here; take 'cpu'")
        if encoders == "auto":
            # a provider may have a GPU that this torch was built without
            there = own if own == "cpu" or torch.cuda.is_available() else "cpu"
            return cls(own, there)
        return cls(own, encoders)

    @property
    def denoise_on_gpu(self) -> bool:
        return self.backend != "cpu"

    @property
    def encode_on_gpu(self) -> bool:
        return self.encoders != "cpu"

    def limit(self, asked: int | None, held: int) -> int | None:
        """Return what may be held on the GPU: what was asked for, or what this engine holds there
        and what is free; None without a GPU, and where the driver cannot be asked.

        Raises LumosXError for a limit where nothing runs on a GPU.
        """
        if not (self.denoise_on_gpu or self.encode_on_gpu):
            if asked is not None:
                raise Unsupported(
                    "max_device_memory: nothing of this engine runs on a GPU; leave it away, or "
                    "take max_memory"
                )
            return None
        if asked is not None:
            return asked
        from lumosx_rt.cuda.facts import memory

        try:
            free, _ = memory()
        except LumosXError as error:
            log.info("the GPU's memory is not planned: %s", error)
            return None
        return free + held

    def held(self, manifest: Manifest) -> int:
        """Return the bytes of the transformer's weights that are on the GPU."""
        if not self.denoise_on_gpu:
            return 0
        return sum(
            record.bytes for name, record in manifest.files.items() if "transformer/" in name
        )
