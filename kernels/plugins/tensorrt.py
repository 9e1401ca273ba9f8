"""LumosX operations as ahead-of-time TensorRT plugins: PTX of our kernels, symbolic shapes.

`register(trt, trtp, sm)` declares them to TensorRT; the modules are handed in, so that nothing
here needs TensorRT installed. Names and attributes are those of the exported opaque nodes
(`export/onnx/opaque_nodes.py`): lumosx::QkNormRope, RelationalAttention, VideoAttention,
RelationalBias, RelationalCrossAttention.
"""

# annotations are TensorRT's own classes, known only once its module is handed in
# mypy: disable-error-code="valid-type, attr-defined"

import re
from typing import Any

import torch

from lumosx_rt.kernels.compile import compile_for
from lumosx_rt.kernels.plugins import launches
from lumosx_rt.kernels.plugins.launches import Launch
from lumosx_rt.kernels.tiles import architecture

NAMESPACE = "lumosx"


def register(trt: Any, trtp: Any, sm: int) -> list[str]:
    """Declare all plugins for one compute capability, as 103 is 10.3; returns their names.

    At once and into TensorRT's registry, where its ONNX parser looks for them; a process declares
    them once. trt: the module tensorrt; trtp: tensorrt.plugin. Raises ValueError for a GPU that
    there are no kernels for.
    """
    tiled = architecture(divmod(sm, 10))  # whose tiles it takes; the code is its own
    Desc, Params, Exprs = trtp.TensorDesc, trtp.KernelLaunchParams, trtp.SymExprs
    Code = tuple[str | bytes, str | bytes, Params, Exprs]
    dtypes = {trt.float32: torch.float32, trt.float16: torch.float16, trt.bfloat16: torch.bfloat16}

    def launched(launch: Launch) -> Any:
        """A launch as TensorRT takes it: name, PTX, grid and block, counts."""
        code = compile_for(launch.specialization, sm)
        params = trtp.KernelLaunchParams()
        params.grid_x, params.grid_y, params.grid_z = launch.grid
        params.block_x, params.shared_mem = 32 * code.num_warps, code.shared_bytes
        counts = trtp.SymIntExprs(len(launch.counts))
        for i, count in enumerate(launch.counts):
            counts[i] = trtp.SymInt32(count)
        return code.entry, without_hidden_parameters(code.ptx), params, counts

    def combinations(floats: str, *positions: str) -> Any:
        """Offer one dependent choice of type for what is F, the named type for the rest; all
        linear."""
        types = [floats if position == "F" else position for position in positions]
        return [trtp.AutoTuneCombination(", ".join(types), "LINEAR")]

    half = "FP16|BF16"

    # -- QK norm and rotation ------------------------------------------------------------------

    @trtp.register(f"{NAMESPACE}::QkNormRope")
    def norm_rope(x: Desc, weight: Desc, rope: Desc, heads: int, eps: float) -> Desc:
        batch, tokens, dim = x.shape_expr
        return trtp.from_shape_expr((batch, tokens, heads, dim // heads), x.dtype)

    @trtp.autotune(f"{NAMESPACE}::QkNormRope")
    def norm_rope_types(
        x: Desc, weight: Desc, rope: Desc, outputs: tuple[Desc]
    ) -> list[trtp.AutoTuneCombination]:
        return combinations(half, "F", "F", "FP32", "F")

    @trtp.aot_impl(f"{NAMESPACE}::QkNormRope")
    def norm_rope_code(
        x: Desc, weight: Desc, rope: Desc, heads: int, eps: float, outputs: tuple[Desc], tactic: int
    ) -> Code:
        known = (dtypes[x.dtype], heads, _known(x.shape_expr[2]), eps, tiled, trtp.cdiv)
        return launched(launches.norm_rope(_shapes(x=x, rope=rope), *known))

    # -- self-attention ------------------------------------------------------------------------

    @trtp.register(f"{NAMESPACE}::RelationalAttention")
    def self_attention(
        q: Desc, k: Desc, v: Desc, cq: Desc, ck: Desc, cv: Desc, bias_tiles: Desc,
        group_index: Desc, group_mask: Desc, group_inverse: Desc, heads: int, scale: float,
    ) -> tuple[Desc, Desc]:  # fmt: skip
        return q.like(), cq.like()

    @trtp.autotune(f"{NAMESPACE}::RelationalAttention")
    def self_attention_types(
        q: Desc, k: Desc, v: Desc, cq: Desc, ck: Desc, cv: Desc, bias_tiles: Desc,
        group_index: Desc, group_mask: Desc, group_inverse: Desc, outputs: tuple[Desc, Desc],
    ) -> list[trtp.AutoTuneCombination]:  # fmt: skip
        return combinations(half, *"FFFFFF", "INT64", "INT64", "BOOL", "INT64", "F", "F")

    @trtp.aot_impl(f"{NAMESPACE}::RelationalAttention")
    def self_attention_code(
        q: Desc, k: Desc, v: Desc, cq: Desc, ck: Desc, cv: Desc, bias_tiles: Desc,
        group_index: Desc, group_mask: Desc, group_inverse: Desc, heads: int, scale: float,
        outputs: tuple[Desc, Desc], tactic: int,
    ) -> Code:  # fmt: skip
        shapes = _shapes(
            q=q, ck=ck, bias_tiles=bias_tiles, group_index=group_index, group_inverse=group_inverse
        )
        known = (dtypes[q.dtype], heads, _known(q.shape_expr[3]), tiled, trtp.cdiv)
        return launched(launches.relational_self(shapes, *known))

    @trtp.register(f"{NAMESPACE}::VideoAttention")
    def video_attention(
        q: Desc, k: Desc, v: Desc, ck: Desc, cv: Desc, bias_tiles: Desc,
        group_index: Desc, group_mask: Desc, group_inverse: Desc, heads: int, scale: float,
    ) -> Desc:  # fmt: skip
        return q.like()

    @trtp.autotune(f"{NAMESPACE}::VideoAttention")
    def video_attention_types(
        q: Desc, k: Desc, v: Desc, ck: Desc, cv: Desc, bias_tiles: Desc,
        group_index: Desc, group_mask: Desc, group_inverse: Desc, outputs: tuple[Desc],
    ) -> list[trtp.AutoTuneCombination]:  # fmt: skip
        return combinations(half, *"FFFFF", "INT64", "INT64", "BOOL", "INT64", "F")

    @trtp.aot_impl(f"{NAMESPACE}::VideoAttention")
    def video_attention_code(
        q: Desc, k: Desc, v: Desc, ck: Desc, cv: Desc, bias_tiles: Desc,
        group_index: Desc, group_mask: Desc, group_inverse: Desc, heads: int, scale: float,
        outputs: tuple[Desc], tactic: int,
    ) -> Code:  # fmt: skip
        shapes = _shapes(
            q=q, ck=ck, bias_tiles=bias_tiles, group_index=group_index, group_inverse=group_inverse
        )
        known = (dtypes[q.dtype], heads, _known(q.shape_expr[3]), tiled, trtp.cdiv)
        return launched(launches.video_self(shapes, *known))

    # -- cross-attention of the references -----------------------------------------------------

    @trtp.register(f"{NAMESPACE}::RelationalBias")
    def bias(
        q: Desc, k: Desc, template: Desc, tile_pool: Desc, bias_tiles: Desc, heads: int,
        ratio: float, scale: float,
    ) -> Desc:  # fmt: skip
        streams, references, text_len = template.shape_expr
        shape = (streams, heads, references, tile_pool.shape_expr[0], text_len)
        return trtp.from_shape_expr(shape, q.dtype)

    @trtp.autotune(f"{NAMESPACE}::RelationalBias")
    def bias_types(
        q: Desc, k: Desc, template: Desc, tile_pool: Desc, bias_tiles: Desc, outputs: tuple[Desc]
    ) -> list[trtp.AutoTuneCombination]:
        return combinations(half, "F", "F", "FP32", "FP32", "INT64", "F")

    @trtp.aot_impl(f"{NAMESPACE}::RelationalBias")
    def bias_code(
        q: Desc, k: Desc, template: Desc, tile_pool: Desc, bias_tiles: Desc, heads: int,
        ratio: float, scale: float, outputs: tuple[Desc], tactic: int,
    ) -> Code:  # fmt: skip
        shapes = _shapes(template=template, tile_pool=tile_pool)
        known = (dtypes[q.dtype], heads, _known(q.shape_expr[3]), ratio, trtp.cdiv)
        return launched(launches.bias_table(shapes, *known))

    @trtp.register(f"{NAMESPACE}::RelationalCrossAttention")
    def cross_attention(
        q: Desc, k: Desc, v: Desc, table: Desc, bias_tiles: Desc, heads: int, scale: float
    ) -> Desc:
        return q.like()

    @trtp.autotune(f"{NAMESPACE}::RelationalCrossAttention")
    def cross_attention_types(
        q: Desc, k: Desc, v: Desc, table: Desc, bias_tiles: Desc, outputs: tuple[Desc]
    ) -> list[trtp.AutoTuneCombination]:
        return combinations(half, *"FFFF", "INT64", "F")

    @trtp.aot_impl(f"{NAMESPACE}::RelationalCrossAttention")
    def cross_attention_code(
        q: Desc, k: Desc, v: Desc, table: Desc, bias_tiles: Desc, heads: int, scale: float,
        outputs: tuple[Desc], tactic: int,
    ) -> Code:  # fmt: skip
        shapes = _shapes(table=table, bias_tiles=bias_tiles)
        known = (dtypes[q.dtype], heads, _known(q.shape_expr[3]), tiled, trtp.cdiv)
        return launched(launches.reference_cross(shapes, *known))

    names = ("QkNormRope", "RelationalAttention", "VideoAttention")
    return [*names, "RelationalBias", "RelationalCrossAttention"]


def without_hidden_parameters(ptx: str) -> str:
    """PTX without the scratch pointers that Triton appends to a kernel's parameters.

    A plugin's launch passes only what it declares. Raises ValueError where the code reads them.
    """
    head, entry, rest = re.split(r"(\.visible \.entry \w+\()", ptx, maxsplit=1)
    parameters, close, body = rest.partition(")")
    kept = parameters.split(",")
    for hidden in kept[-2:]:
        (name,) = re.findall(r"(\w+)\s*$", hidden)
        if re.search(rf"\b{name}\b", body):
            raise ValueError(f"the kernel reads {name}, which a plugin cannot pass")
    return head + entry + ",".join(kept[:-2]) + "\n" + close + body


def _shapes(**tensors: Any) -> dict[str, Any]:
    return {name: list(tensor.shape_expr) for name, tensor in tensors.items()}


def _known(size: Any) -> int:
    """A size that is no symbol: channels."""
    return size if isinstance(size, int) else int(size.constant_value())
