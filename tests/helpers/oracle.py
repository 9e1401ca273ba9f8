"""LumosX a second time, from SPEC alone: one sequence, one token after the other, in float64 (or
in what its parameters and inputs are in).

Slow and plain on purpose. Nothing is shared with the code under test but parameter names: dense
masks, a bias for every token, the padded raster of quirk M2 really built and cropped.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Frame = tuple[str, int, int]  # ("video", f, 0), ("lone", i, 0) or ("subject", g, j)
State = dict[str, Tensor]
EPS = 1e-6
BLOCK = 8


@dataclass(frozen=True)
class Facts:
    """What is known of a sequence before any tensor is; sizes in the token grid."""

    video_frames: int
    height: int
    width: int
    lone: int
    subjects: tuple[int, ...]
    relational_positions: bool = True
    relational_visibility: bool = True
    raster_tiling: bool = True

    @property
    def references(self) -> int:
        return self.lone + sum(self.subjects)


# -- structure (docs/spec.md#tokens to #mcam) -----------------------------------------------------


def frames(facts: Facts) -> list[Frame]:
    """Every frame of the sequence, in its order."""
    found: list[Frame] = [("video", f, 0) for f in range(facts.video_frames)]
    found += [("lone", i, 0) for i in range(facts.lone)]
    for g, size in enumerate(facts.subjects):
        found += [("subject", g, j) for j in range(size)]
    return found


def tokens(facts: Facts) -> list[tuple[Frame, int, int]]:
    """(frame, row, column) of every token: frame-major, then row, then column."""
    return [
        (frame, row, column)
        for frame in frames(facts)
        for row in range(facts.height)
        for column in range(facts.width)
    ]


def sees(facts: Facts, query: Frame, key: Frame) -> bool:
    """Whether tokens of one frame may look at tokens of another."""
    if not facts.relational_visibility or query[0] == "video":
        return True
    return query[:2] == key[:2]


def position(facts: Facts, frame: Frame, row: int, column: int) -> tuple[int, int, int]:
    """Rotary (t, h, w) of a token: the table of docs/spec.md#r2pe."""
    kind, number, image = frame
    if kind == "video":
        return number, row, column
    if kind == "lone":
        return facts.video_frames + number, row, column
    first = facts.video_frames + facts.lone
    if facts.relational_positions:
        return first + number, image * facts.height + row, image * facts.width + column
    return first + sum(facts.subjects[:number]) + image, row, column


def score_blocks(facts: Facts) -> list[int]:
    """The pooling block whose score each token of a frame receives.

    Every block's number is written into each of its cells of the grid padded to whole blocks. As
    released, that raster is flattened and cut after H*W entries; otherwise it is cropped in place.
    """
    rows, columns = -(-facts.height // BLOCK), -(-facts.width // BLOCK)
    raster = [[-1] * (columns * BLOCK) for _ in range(rows * BLOCK)]
    for block in range(rows * columns):
        for y in range(BLOCK):
            for x in range(BLOCK):
                raster[block // columns * BLOCK + y][block % columns * BLOCK + x] = block
    if facts.raster_tiling:
        return [number for row in raster for number in row][: facts.height * facts.width]
    return [number for row in raster[: facts.height] for number in row[: facts.width]]


def word_weights(facts: Facts, masks: list[list[bool]]) -> list[list[float]]:
    """omega of docs/spec.md#word-weights: masks and weights are [references][text positions]."""
    kinds = frames(facts)[facts.video_frames :]
    subjects = len(facts.subjects)

    def union(g: int, word: int) -> float:
        members = [i for i, kind in enumerate(kinds) if kind[:2] == ("subject", g)]
        return 1.0 if any(masks[i][word] for i in members) else 0.0

    weights = []
    for i, (kind, g, _) in enumerate(kinds):
        row = []
        for word in range(len(masks[i])):
            if kind == "lone":
                weight = float(masks[i][word])
            else:
                weight = union(g, word)
                for other in range(subjects):
                    if other != g:
                        weight -= union(other, word) / (subjects - 1)
            row.append(weight)
        weights.append(row)
    return weights


# -- the four operations (docs/spec.md#block) -----------------------------------------------------


def angles(place: tuple[int, int, int], head_dim: int) -> list[float]:
    """The rotary angle of each channel pair of a head, laid out time, row, column."""
    pairs = head_dim // 2
    space = pairs // 3
    found = []
    for axis, size in ((0, pairs - 2 * space), (1, space), (2, space)):
        found += [place[axis] * 10000.0 ** (-j / size) for j in range(size)]
    return found


def rotate(x: Tensor, places: list[tuple[int, int, int]]) -> Tensor:
    """x [tokens, heads, head_dim], pairs of channels turned as complex numbers."""
    turned = []
    for token, place in zip(x, places, strict=True):
        angle = torch.tensor(angles(place, x.shape[-1]), dtype=torch.float64)
        number = torch.view_as_complex(token.unflatten(-1, (-1, 2)).contiguous())
        turned.append(torch.view_as_real(number * torch.exp(1j * angle)).flatten(-2).to(x.dtype))
    return torch.stack(turned)


def attention(q: Tensor, k: Tensor, v: Tensor, extra: Tensor | None = None) -> Tensor:
    """q [queries, heads, head_dim], k and v [keys, heads, head_dim]; `extra` is added to the
    logits [queries, heads, keys] and may be -inf. Returns [queries, heads, head_dim]."""
    logits = torch.einsum("qnd,knd->qnk", q, k) / math.sqrt(q.shape[-1])
    if extra is not None:
        logits = logits + extra.to(logits.dtype)
    weights = torch.exp(logits - logits.amax(-1, keepdim=True).detach())
    weights = weights / weights.sum(-1, keepdim=True)
    return torch.einsum("qnk,knd->qnd", weights, v)


def visibility_mask(facts: Facts) -> Tensor:
    """0 where a token may look, -inf where not: [tokens, 1, tokens]."""
    all_frames = frames(facts)
    rows = [[0.0 if sees(facts, a, b) else -math.inf for b in all_frames] for a in all_frames]
    cells = facts.height * facts.width
    mask = torch.tensor(rows, dtype=torch.float64)
    return mask.repeat_interleave(cells, 0).repeat_interleave(cells, 1)[:, None]


def word_bias(facts: Facts, q: Tensor, k: Tensor, omega: Tensor, ratio: float) -> Tensor:
    """B of docs/spec.md#mcam: [references * H * W, heads, text positions].

    q: [references * H * W, heads, head_dim]; k: [text positions, heads, head_dim]; omega:
    [references, text positions].
    """
    heads, head_dim = q.shape[1:]
    rows, columns = -(-facts.height // BLOCK), -(-facts.width // BLOCK)
    owner = score_blocks(facts)
    bias = []
    for image in range(facts.references):
        cells = q[image * len(owner) : (image + 1) * len(owner)]
        grid = cells.reshape(facts.height, facts.width, heads, head_dim)
        padded = q.new_zeros(rows * BLOCK, columns * BLOCK, heads, head_dim)
        padded[: facts.height, : facts.width] = grid
        scores = []
        for block in range(rows * columns):
            top, left = block // columns * BLOCK, block % columns * BLOCK
            mean = padded[top : top + BLOCK, left : left + BLOCK].sum((0, 1)) / 64
            scores.append(torch.einsum("nd,lnd->nl", mean, k).abs() / math.sqrt(head_dim))
        bias += [ratio * scores[block] * omega[image] for block in owner]
    return torch.stack(bias) if bias else q.new_zeros(0, heads, len(k))


def rms_norm(x: Tensor, weight: Tensor | None) -> Tensor:
    """Over the whole width; the identity without a weight."""
    if weight is None:
        return x
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS) * weight


def layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + EPS)


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


# -- the transformer (docs/spec.md#tokens to #block) ----------------------------------------------


def sinusoid(time: int, width: int) -> Tensor:
    half = width // 2
    turns = [time * 10000.0 ** (-j / half) for j in range(half)]
    values = [math.cos(a) for a in turns] + [math.sin(a) for a in turns]
    return torch.tensor(values, dtype=torch.float64).float().double()


def velocity(
    state: State,
    heads: int,
    facts: Facts,
    latents: Tensor,
    time: int,
    text: Tensor,
    references: Tensor,
    omega: Tensor,
    ratio: float,
) -> Tensor:
    """The network's output for one video and its references: [channels, T + N, rows, columns].

    state: parameters; norms whose weights are not there are switched off. latents:
    [channels, T, rows, columns]; text: [text positions, text_dim]; references: [N, channels, rows,
    columns]; omega: [N, text positions].
    """

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def heads_of(x: Tensor, name: str, which: str) -> Tensor:
        y = linear(x, f"{name}.{which}")
        if which != "v":
            y = rms_norm(y, state.get(f"{name}.norm_{which}.weight"))
        return y.reshape(len(y), heads, -1)

    sequence = torch.cat([latents, references.transpose(0, 1)], dim=1)
    x = patch_embedding(state, sequence)
    places = [position(facts, *token) for token in tokens(facts)]
    mask = visibility_mask(facts)
    video = facts.video_frames * facts.height * facts.width

    width = state["time_embedding.0.weight"].shape[1]
    turns = sinusoid(time, width).to(x.dtype)
    e = linear(silu(linear(turns, "time_embedding.0")), "time_embedding.2")
    e0 = linear(silu(e), "time_projection.1").reshape(6, -1)
    context = linear(gelu(linear(text, "text_embedding.0")), "text_embedding.2")

    for layer in range(sum(name.endswith(".ffn.0.weight") for name in state)):
        block = f"blocks.{layer}"
        mu = state[f"{block}.modulation"][0] + e0
        y = layer_norm(x) * (1 + mu[1]) + mu[0]
        q, k, v = (heads_of(y, f"{block}.self_attn", which) for which in "qkv")
        seen = attention(rotate(q, places), rotate(k, places), v, mask)
        x = x + mu[2] * linear(seen.flatten(1), f"{block}.self_attn.o")

        y = x
        if f"{block}.norm3.weight" in state:
            y = layer_norm(x) * state[f"{block}.norm3.weight"] + state[f"{block}.norm3.bias"]
        q = heads_of(y, f"{block}.cross_attn", "q")
        k, v = (heads_of(context, f"{block}.cross_attn", which) for which in "kv")
        bias = torch.cat(
            [q.new_zeros(video, heads, len(k)), word_bias(facts, q[video:], k, omega, ratio)]
        )
        x = x + linear(attention(q, k, v, bias).flatten(1), f"{block}.cross_attn.o")

        y = layer_norm(x) * (1 + mu[4]) + mu[3]
        x = x + mu[5] * linear(gelu(linear(y, f"{block}.ffn.0")), f"{block}.ffn.2")

    shift, scale = state["head.modulation"][0] + e
    return unpatched(linear(layer_norm(x) * (1 + scale) + shift, "head.head"), sequence.shape)


def patch_embedding(state: State, sequence: Tensor) -> Tensor:
    """[channels, frames, rows, columns] -> [tokens, width]; odd sizes get zeros at the end."""
    weight, bias = state["patch_embedding.weight"], state["patch_embedding.bias"]
    channels, count, rows, columns = sequence.shape
    padded = sequence.new_zeros(channels, count, rows + rows % 2, columns + columns % 2)
    padded[:, :, :rows, :columns] = sequence
    return torch.stack(
        [
            torch.einsum("dcyx,cyx->d", weight[:, :, 0], padded[:, f, y : y + 2, x : x + 2]) + bias
            for f in range(count)
            for y in range(0, rows, 2)
            for x in range(0, columns, 2)
        ]
    )


def unpatched(out: Tensor, shape: torch.Size) -> Tensor:
    """[tokens, 4 * channels] -> [channels, frames, rows, columns]; channels run fastest."""
    _, count, rows, columns = shape
    high, wide = (rows + 1) // 2, (columns + 1) // 2
    result = out.new_zeros(out.shape[1] // 4, count, 2 * high, 2 * wide)
    token = 0
    for f in range(count):
        for y in range(high):
            for x in range(wide):
                patch = out[token].reshape(2, 2, -1)
                result[:, f, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] = patch.permute(2, 0, 1)
                token += 1
    return result[:, :, :rows, :columns]
