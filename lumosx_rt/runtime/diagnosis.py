"""Where numbers stopped being finite: the failing step, run again with its insides exposed.

Runs only after a failure. PyTorch: forward hooks. ONNX: the graph is loaded again with a sum after
every value. Compiled packages cannot be inspected, so the step is repeated in the reference if the
checkpoint can be found.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lumosx_rt.artifact.manifest import GRAPH, Manifest
from lumosx_rt.artifact.source import source_of
from lumosx_rt.backends.common.odd_sizes import even, padded
from lumosx_rt.reference.backbones.ops import Ops
from lumosx_rt.reference.backbones.wan import Head, LumosX
from lumosx_rt.reference.packages import require
from lumosx_rt.reference.sampling.eager import EagerBackend
from lumosx_rt.reference.sampling.inputs import OUTPUT, Backend, Inputs

_SITE = re.compile(r"(?:model\.)?((?:blocks\.(\d+)|head|\w+_embedding|time_projection)\b.*)")


def explain(
    backend: Backend, folder: Path, manifest: Manifest, inputs: Inputs, latents: Tensor, time: int
) -> str:
    """Return where a call's velocity is not finite, as a part of a sentence.

    latents: [streams, seeds, channels, frames, rows, columns], what the failing call was given.
    Never raises: what cannot be shown is said.
    """
    if given := spoiled_input(inputs, latents):
        return f"{given} were not finite before it"
    try:
        if isinstance(backend, EagerBackend):
            return _told(in_model(backend.model, inputs, latents, time), "")
        if manifest.backend == "onnxruntime":
            return _told(in_graph(folder / GRAPH, inputs, latents, time), "")
    except Exception as error:  # a diagnosis must not hide what it was asked about
        return f"its insides cannot be shown ({_reason(error)})"
    try:
        model = source_of(manifest, None).load()
        site = in_model(model, inputs, latents, time)
    except Exception as error:
        return f"the backend {manifest.backend} shows no insides ({_reason(error)})"
    return _told(site, " in the reference")


def _told(site: str | None, where: str) -> str:
    if site is None:
        return f"the same step, run again{where} with its insides exposed, is finite"
    return f"first at {site}{where}"


def spoiled_input(inputs: Inputs, latents: Tensor) -> str | None:
    """Return which of the things a call was given is not finite."""
    given = {"latents": latents, **inputs.tensors}
    return next((f"the {n}" for n, x in given.items() if not torch.isfinite(x).all()), None)


def in_model(model: LumosX, inputs: Inputs, latents: Tensor, time: int) -> str | None:
    """Return the first place of the reference, in the order of its work, that is not finite."""
    found: list[str] = []
    with _watched(model, found):
        EagerBackend(model).bind(inputs)(latents, time)
    return found[0] if found else None


@contextmanager
def _watched(model: LumosX, found: list[str]) -> Iterator[None]:
    """Within it the model notes the names of places whose values are not finite."""
    block = "the embeddings"

    def look(name: str, values: Any) -> None:
        if isinstance(values, Tensor):
            if values.is_floating_point() and not torch.isfinite(values).all():
                found.append(name)
        elif isinstance(values, tuple):
            for value in values:
                look(name, value)

    def entered(name: str) -> Any:
        def note(module: nn.Module, given: Any) -> None:
            nonlocal block
            if name == "blocks.0":
                look("patch_embedding", given[:2])
            block = name

        return note

    def left(name: str) -> Any:
        return lambda module, given, made: look(name, made)

    def around(operation: str, run: Any) -> Any:
        def watched(call: Any) -> Any:
            made = run(call)
            look(f"{block}, {operation}", made)
            return made

        return watched

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            hooks.append(module.register_forward_hook(left(name)))
        if isinstance(module, Head) or re.fullmatch(r"blocks\.\d+", name):
            hooks.append(module.register_forward_pre_hook(entered(name)))
    own = model.ops
    names = ("self_attention", "cross_attention", "qk_norm_rope", "norm_modulate")
    model.ops = Ops(*(around(name.replace("_", " "), getattr(own, name)) for name in names))
    try:
        yield
    finally:
        model.ops = own
        for hook in hooks:
            hook.remove()


def in_graph(graph: Path, inputs: Inputs, latents: Tensor, time: int) -> str | None:
    """Return the first place of an ONNX graph, in its order, whose values are not finite.

    Beside every value stands its sum of 0 * x, which is 0 or NaN; only these leave the graph, so
    the run needs hardly more memory than a step. It takes the weights a second time, on the CPU.
    """
    require("looking into a graph", "onnx")
    import onnx
    import onnxruntime

    model = onnx.load(graph, load_external_data=False)
    places = _expose(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(graph.parent)
    )
    inputs, latents = even(inputs), padded(latents)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    times = torch.full(inputs.shape[:1], time)
    feed = {name: x.contiguous().numpy() for name, x in inputs.feed(latents, times).items()}
    sums = session.run(list(places), feed)
    return next((places[n] for n, x in zip(places, sums, strict=True) if x != 0), None)


def _expose(model: Any) -> dict[str, str]:
    """Add sums to a graph, its new outputs: {name of a sum: the place it looks at}, in order."""
    from onnx import TensorProto, helper

    graph = model.graph
    floats = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    floats |= {OUTPUT}
    nodes, constant = list(graph.node), {tensor.name for tensor in graph.initializer}
    places: dict[str, str] = {}
    graph.initializer.append(helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]))
    del graph.output[:]
    names = _places(nodes)
    for node, place in zip(nodes, names, strict=True):
        if all(name in constant for name in node.input):
            constant |= set(node.output)  # a weight on its way: what uses it is what fails
            continue
        for value in floats.intersection(node.output):
            total = f"{value}/sum"
            graph.node.append(helper.make_node("Mul", [value, "zero"], [f"{value}/zero"]))
            graph.node.append(helper.make_node("ReduceSum", [f"{value}/zero"], [total], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(total, TensorProto.FLOAT, []))
            places[total] = place
    return places


def _places(nodes: list[Any]) -> list[str]:
    """A name for every node, in a graph that is written in the order of the model's work.

    A block begins where its modulation is read. Within it a node is named by the next parameter
    that keeps its name (weights may be folded, equal ones merged; biases and modulations are not).
    """
    found = []
    for node in nodes:
        sites = [match for name in node.input if (match := _SITE.fullmatch(name))]
        found.append(sites[0] if sites else None)
    stages, stage = [], ""
    for match in found:
        if match and match[1].endswith("modulation"):
            stage = match[1].rpartition(".")[0]
        stages.append(stage)
    names: list[str] = []
    following = ""
    for match, stage in zip(reversed(found), reversed(stages), strict=True):
        if match and (match[1].startswith(f"{stage}.") or not stage):
            following = re.sub(r"\.(weight|bias)$", "", match[1])
        names.append(following if following.startswith(stage) else stage)
    return names[::-1]


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
