"""What diffusers' pipelines offer and an engine cannot: each says what to do instead."""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from lumosx_rt.reference.errors import Unsupported

_MEMORY = "load the engine with max_memory, like '8GiB': requests are adapted to it"
_BUILD = "an engine is compiled; it is decided by `lumosx-rt build`"
_PLACE = "it runs where it was built for and loaded: `lumosx-rt build`, `rt.load(provider=...)`"
_SHORTCUTS = "load the engine with lossy=rt.Lossy(...)"
_LORA = "merge it into the checkpoint, and build an engine of that"

INSTEAD_OF_PIPELINES = {
    "enable_model_cpu_offload": _MEMORY,
    "enable_sequential_cpu_offload": _MEMORY,
    "enable_group_offload": _MEMORY,
    "enable_vae_tiling": _MEMORY,
    "enable_vae_slicing": _MEMORY,
    "enable_attention_slicing": _MEMORY,
    "enable_xformers_memory_efficient_attention": _BUILD,
    "load_lora_weights": _LORA,
    "set_adapters": _LORA,
    "fuse_lora": _LORA,
    "unload_lora_weights": _LORA,
    "save_pretrained": "copy the engine's folder",
    "register_modules": _BUILD,
    "encode_prompt": "`Engine.prepare` encodes a scene, words bound to pictures",
}
INSTEAD_OF_TRANSFORMERS = {
    "to": _PLACE,
    "half": _BUILD,
    "bfloat16": _BUILD,
    "forward": "`Engine.sample` runs its steps",
    "set_attention_backend": _BUILD,
    "reset_attention_backend": _BUILD,
    "set_attn_processor": _BUILD,
    "enable_cache": _SHORTCUTS,
    "disable_cache": _SHORTCUTS,
    "cache_context": _SHORTCUTS,
    "enable_parallelism": "serve several engines, one for each GPU",
    "enable_group_offload": _MEMORY,
    "enable_layerwise_casting": "build with --precision fp8",
    "enable_gradient_checkpointing": "train the reference, `rt.train`",
    "compile_repeated_blocks": "it is compiled already",
    "compile": "it is compiled already",
    "fuse_qkv_projections": "it is compiled already",
    "add_adapter": _LORA,
    "load_lora_adapter": _LORA,
    "quantize": "build with --precision fp8",
}


class Refusing:
    """An object that answers familiar names with what to do instead of calling them."""

    _instead: Mapping[str, str]

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name not in self._instead:
            raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'")

        def refused(*args: Any, **kwargs: Any) -> NoReturn:
            raise Unsupported(f"{name}: an engine cannot do this; instead: {self._instead[name]}")

        return refused


class Transformer(Refusing):
    """The engine in the place of a pipeline's transformer."""

    _instead = INSTEAD_OF_TRANSFORMERS

    def __init__(self, config: Any) -> None:
        self.config = config
