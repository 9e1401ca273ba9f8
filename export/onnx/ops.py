"""The four operations as exports spell them: same mathematics, for what has to run them.

For ONNX, attention is the `Attention` operator where there is no mask. Masked and biased attention
is MatMul + Softmax: onnxruntime's CPU `Attention` wants masks expanded over the queries.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lumosx_rt.kernels.qdq import E4M3, Qdq
from lumosx_rt.reference.backbones import ops as plain
from lumosx_rt.reference.backbones.ops import Ops, cross_attention, qk_norm_rope, self_attention


def attend_matmul(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    logits = ((q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)).float()
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    if mask is not None:
        logits = logits + mask
    return (torch.softmax(logits, dim=-1).to(v.dtype) @ v).transpose(1, 2)


def attend_operator(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if mask is not None:
        return attend_matmul(q, k, v, mask)
    heads = q.shape[2]
    out, *_ = torch.onnx.ops.attention(
        q.flatten(2), k.flatten(2), v.flatten(2), q_num_heads=heads, kv_num_heads=heads
    )
    return out.unflatten(-1, (heads, -1))


def attend_padded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Ask one query more and drop its answer: torch's CPU kernel divides by their number, and a
    scene without references has none."""
    mask = None if mask is None else F.pad(mask, (0, 0, 0, 1))
    return plain.attend(F.pad(q, (0, 0, 0, 0, 0, 1)), k, v, mask)[:, :-1]


def rotate_operator(x: Tensor, rope: Tensor) -> Tensor:
    cosine, sine = rope.expand(-1, x.shape[0], -1, -1)
    turned = torch.onnx.ops.rotary_embedding(
        x.flatten(2).to(rope.dtype), cosine, sine, interleaved=True, num_heads=x.shape[2]
    )
    return turned.unflatten(-1, (x.shape[2], -1)).to(x.dtype)


def attend_fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return the operator always: TensorRT fuses it with a mask that broadcasts over the queries
    too."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, *_ = torch.onnx.ops.attention(q, k, v, mask)
    return out.transpose(1, 2)


def rotate_fused(x: Tensor, rope: Tensor) -> Tensor:
    """In the tables' dtype, heads apart: TensorRT cannot split them where there are no tokens."""
    cosine, sine = rope.expand(-1, x.shape[0], -1, -1)
    wide = x.to(rope.dtype).transpose(1, 2)
    turned = torch.onnx.ops.rotary_embedding(wide, cosine, sine, interleaved=True)
    return turned.to(x.dtype).transpose(1, 2)


_NODES_SINCE = 23  # of the standard's Quantize- and DequantizeLinear with scales of any float type


def quantize_node(x: Tensor, scale: Tensor) -> Tensor:
    """scale: [], float32 whatever x is."""
    import onnx

    return torch.onnx.ops.symbolic(
        "::QuantizeLinear",
        (x, scale),
        {"output_dtype": int(onnx.TensorProto.FLOAT8E4M3FN)},
        dtype=E4M3,
        shape=x.shape,
        version=_NODES_SINCE,
    )


def dequantize_node(x8: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """scale: [] or [last axis], float32."""
    import onnx_ir as ir

    to = int(ir.DataType[_ONNX_NAMES[dtype]])
    return torch.onnx.ops.symbolic(
        "::DequantizeLinear",
        (x8, scale),
        {"output_dtype": to, "axis": x8.dim() - 1} if scale.dim() else {"output_dtype": to},
        dtype=dtype,
        shape=x8.shape,
        version=_NODES_SINCE,
    )


_ONNX_NAMES = {
    torch.float32: "FLOAT",
    torch.float16: "FLOAT16",
    torch.bfloat16: "BFLOAT16",
}
QDQ_NODES = Qdq(quantize_node, dequantize_node)
"""E4M3 there and back as nodes of ONNX."""


def export_ops(opset: int) -> Ops:
    attend = attend_operator if opset >= 23 else attend_matmul
    rotate = rotate_operator if opset >= 23 else plain.rotate
    return Ops(
        self_attention=partial(self_attention, attend=attend),
        cross_attention=partial(cross_attention, attend=attend),
        qk_norm_rope=partial(qk_norm_rope, rotate=rotate),
    )


PACKAGE_OPS = Ops(cross_attention=partial(cross_attention, attend=attend_padded))
"""For a package on a CPU."""

PLAN_OPS = Ops(
    self_attention=partial(self_attention, attend=attend_fused),
    cross_attention=partial(cross_attention, attend=attend_fused),
    qk_norm_rope=partial(qk_norm_rope, rotate=rotate_fused),
)
"""For TensorRT, which is given opset 23."""
