"""A calibrated model on the Triton kernels' own 8-bit products: FP8 engines of the backend torch.

    linears          in e4m3 at the document's sites, by its scales or with one a row
    self-attention   in e4m3 at its sites, where a measurement says that this is faster than stock
                     attention in bf16; the kernel finds scales itself, finer than calibrated
    cross-attention  in high precision: its kernel has no 8-bit form

Where scales are found a row at a time and every linear is in FP8, norms and the MLP's activation
quantize what they write, and no linear reads anything wider.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import nn

from lumosx_rt.calibration.attach import attached, linear_at, wrapped
from lumosx_rt.calibration.calibration_file import Calibration
from lumosx_rt.calibration.sites import is_attention, part_of
from lumosx_rt.kernels.fused import E4M3, fused_ops, why_unsupported
from lumosx_rt.kernels.linear_fp8 import GeluQuantize, LinearFp8
from lumosx_rt.kernels.tiles import Capability, architecture, e4m3_attention_pays
from lumosx_rt.reference.backbones.ops import Attended, Ops, SelfAttention, SelfAttentionOp
from lumosx_rt.reference.backbones.wan import LumosX


def on_kernels(
    model: LumosX,
    document: Calibration,
    capability: Capability,
    *,
    e4m3_attention: bool | None = None,
) -> AbstractContextManager[Ops]:
    """A block in which the model's linears are replaced; it gives the operations to run on.

    e4m3_attention: whether sites of self-attention are in 8 bits; by default where `tiles.json`
    records for this GPU that it pays. Raises LumosXError where the model is another, ValueError
    where the GPU has no such kernels.
    """
    document.check(model)
    quantized = set(document.quantized)
    rows = document.scheme["activations"] == "row"
    if rows and document.scheme["weights"] != "channel":
        raise ValueError("scales found row by row come with weights a channel")
    linears = {site for site in document.sites if not is_attention(site)}
    problem = why_unsupported("linear_fp8", 10 * capability[0] + capability[1], E4M3)
    if problem and linears & quantized:
        raise ValueError(problem)
    if e4m3_attention is None:
        e4m3_attention = e4m3_attention_pays(architecture(capability))
    attended = {site for site in quantized if e4m3_attention and part_of(site) == "self"}
    ops = fused_ops(
        capability,
        e4m3_attention=bool(attended),
        e4m3_rows=rows and linears <= quantized,
        head_dim=model.config.head_dim,
    )
    if attended and attended != {site for site in document.sites if part_of(site) == "self"}:
        plain = fused_ops(capability, head_dim=model.config.head_dim).self_attention

        def self_attention(run: SelfAttentionOp, call: SelfAttention) -> Attended:
            return run(call) if call.site in attended else plain(call)

        ops = wrapped(ops, self_attention)
    return _replaced(model, document, ops, linears & quantized, rows)


@contextmanager
def _replaced(
    model: LumosX, document: Calibration, ops: Ops, linears: set[str], rows: bool
) -> Iterator[Ops]:
    modules: dict[str, nn.Module] = {}
    for site in sorted(linears):
        scale = None if rows else document.sites[site].scales["x"]
        modules[site] = LinearFp8(linear_at(model, site), scale, document.scheme["weights"])
        if rows and part_of(site) == "ffn.2":
            modules[site.removesuffix("2") + "1"] = GeluQuantize()
    with attached(model, modules):
        yield ops
