"""TensorRT's own table of what a network became: read, judged, counted.

The builder logs it where its profiling verbosity is DETAILED; no GPU is needed. One line a kernel:

    Name: _gemm_mha_v2_myl1_27, LayerType: kgen, Inputs: [ { Name: x, Dimensions: [-1,-1,24], ...
    Datatype: BFloat16, ...}, ...], Outputs: [...], ..., Metadata: [ONNX Layer: blocks.0.self.video]
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lumosx_rt.reference.errors import Unsupported

HEADING = "Layers:"
TYPES = {"bf16": "BFloat16", "fp16": "Half"}
FP8 = "FP8"
_REAL = {"Float", "Half", "BFloat16", FP8}
_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), "
    r"Inputs: \[(?P<inputs>.*?)\], (?:Constants|Outputs): \["
)
_TENSOR = re.compile(r"\{ Name: ([^,]+),[^}]*?Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


@dataclass(frozen=True)
class Layer:
    """One kernel: what it reads, and the nodes of the network that it stands for."""

    name: str
    kind: str
    inputs: tuple[tuple[str, str], ...]
    """(name, type) of every tensor."""
    nodes: tuple[str, ...]

    @property
    def is_attention(self) -> bool:
        """Whether it is a whole attention, softmax and both products, in one kernel."""
        return "mha" in self.name

    @property
    def is_fp8_product(self) -> bool:
        """Whether it multiplies matrices in e4m3 and nothing else real goes in."""
        return self.kind == "gemm" and self.types == (FP8,)

    def count(self, kind: str) -> int:
        """Return how many tensors of a type it reads."""
        return sum(kind == found for _, found in self.inputs)

    @property
    def types(self) -> tuple[str, ...]:
        """The real types among what it reads; masks and sizes may be integers."""
        return tuple(sorted({kind for _, kind in self.inputs} & _REAL))


def read_layers(table: str) -> list[Layer]:
    """Return the kernels of a table. Raises LumosXError where the text is none."""
    layers = []
    for line in table.splitlines():
        found = _LINE.match(line)
        if found:
            inputs = tuple(_TENSOR.findall(found["inputs"]))
            nodes = tuple(_NODE.findall(line))
            layers.append(Layer(found["name"], found["kind"], inputs, nodes))
    if not table.startswith(HEADING) or not layers:
        raise Unsupported(f"TensorRT returned no layer table to judge the plan by: {table[:60]!r}")
    return layers


def problems(
    layers: Sequence[Layer],
    sites: Sequence[str],
    inputs: Sequence[str],
    precision: str,
    fp8: Collection[str] = (),
) -> list[str]:
    """List what is wrong with a table: attention that is not one kernel, or reads other types;
    inputs that nothing reads.

    sites: the attention nodes of the network, by name. precision: "bf16" or "fp16". fp8: sites
    whose queries, keys and values are read in e4m3; a mask, if they have one, is not.
    """
    found = []
    for site in sites:
        kernels = [layer for layer in layers if site in layer.nodes]
        fused = [layer for layer in kernels if layer.is_attention]
        if not fused:
            became = ", ".join(layer.name for layer in kernels) or "nothing that names it"
            found.append(f"{site} is not one fused kernel: it became {became}")
        for layer in fused:
            if site in fp8:
                if layer.count(FP8) < 3:
                    found.append(f"{site} reads {layer.count(FP8)} operands in {FP8}, not three")
            elif layer.types != (TYPES[precision],):
                types = ", ".join(layer.types) or "no real type"
                found.append(f"{site} reads {types}, not {TYPES[precision]}")
    read = {name for layer in layers for name, _ in layer.inputs}
    return found + [f"input '{name}' is read by no kernel" for name in inputs if name not in read]


def product_problems(layers: Sequence[Layer], products: Mapping[str, str]) -> list[str]:
    """Matrix products that are not computed in e4m3; products: node -> what it belongs to."""
    fp8 = {node for layer in layers if layer.is_fp8_product for node in layer.nodes}
    return [
        f"{site} ({node}) is no product in {FP8}"
        for node, site in products.items()
        if node not in fp8
    ]


def summary(
    layers: Sequence[Layer], sites: Sequence[str], products: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Kernels by kind; fused attention by its place in a block, and by the types it reads; 8-bit
    products, which one kernel may compute several of:
    {"kernels": {"kgen": 64, ...}, "attention": {"self.video": {"BFloat16": 30}, ...},
    "products": {"FP8": 296, "kernels": 240}}."""
    attention: dict[str, Counter[str]] = {}
    for site in sites:
        place = ".".join(site.split(".")[2:])
        for layer in layers:
            if layer.is_attention and site in layer.nodes:
                attention.setdefault(place, Counter())[" ".join(layer.types)] += 1
    table: dict[str, Any] = {
        "kernels": dict(Counter(layer.kind for layer in layers).most_common()),
        "attention": {place: dict(types) for place, types in attention.items()},
    }
    if products:
        missing = len(product_problems(layers, products))
        kernels = sum(layer.is_fp8_product for layer in layers)
        table["products"] = {FP8: len(products) - missing, "kernels": kernels}
    return table
