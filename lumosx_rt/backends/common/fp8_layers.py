"""An FP8 graph looked into, product by product, with teacher forcing: each is given what really
came before it, so that a rounding that flips early excuses nothing later.

    scales      of every site the document's, weights the checkpoint's own, rounded
    rounding    every e4m3 value is the nearest to its operand: exact
    products    every linear's result against float64, of the operands it was given: 1e-6
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lumosx_rt.calibration.calibration_file import Calibration
from lumosx_rt.calibration.sites import is_attention
from lumosx_rt.kernels.qdq import quantize, weight_scale
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.errors import Unsupported, listing
from lumosx_rt.reference.metrics import relative_error
from lumosx_rt.reference.sampling.inputs import DEFAULT, random_inputs

PRODUCT_GATE = 1e-6
LAYOUT = "2x3x9+1+2.1"  # of the call that is looked into
_MODEL = "model."  # what parameters' names begin with in a graph


@dataclass(frozen=True)
class Rounding:
    """One QuantizeLinear: names of its operand and result, and its scale."""

    operand: str
    result: str
    scale: float


@dataclass(frozen=True)
class Product:
    """One product of a linear: names of its node, left operand (dequantized) and result."""

    site: str
    node: str
    operand: str
    result: str
    scale: float | None
    """Of the left operand; None: it is not quantized."""


def read_graph(graph: Any) -> tuple[list[Rounding], list[Product]]:
    """Return what is quantized in a graph (an onnx_ir model)."""
    roundings = [
        Rounding(node.inputs[0].name, node.outputs[0].name, _scalar(node.inputs[1]))
        for node in graph.graph
        if node.op_type == "QuantizeLinear"
    ]
    return roundings, list(_products(graph))


def _products(graph: Any) -> Iterator[Product]:
    for node in graph.graph:
        weight = _stored_in_e4m3(node.inputs[1]) if node.op_type == "MatMul" else None
        if weight is not None:
            rounded = node.inputs[0].producer()
            scale = (
                _scalar(rounded.inputs[1])
                if rounded is not None and rounded.op_type == "DequantizeLinear"
                else None
            )
            site = weight.removeprefix(_MODEL).removesuffix(".weight")
            yield Product(site, node.name, node.inputs[0].name, node.outputs[0].name, scale)


def _stored_in_e4m3(value: Any) -> str | None:
    """Return the name of the stored matrix that a value is dequantized from, if it is one."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    stored = node.inputs[0]
    return str(stored.name) if stored.is_initializer() else None


def _scalar(value: Any) -> float:
    return float(value.const_value.numpy().astype(np.float32).reshape(-1)[0])


def products_of(path: Path) -> dict[str, str]:
    """Return {node of a matrix product: site} of a graph file."""
    import onnx_ir as ir

    return {product.node: product.site for product in _products(ir.load(path))}


def carried_problems(graph: Any, document: Calibration, sites: list[str]) -> list[str]:
    """Return where a graph's scales are not the document's: sites that are missing, or have others.

    sites: those that it has to carry.
    """
    roundings, products = read_graph(graph)
    scales = {rounding.scale for rounding in roundings}
    # equal numbers share one name, so some sites' names are gone
    stored = {
        name: _scalar(value)
        for name, value in graph.graph.initializers.items()
        if value.const_value is not None and value.const_value.size == 1
    }
    found: dict[str, set[float | None]] = {}
    for product in products:
        found.setdefault(product.site, set()).add(product.scale)
    problems = []
    for site in sites:
        wanted = document.sites[site].scales
        if is_attention(site):
            named = {role: stored.get(f"{_MODEL}{site}.{role}") for role in wanted}
            problems += [
                f"{site}: nothing is quantized by its scale of {role}, {scale}"
                for role, scale in wanted.items()
                if scale not in scales or named[role] not in (None, scale)
            ]
        elif found.get(site) != {wanted["x"]}:
            has = ", ".join(map(str, found.get(site, ["no product"])))
            problems.append(f"{site}: its operand has the scale {wanted['x']}, the graph {has}")
    unwanted = [site for site in found if site not in sites]
    return problems + [f"{site} is quantized, which it must not be" for site in unwanted]


def layer_parity(
    path: Path, model: LumosX, document: Calibration, sites: list[str]
) -> dict[str, Any]:
    """Look into one call of a graph in onnxruntime, on a CPU.

    path: .onnx, in float32. model: the checkpoint in float32. Returns facts: how many roundings
    and products, and `worst_product`. Raises one LumosXError for all that is not as it must be.
    """
    import onnx_ir as ir
    import onnxruntime

    graph = ir.load(path)
    problems = carried_problems(graph, document, sites)
    roundings, products = read_graph(graph)
    wanted = {name for p in products for name in (p.operand, p.result)}
    wanted |= {name for r in roundings for name in (r.operand, r.result)}
    for node in graph.graph:
        graph.graph.outputs.extend(v for v in node.outputs if v.name in wanted)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.log_severity_level = 3
    inside = path.with_name(f"inside-{path.name}")  # its weights are beside it
    try:
        ir.save(graph, inside)
        session = onnxruntime.InferenceSession(inside, options, providers=["CPUExecutionProvider"])
    finally:
        inside.unlink(missing_ok=True)
    latents, time, inputs = random_inputs(model.config, [DEFAULT.layout_from_key(LAYOUT)], 1)
    given = inputs.feed(latents, time)
    values = {name: x.numpy() for name, x in given.items()}
    names = [output.name for output in session.get_outputs()]
    make = onnxruntime.OrtValue.ortvalue_from_numpy
    made = session.run_with_ort_values(names, {name: make(x) for name, x in values.items()})
    values |= {name: value.numpy() for name, value in zip(names, made, strict=True)}  # e4m3: bytes

    for rounding in roundings:
        operand, result = (torch.from_numpy(values[n]) for n in (rounding.operand, rounding.result))
        if not torch.equal(quantize(operand, rounding.scale).view(torch.uint8), result):
            problems.append(f"{rounding.result}: not the nearest values of {rounding.operand}")
    worst = 0.0
    for product in products:
        linear = model.get_submodule(product.site)
        assert isinstance(linear, nn.Linear)
        scale = weight_scale(linear.weight.detach(), document.scheme["weights"])
        weight = quantize(linear.weight.detach(), scale).double() * scale.double()
        operand, result = (torch.from_numpy(values[n]) for n in (product.operand, product.result))
        error = relative_error(result, operand.double() @ weight.T)
        worst = max(worst, error)
        if not error <= PRODUCT_GATE:
            problems.append(f"{product.site}: differs from float64 by {error:.1e}")
    if problems:
        raise Unsupported(listing("the FP8 graph is not what the calibration asks for", problems))
    return {"roundings": len(roundings), "products": len(products), "worst_product": worst}
