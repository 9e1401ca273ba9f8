"""Engines for users of diffusers: `from lumosx_rt.diffusers import LumosXPipeline`."""

from lumosx_rt.diffusers.pipeline import LumosXPipeline as LumosXPipeline
from lumosx_rt.diffusers.pipeline import LumosXPipelineOutput as LumosXPipelineOutput
