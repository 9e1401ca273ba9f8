"""The fast `Ops` of a GPU, and what is supported where.

    fused_ops((9, 0))                                     bf16 or fp16, whatever the model hands in
    fused_ops((9, 0), e4m3_attention=True, e4m3_rows=True)  8-bit products in attention and linears

Which self-attention is used is a recorded choice for each architecture (`tiles.json`): the video's
rectangle on a stock kernel and the groups on ours, until a measurement says that another is faster.
"""

import torch
from torch import Tensor

from lumosx_rt.kernels.norm_modulate import norm_modulate, norm_modulate_quantized
from lumosx_rt.kernels.numerics import INTERPRETED
from lumosx_rt.kernels.qk_norm_rope import qk_norm_rope
from lumosx_rt.kernels.relational_attention import relational_attention
from lumosx_rt.kernels.relational_cross_attention import relational_cross_attention
from lumosx_rt.kernels.self_attention import self_attention as by_name
from lumosx_rt.kernels.tiles import Capability, architecture, chosen_self_attention
from lumosx_rt.reference.backbones.ops import (
    Attended,
    NormModulate,
    Ops,
    SelfAttention,
    SelfAttentionOp,
)

_WIDE = (torch.float32, torch.float16, torch.bfloat16)
E4M3 = torch.float8_e4m3fn
SUPPORTED = {
    "relational_attention": (*_WIDE, E4M3),
    "relational_cross_attention": _WIDE,
    "qk_norm_rope": _WIDE,
    "norm_modulate": (*_WIDE, E4M3),
    "linear_fp8": (E4M3,),
}
MAX_HEAD_DIM = 128


def why_unsupported(op: str, sm: int, dtype: torch.dtype, head_dim: int = 128) -> str | None:
    """Why an op does not run on an architecture in a data type; None where it does.

    op: a key of SUPPORTED; dtype: of the operands (attention, linears) or of what is written.
    """
    if op not in SUPPORTED:
        return f"there is no op '{op}', only {', '.join(SUPPORTED)}"
    try:
        architecture(divmod(sm, 10))
    except ValueError as error:
        return str(error)
    if dtype not in SUPPORTED[op]:
        accepted = ", ".join(str(d).removeprefix("torch.") for d in SUPPORTED[op])
        return f"{op} takes {accepted}, not {str(dtype).removeprefix('torch.')}"
    if dtype == E4M3 and sm < 89:
        return f"{op} in e4m3 needs sm_89 or later, this is sm_{sm}"
    if "attention" in op and head_dim > MAX_HEAD_DIM:
        return f"{op} takes heads of up to {MAX_HEAD_DIM} channels, not {head_dim}"
    return None


def supports(op: str, sm: int, dtype: torch.dtype, head_dim: int = 128) -> bool:
    """Tell whether `why_unsupported` has nothing to say."""
    return why_unsupported(op, sm, dtype, head_dim) is None


def fused_ops(
    capability: Capability,
    *,
    self_attention: str = "auto",
    e4m3_attention: bool = False,
    e4m3_rows: bool = False,
    head_dim: int = 128,
) -> Ops:
    """Return the fast operations of a GPU of this compute capability.

    self_attention: a name of `self_attention.py`; "auto" is the recorded choice. e4m3_attention:
    8-bit products in self-attention (our kernel's alone). e4m3_rows: norms hand `QuantizedRows`
    to linears, which must all be `LinearFp8` without input scales. Raises ValueError with the
    reason where something is not supported.
    """
    sm = capability[0] * 10 + capability[1]
    needed = [(op, torch.bfloat16) for op in SUPPORTED if op != "linear_fp8"]
    needed += [("relational_attention", E4M3)] * e4m3_attention
    needed += [("norm_modulate", E4M3), ("linear_fp8", E4M3)] * e4m3_rows
    for op, dtype in needed:
        problem = why_unsupported(op, sm, dtype, head_dim)
        if problem:
            raise ValueError(problem)
    if e4m3_attention and self_attention not in ("auto", "triton"):
        raise ValueError(f"attention in e4m3 is the triton kernel's, not {self_attention}'s")
    attend: SelfAttentionOp = attention_e4m3
    if not e4m3_attention:
        attend = by_name(named(self_attention, capability))
    return Ops(
        self_attention=attend,
        cross_attention=relational_cross_attention,
        qk_norm_rope=qk_norm_rope,
        norm_modulate=norm_modulate_rows if e4m3_rows else norm_modulate,
    )


def named(self_attention: str, capability: Capability) -> str:
    """Return the implementation of self-attention that "auto" stands for; other names as they are.

    Where the recorded one is cuDNN's and torch has no cuDNN, it is flash.
    """
    if self_attention != "auto":
        return self_attention
    if INTERPRETED:
        return "triton"
    chosen = chosen_self_attention(architecture(capability))[0]
    if chosen.endswith(":cudnn") and not torch.backends.cudnn.is_available():
        return chosen.replace(":cudnn", ":flash")
    return chosen


def attention_e4m3(call: SelfAttention) -> Attended:
    """Attend with 8-bit products."""
    return relational_attention(call, e4m3=True)


def norm_modulate_rows(call: NormModulate) -> tuple[Tensor, Tensor]:
    """Norm and modulate; y is quantized where it is meant for a linear layer in half precision."""
    if call.dtype == torch.float32:  # the head stays as it is
        return norm_modulate(call)
    return norm_modulate_quantized(call)  # type: ignore[return-value]
