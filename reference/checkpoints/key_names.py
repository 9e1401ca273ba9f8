"""Parameter names of other projects and ours, by rule: any depth and width, both directions.

    transformer    LumosX and Wan2.1  <->  diffusers WanTransformer3DModel
    text encoder   Wan2.1             <->  transformers UMT5EncoderModel
    VAE            Wan2.1             <->  diffusers AutoencoderKLWan

A name that no rule knows comes back unchanged, so that a loader can report it as unexpected.
"""

import re

_TRANSFORMER = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
_BLOCK = {
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    **{
        f"{ours}.{a}": f"{theirs}.{b}"
        for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for a, b in (
            ("q", "to_q"),
            ("k", "to_k"),
            ("v", "to_v"),
            ("o", "to_out.0"),
            ("norm_q", "norm_q"),
            ("norm_k", "norm_k"),
        )
    },
}
_T5 = {
    "token_embedding": "shared",
    "norm": "encoder.final_layer_norm",
}
_T5_BLOCK = {
    "norm1": "layer.0.layer_norm",
    "norm2": "layer.1.layer_norm",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
    **{f"attn.{name}": f"layer.0.SelfAttention.{name}" for name in "qkvo"},
}
_VAE = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    **{
        f"{side}.{ours}": f"{side}.{theirs}"
        for side in ("encoder", "decoder")
        for ours, theirs in (
            ("conv1", "conv_in"),
            ("head.0", "norm_out"),
            ("head.2", "conv_out"),
            ("middle.1.norm", "mid_block.attentions.0.norm"),
            ("middle.1.to_qkv", "mid_block.attentions.0.to_qkv"),
            ("middle.1.proj", "mid_block.attentions.0.proj"),
        )
    },
}
_VAE_UNIT = {  # inside a residual block or a resampler
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
    "resample.1": "resample.1",
    "time_conv": "time_conv",
}


def transformer_to_diffusers(key: str) -> str:
    """Return the diffusers name of a LumosX or Wan2.1 transformer parameter
    (docs/spec.md#key-names)."""
    if key == "head.modulation":
        return "scale_shift_table"
    if block := re.fullmatch(r"blocks\.(\d+)\.(.+)", key):
        rest = "scale_shift_table" if block[2] == "modulation" else _rename(block[2], _BLOCK)
        return f"blocks.{block[1]}.{rest}"
    return _rename(key, _TRANSFORMER)


def transformer_from_diffusers(key: str) -> str:
    """Return the LumosX name of a diffusers WanTransformer3DModel parameter
    (docs/spec.md#key-names)."""
    if key == "scale_shift_table":
        return "head.modulation"
    if block := re.fullmatch(r"blocks\.(\d+)\.(.+)", key):
        back = {theirs: ours for ours, theirs in _BLOCK.items()}
        rest = "modulation" if block[2] == "scale_shift_table" else _rename(block[2], back)
        return f"blocks.{block[1]}.{rest}"
    return _rename(key, {theirs: ours for ours, theirs in _TRANSFORMER.items()})


def t5_from_wan(key: str) -> str:
    """Return the transformers UMT5EncoderModel name of a Wan2.1 text encoder parameter."""
    if block := re.fullmatch(r"blocks\.(\d+)\.(.+)", key):
        return f"encoder.block.{block[1]}.{_rename(block[2], _T5_BLOCK)}"
    return _rename(key, _T5)


def t5_to_wan(key: str) -> str:
    """Return the Wan2.1 name of a transformers UMT5EncoderModel parameter."""
    if block := re.fullmatch(r"encoder\.block\.(\d+)\.(.+)", key):
        back = {theirs: ours for ours, theirs in _T5_BLOCK.items()}
        return f"blocks.{block[1]}.{_rename(block[2], back)}"
    return _rename(key, {theirs: ours for ours, theirs in _T5.items()})


def vae_from_wan(key: str, num_res_blocks: int) -> str:
    """Return the diffusers AutoencoderKLWan name of a Wan2.1 VAE parameter.

    num_res_blocks: residual blocks per level of the encoder; the decoder has one more, and
    diffusers counts its levels, where Wan2.1 counts blocks and resamplers in one row.
    """
    unit = re.fullmatch(r"(encoder|decoder)\.(middle|downsamples|upsamples)\.(\d+)\.(.+)", key)
    if unit is None or key in {f"{k}.{leaf}" for k in _VAE for leaf in ("weight", "bias", "gamma")}:
        return _rename(key, _VAE)
    side, row, place, rest = unit[1], unit[2], int(unit[3]), _rename(unit[4], _VAE_UNIT)
    if row == "middle":  # 0 and 2 are residual blocks, 1 is the attention
        return f"{side}.mid_block.resnets.{place // 2}.{rest}" if place in (0, 2) else key
    if row == "downsamples":
        return f"{side}.down_blocks.{place}.{rest}"
    level, inside = divmod(place, num_res_blocks + 2)
    within = f"resnets.{inside}" if inside <= num_res_blocks else "upsamplers.0"
    return f"{side}.up_blocks.{level}.{within}.{rest}"


def vae_to_wan(key: str, num_res_blocks: int) -> str:
    """Return the Wan2.1 name of a diffusers AutoencoderKLWan parameter."""
    unit = re.fullmatch(
        r"(encoder|decoder)\.(?:(mid_block)\.resnets\.(\d+)|(down_blocks)\.(\d+)"
        r"|(up_blocks)\.(\d+)\.(?:resnets\.(\d+)|upsamplers\.0))\.(.+)",
        key,
    )
    if unit is None:
        return _rename(key, {theirs: ours for ours, theirs in _VAE.items()})
    side, rest = unit[1], _rename(unit[9], {theirs: ours for ours, theirs in _VAE_UNIT.items()})
    if unit[2]:
        return f"{side}.middle.{2 * int(unit[3])}.{rest}"
    if unit[4]:
        return f"{side}.downsamples.{unit[5]}.{rest}"
    inside = int(unit[8]) if unit[8] else num_res_blocks + 1
    return f"{side}.upsamples.{int(unit[7]) * (num_res_blocks + 2) + inside}.{rest}"


def _rename(key: str, table: dict[str, str]) -> str:
    """Renames all but the last part (weight, bias, gamma) by the table."""
    stem, dot, leaf = key.rpartition(".")
    return f"{table[stem]}{dot}{leaf}" if stem in table else key
