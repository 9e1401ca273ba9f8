"""TensorRT's layer table: read from lines that it wrote, and judged."""

import pytest

from lumosx_rt.export.tensorrt.layer_table import (
    problems,
    product_problems,
    read_layers,
    summary,
)
from lumosx_rt.reference.errors import LumosXError

TENSOR = (
    "{{ Name: {name}, Dimensions: [-1,-1,24], Strides: [24,-1,1], StrideOrder: [1,2,0], "
    "Datatype: {kind}, Format: (Arbitrary) Format with stride order = [1,2,0] }}"
)
SITES = ["blocks.0.self.video", "blocks.0.self.groups"]


def line(name: str, kind: str, inputs: dict[str, str], *nodes: str, constants: str = "") -> str:
    told = ", ".join(TENSOR.format(name=n, kind=k) for n, k in inputs.items())
    out = TENSOR.format(name="out", kind="Float")
    said = "".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {told}], {constants}Outputs: [ {out}], "
        f"TacticName: {name}_0xab, StreamId: 0, Metadata: {said}"
    )


MASK = {"latents": "BFloat16", "k": "BFloat16", "mask": "Int32", "v": "BFloat16", "size": "Int64"}
WEIGHTS = "Constants: [ { Name: w, Dimensions: [8,8], Datatype: Half, Format: x }], "
LINES = [
    "Layers:",
    line("__myl_Add_1", "kgen", {"time": "Int64"}, "node_a", "node_b", constants=WEIGHTS),
    line("_gemm_mha_v2_myl1_2", "kgen", {"q": "BFloat16", "k": "BFloat16"}, SITES[0]),
    line("_gemm_mha_v2_myl1_3", "kgen", MASK, SITES[1]),
    "Name: __mye_1, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , "
    "StreamId: 0, Metadata: ",
    "",
    "Bindings:",
    " Name: text, IOMode: Input, DataType: Float, Dimensions: [-1,256,64], Location: Device",
]
TABLE = "\n".join(LINES)


def found(table: str, precision: str = "bf16") -> list[str]:
    return problems(read_layers(table), SITES, ["latents", "time"], precision)


def test_kernels_with_what_they_read_and_stand_for() -> None:
    add, video, groups, shapes = read_layers(TABLE)
    assert (add.name, add.kind, add.nodes) == ("__myl_Add_1", "kgen", ("node_a", "node_b"))
    assert add.inputs == (("time", "Int64"),) and not add.types  # weights and results are not read
    assert groups.inputs == tuple(MASK.items()) and groups.types == ("BFloat16",)
    assert [layer.is_attention for layer in (add, video, groups, shapes)] == [
        False, True, True, False,
    ]  # fmt: skip
    assert shapes.inputs == () and shapes.nodes == ()


def test_a_sound_table_has_no_problems_and_is_counted() -> None:
    assert found(TABLE) == []
    assert summary(read_layers(TABLE), SITES) == {
        "kernels": {"kgen": 3, "shape_call": 1},
        "attention": {"self.video": {"BFloat16": 1}, "self.groups": {"BFloat16": 1}},
    }


def test_attention_in_pieces_is_named_with_what_it_became() -> None:
    pieces = TABLE.replace("_gemm_mha_v2_myl1_3", "__myl_MulExpSum_3")
    (said,) = found(pieces)
    assert SITES[1] in said and "__myl_MulExpSum_3" in said
    (said,) = found(TABLE.replace(f"[ONNX Layer: {SITES[1]}]", ""))
    assert SITES[1] in said and "nothing that names it" in said


@pytest.mark.parametrize("kind", ["Float", "Half"])
def test_attention_in_another_precision_is_named(kind: str) -> None:
    (said,) = found(TABLE.replace("BFloat16", kind, 1))
    assert SITES[0] in said and kind in said and "not BFloat16" in said
    assert len(found(TABLE, "fp16")) == len(SITES)


def test_attention_in_e4m3_reads_three_operands_of_it() -> None:
    operands = dict.fromkeys("qkv", "FP8") | {"mask": "BFloat16"}
    lines = [*LINES[:2], line("_gemm_mha_v2_myl1_2", "kgen", operands, SITES[0]), *LINES[3:]]

    def judged(lines: list[str]) -> list[str]:
        return problems(read_layers("\n".join(lines)), SITES, ["time"], "bf16", SITES[:1])

    assert judged(lines) == []
    (said,) = judged([text.replace("FP8", "BFloat16", 1) for text in lines])
    assert f"{SITES[0]} reads 2 operands in FP8" in said
    (said,) = judged(LINES)
    assert f"{SITES[0]} reads 0 operands in FP8" in said
    (said,) = problems(read_layers("\n".join(lines)), SITES, ["time"], "bf16")
    assert "BFloat16, FP8, not BFloat16" in said  # where it was not asked for


def test_products_that_are_not_in_e4m3_are_named() -> None:
    lines = [
        *LINES[:2],
        line("one_myl0_1", "gemm", {"x": "FP8"}, "one"),
        line("two+three_myl0_2", "gemm", {"x": "FP8", "y": "FP8"}, "two", "three"),
        line("four_myl0_3", "gemm", {"x": "BFloat16"}, "four"),
        line("__myl_five", "kgen", {"x": "FP8"}, "five"),
    ]
    layers = read_layers("\n".join(lines))
    sites = {"one": "a.q", "two": "a.k", "three": "a.v"}
    assert product_problems(layers, sites) == []
    assert summary(layers, [], sites)["products"] == {"FP8": 3, "kernels": 2}
    wrong = {"four": "b.q", "five": "b.k", "six": "b.v"}
    said = product_problems(layers, sites | wrong)
    assert [text.split(" ")[:2] for text in said] == [[s, f"({n})"] for n, s in wrong.items()]


def test_an_input_that_nothing_reads_is_named() -> None:
    assert found(TABLE.replace("Name: time,", "Name: other,")) == [
        "input 'time' is read by no kernel"
    ]


@pytest.mark.parametrize("text", ["", "Layers:", "Layers:\nnothing", "\n".join(LINES[1:])])
def test_what_is_no_table_is_an_error(text: str) -> None:
    with pytest.raises(LumosXError, match="no layer table"):
        read_layers(text)
