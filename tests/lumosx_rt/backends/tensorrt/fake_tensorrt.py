"""A stand-in for the module tensorrt (and tensorrt.plugin): its builder, parser and inspector.

The parser keeps to the rules of the real one: an opaque node becomes a plugin if its creator is in
the registry and plugins may override, else what its function body holds, else an error. Running is
the other stand-in's (`World`), without what only TensorRT-RTX has.
"""

import json
from types import SimpleNamespace

import onnx
from onnx import TensorProto, helper

from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.sampling.inputs import AXES, OUTPUT
from tests.lumosx_rt.backends.tensorrt_rtx.test_run import Settings, World

KINDS = {"Attention": "ATTENTION_OUTPUT", "Softmax": "SOFTMAX"}
PLUGINS = ("RelationalBias", "RelationalCrossAttention")


def opaque_graph(path, config: LumosXConfig) -> None:
    """A graph with the nodes, inputs and function bodies that `export_plugin_onnx` writes, and
    nothing between them."""
    known = {"channels": config.in_dim, "text_len": config.text_len, "text_dim": config.text_dim}
    known |= {"pairs": config.head_dim // 2}
    inputs = [
        helper.make_tensor_value_info(
            name, TensorProto.FLOAT, [known.get(axis, axis) for axis in axes]
        )
        for name, axes in AXES.items()
    ]
    nodes = []
    for block in range(config.num_layers):
        last = block + 1 == config.num_layers
        kinds = ["QkNormRope"] * (3 if last else 4)
        kinds += ["VideoAttention"] if last else ["RelationalAttention", *PLUGINS]
        for kind in kinds:
            name = f"node{len(nodes)}"
            nodes.append(helper.make_node(kind, ["latents"], [name], name, domain="lumosx"))
        name = f"node{len(nodes)}"
        nodes.append(helper.make_node("Attention", ["latents"] * 3, [name], name))
    nodes.append(helper.make_node("Identity", [nodes[-1].output[0]], [OUTPUT], "last"))
    output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", inputs, [output])
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("lumosx", 1)]
    body = [helper.make_node("Softmax", ["x"], ["y"])]
    functions = [
        helper.make_function("lumosx", kind, ["x"], ["y"], body, imports[:1])
        for kind in ("QkNormRope", "RelationalAttention", "VideoAttention", *PLUGINS)
    ]
    model = helper.make_model(graph, functions=functions, opset_imports=imports)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


class Enumeration:
    """Members that are looked up by name; an unknown one is a mistake."""

    def __init__(self, *names: str) -> None:
        for value, name in enumerate(names):
            setattr(self, name, value)


class OwnSettings:
    """Settings of a run, of which classic TensorRT has few."""

    def __init__(self, world: "Classic") -> None:
        self.set_execution_context_allocation_strategy = Settings(
            world
        ).set_execution_context_allocation_strategy


class Classic(World):
    """The module: what it was told, in order, and how it is to fail."""

    __version__ = "11.4.0.106"
    NetworkDefinitionCreationFlag = Enumeration(
        "STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS", "PREFER_JIT_PYTHON_PLUGINS"
    )
    OnnxParserFlag = Enumeration("NATIVE_INSTANCENORM", "ENABLE_PLUGIN_OVERRIDE")
    LayerType = Enumeration("SOFTMAX", "PLUGIN_V3", "ATTENTION_OUTPUT", "CAST")
    BuilderFlag = Enumeration("TF32", "WEIGHT_STREAMING")
    ProfilingVerbosity = Enumeration("DETAILED")
    LayerInformationFormat = Enumeration("JSON")
    float32, float16, bfloat16 = "fp32", "fp16", "bf16"

    class IProgressMonitor:
        pass

    def __init__(self, model) -> None:
        super().__init__(model)
        self.told: list[object] = []
        self.registry: dict[str, set[str]] = {}
        self.flags = {"TF32"}
        self.shapes: dict[str, tuple] = {}
        self.forgets = ""
        self.unfused = False

    def __getattribute__(self, name):
        if name in ("CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy"):
            raise AttributeError(f"module 'tensorrt' has no attribute {name!r}")
        return super().__getattribute__(name)

    # -- tensorrt.plugin ------------------------------------------------------------------------

    def plugin_module(self):
        def declare(part):
            def decorator(identity):
                def keep(function):
                    assert part not in self.registry.get(identity, ()), "declared already"
                    self.registry.setdefault(identity, set()).add(part)
                    return function

                return keep

            return decorator

        names = ("TensorDesc", "KernelLaunchParams", "SymExprs", "AutoTuneCombination")
        kept = {part: declare(part) for part in ("register", "autotune", "aot_impl")}
        return SimpleNamespace(**dict.fromkeys(names, object), **kept, cdiv=None)

    # -- building -------------------------------------------------------------------------------

    def Builder(self, log):
        self.log = log
        return SimpleNamespace(
            create_network=self.create_network,
            create_builder_config=self.create_config,
            create_optimization_profile=lambda: SimpleNamespace(set_shape=self.set_shape),
            build_serialized_network=self.build,
        )

    def create_network(self, flags):
        self.told.append(("network", flags))
        self.network = SimpleNamespace(num_layers=0, num_inputs=0)
        return self.network

    def OnnxParser(self, network, log):
        parser = SimpleNamespace(num_errors=0, get_error=None, flags=set())
        parser.set_flag = parser.flags.add
        parser.parse_from_file = lambda path: self.parse(path, parser.flags)
        return parser

    def parse(self, path, flags):
        self.told.append("parse")
        model = onnx.load(path, load_external_data=False)
        bodies = {function.name: function.node for function in model.functions}
        override = self.OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE in flags
        layers = []
        for node in model.graph.node:
            declared = self.registry.get(f"lumosx::{node.op_type}", set())
            if node.domain and override and declared == {"register", "autotune", "aot_impl"}:
                layers.append((node.name, "PLUGIN_V3"))
            else:
                inside = bodies[node.op_type] if node.domain else [node]
                layers += [
                    (f"{node.name}_{n.op_type}", KINDS.get(n.op_type, "CAST")) for n in inside
                ]
        made = [
            SimpleNamespace(name=name, type=getattr(self.LayerType, kind), metadata="")
            for name, kind in layers
        ]
        sizes = {
            value.name: tuple(d.dim_value or -1 for d in value.type.tensor_type.shape.dim)
            for value in model.graph.input
        }
        given = [SimpleNamespace(name=name, shape=shape) for name, shape in sizes.items()]
        self.network.num_layers, self.network.get_layer = len(made), made.__getitem__
        self.network.num_inputs, self.network.get_input = len(given), given.__getitem__
        return True

    def create_config(self):
        def flag(change):
            return lambda value: change(
                next(
                    n for n in ("TF32", "WEIGHT_STREAMING") if getattr(self.BuilderFlag, n) == value
                )
            )

        return SimpleNamespace(
            set_flag=flag(self.flags.add),
            clear_flag=flag(self.flags.discard),
            add_optimization_profile=lambda profile: self.told.append("profile"),
        )

    def set_shape(self, name, least, usual, most):
        self.shapes[name] = (least, usual, most)

    def build(self, network, config):
        assert network is self.network and config.profiling_verbosity == 0
        self.told.append("build")
        return b"plan"

    # -- what became of it ----------------------------------------------------------------------

    def deserialize(self, blob):
        engine = super().deserialize(bytes(blob))
        if engine is not None:
            engine.create_runtime_config = lambda: self.own_settings()
            engine.create_engine_inspector = lambda: SimpleNamespace(
                get_engine_information=self.inspect
            )
        return engine

    def own_settings(self):
        self.settings = OwnSettings(self)
        return self.settings

    def inspect(self, kind):
        assert kind == self.LayerInformationFormat.JSON
        layers = [self.network.get_layer(i) for i in range(self.network.num_layers)]
        fused = "_myl_" if self.unfused else "_gemm_mha_v2_"
        plugin, attention = self.LayerType.PLUGIN_V3, self.LayerType.ATTENTION_OUTPUT
        reads = [{"Name": name, "DataType": "BFloat16"} for name in AXES]
        return json.dumps(
            {
                "Layers": [
                    {
                        "Name": layer.name if layer.type == plugin else f"{fused}{i}",
                        "LayerType": "PluginV3" if layer.type == plugin else "kgen",
                        "Inputs": reads,
                        "Metadata": layer.metadata,
                    }
                    for i, layer in enumerate(layers)
                    if layer.type in (plugin, attention) and layer.name != self.forgets
                ]
            }
        )
