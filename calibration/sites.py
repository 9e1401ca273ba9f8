"""The places in a transformer's blocks that may run in FP8, what enters them, and their work.

    blocks.3.self_attn.q  ...  blocks.3.ffn.2    ten linears a block, named as modules are
    blocks.3.self  blocks.3.cross                two attentions a block, named as in calls of `Ops`

What enters a site are its *operands*: a linear's rows of the video, the condition or the text; an
attention's queries, keys (as they are, and less their mean over the tokens) and values of each.
Operands of one *role* (x; q, k, v) share a scale, as one matrix product has one.
Everything else is never quantized (`UNQUANTIZED`).
"""

from collections.abc import Sequence

from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.mechanisms.mechanism import Layout

LINEARS = (
    *(f"{part}.{which}" for part in ("self_attn", "cross_attn") for which in "qkvo"),
    "ffn.0",
    "ffn.2",
)
ATTENTIONS = ("self", "cross")
UNQUANTIZED = (
    "patch, text and time embeddings, modulation and head: a small share of the work",
    "inputs of norms and residual sums: they carry the signal through all blocks",
)
MULTIPLE = 16  # of both sizes of a matrix, which the 8-bit units need


def sites_of(config: LumosXConfig) -> tuple[str, ...]:
    """Return every site, block by block."""
    return tuple(
        f"blocks.{i}.{part}" for i in range(config.num_layers) for part in (*LINEARS, *ATTENTIONS)
    )


def is_attention(site: str) -> bool:
    return site.rsplit(".", 1)[1] in ATTENTIONS


def part_of(site: str) -> str:
    """Return `self_attn.q` of `blocks.3.self_attn.q`."""
    return site.split(".", 2)[2]


def roles_of(site: str) -> tuple[str, ...]:
    return ("q", "k", "v") if is_attention(site) else ("x",)


def operands_of(site: str) -> tuple[str, ...]:
    """List the operands of a site, in the order in which a forward pass meets them."""
    part = part_of(site)
    if part == "self":
        roles = ("q", "k", "k_centred", "v")
        return tuple(f"{segment}.{role}" for segment in ("video", "condition") for role in roles)
    if part == "cross":
        return ("video.q", "condition.q", "text.k", "text.k_centred", "text.v")
    return ("text",) if part in ("cross_attn.k", "cross_attn.v") else ("video", "condition")


def operands_of_role(site: str, role: str, smooth_keys: bool) -> tuple[str, ...]:
    """Return the operands that share the scale of a role; keys are those with or without their
    mean."""
    if role == "x":
        return operands_of(site)
    name = "k_centred" if role == "k" and smooth_keys else role
    return tuple(operand for operand in operands_of(site) if operand.split(".")[1] == name)


def why_not(site: str, config: LumosXConfig) -> str | None:
    """Why a site cannot run in FP8; None where it can."""
    sizes = (config.head_dim,) if is_attention(site) else matrix_of(site, config)
    if any(size % MULTIPLE for size in sizes):
        shown = " -> ".join(map(str, sizes))
        return f"8-bit products need sizes that are multiples of {MULTIPLE}, this has {shown}"
    return None


def matrix_of(site: str, config: LumosXConfig) -> tuple[int, int]:
    """Return the sizes of a linear's input and output."""
    part = part_of(site)
    if part == "ffn.0":
        return config.dim, config.ffn_dim
    return (config.ffn_dim if part == "ffn.2" else config.dim), config.dim


def flops_of(config: LumosXConfig, layouts: Sequence[Layout]) -> dict[str, int]:
    """Floating-point operations of every site: one velocity of each layout, one seed.

    The last block's conditions give keys and values alone, as in the model.
    """
    total = dict.fromkeys(sites_of(config), 0)
    for layout in layouts:
        for site in total:
            total[site] += _flops(site, config, layout)
    return total


def _flops(site: str, config: LumosXConfig, layout: Layout) -> int:
    last = site.startswith(f"blocks.{config.num_layers - 1}.")
    queries = layout.video_tokens if last else layout.tokens
    part = part_of(site)
    if part == "self":
        pairs = layout.video_tokens * layout.tokens if last else layout.attended_pairs
        return 4 * config.dim * pairs
    if part == "cross":
        return 4 * config.dim * queries * config.text_len
    rows = queries
    if part in ("self_attn.k", "self_attn.v"):
        rows = layout.tokens
    elif part in ("cross_attn.k", "cross_attn.v"):
        rows = config.text_len
    width, height = matrix_of(site, config)
    return 2 * rows * width * height
