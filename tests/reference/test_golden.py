"""The reference against numbers of the released model code: every case of a golden folder.

The folder is LUMOSX_GOLDEN_DIR, else tests/golden. Its `index.json` lists files with a `kind` and
gives the tolerances; a kind that is not known here fails.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.ops import (
    Attended,
    CrossAttention,
    Ops,
    SelfAttention,
    WordBias,
)
from lumosx_rt.reference.backbones.wan import LumosX, time_sinusoid
from lumosx_rt.reference.encoders.wan_vae import VideoAutoencoder
from lumosx_rt.reference.encoders.weights import t5_from_wan, vae_from_wan
from lumosx_rt.reference.mechanisms.lumosx.binding import word_template
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.mechanisms.lumosx.mechanism import guidance_branches
from lumosx_rt.reference.mechanisms.lumosx.structure import (
    Structure,
    rope_axes,
    rope_table,
    structure_of,
)
from lumosx_rt.reference.sampling import flow
from lumosx_rt.reference.sampling.branches import combined
from lumosx_rt.reference.sampling.schedules import Schedule
from lumosx_rt.reference.sampling.solvers import sample
from lumosx_rt.reference.scenes.images import fit_image, to_unit
from lumosx_rt.reference.scenes.scene import Scene
from lumosx_rt.reference.scenes.words import find_spans, word_mask

ROOT = Path(os.environ.get("LUMOSX_GOLDEN_DIR", Path(__file__).parents[1] / "golden"))
INDEX = json.loads((ROOT / "index.json").read_text())
TOLERANCE = INDEX["suggested_tolerance"]


class Golden(dict[str, np.ndarray]):
    """A golden .npz as arrays; `case("x")` is the array as a tensor."""

    def __init__(self, name: str) -> None:
        with np.load(ROOT / name, allow_pickle=False) as arrays:
            super().__init__(arrays)

    def __call__(self, key: str) -> Tensor:
        return torch.from_numpy(self[key])

    @property
    def state(self) -> dict[str, Tensor]:
        return {k[3:]: self(k) for k in self if k.startswith("sd/")}


class ModelCase:
    """A model with its inputs, rebuilt from a golden file of kind `model`."""

    def __init__(self, name: str) -> None:
        self.golden = g = Golden(name)
        raw = json.loads(str(g["config_json"]))
        assert raw["patch_size"] == [1, 2, 2] and raw["pooling_type"] == "mean"
        config = LumosXConfig.from_dict(raw | {"mcam_ratio": raw["ratio"] * raw["cross_mask_bool"]})
        frames, rows, columns = g["x"].shape[2:]
        self.layout = SceneLayout(
            video_frames=frames,
            height=-(-rows // 2),
            width=-(-columns // 2),
            lone=int(g["num_non_human"]),
            subjects=tuple(g["cond_group_sizes"].tolist()),
            relational_positions=raw["RoPE_shift"],
            relational_visibility=raw["self_mask_bool"],
        )
        self.ratio = raw["ratio"]
        self.model = LumosX(config)
        self.model.load_state_dict(g.state)
        template = word_template(g["cond_text_masks"], self.layout)
        self.template = torch.from_numpy(template)[None]
        self.references = g("cond_latents")[None, :, :, 0]
        self.text = self.padded(g["context"])

    def padded(self, context: np.ndarray) -> Tensor:
        config = self.model.config
        text = torch.zeros(1, config.text_len, config.text_dim)
        text[0, : len(context)] = torch.from_numpy(context)
        return text

    def structure(self, streams: int = 1) -> Structure:
        return structure_of([self.layout] * streams, self.model.config.head_dim, torch.float64)

    def velocity(self, x: Tensor, time: Tensor, *, keep_references: bool = False) -> Tensor:
        return self.model(
            x[:, None],
            time,
            self.text,
            self.references,
            self.template,
            self.structure(),
            keep_references=keep_references,
        )[:, 0]


def error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return (actual.double() - expected.double()).abs().max().item() if actual.numel() else 0.0


# -- one function per kind; each returns {quantity: (error, tolerance)} ------------------------


def model(name: str) -> dict[str, tuple[float, float]]:
    taps: dict[str, Tensor] = {}
    case = ModelCase(name)
    g = case.golden
    case.model.ops = recording_ops(taps, WordBias(case.template, case.ratio))
    hook_modules(case.model, taps)
    with torch.no_grad():
        full = case.velocity(g("x"), g("t"), keep_references=True)
        recorded = dict(taps)
        video = case.velocity(g("x"), g("t"))
    outputs = {"out_full": error(full, g("out_full")), "out_video": error(video, g("out_video"))}
    rows, bias_rows = g.get("tap_rows"), g.get("tap_bias_rows")
    for key in (k for k in g if k.startswith("tap_") and k not in ("tap_rows", "tap_bias_rows")):
        actual = recorded[key.removeprefix("tap_")]
        kept = bias_rows if key.endswith("mcam_bias") else rows
        per_token = key.startswith("tap_block") or key == "tap_head_out"
        if per_token and kept is not None:
            actual = actual[torch.from_numpy(kept)]
        outputs[key] = error(actual, g(key))
    if case.layout.relational_visibility:
        ranges = list(zip(g["q_ranges"].tolist(), g["k_ranges"].tolist(), strict=True))
        assert (
            sorted(ranges) == sorted([list(q), list(k)] for q, k in case.layout.attention_ranges)
            or [(list(q), list(k)) for q, k in case.layout.attention_ranges] == ranges
        )
    return {key: (value, TOLERANCE["model_max_abs"]) for key, value in outputs.items()}


def recording_ops(taps: dict[str, Tensor], word_bias: WordBias) -> Ops:
    def joined(video: Tensor, condition: Tensor | None) -> Tensor:
        parts = [video[0]] if condition is None else [video[0], condition[0]]
        return torch.cat(parts)

    def self_attention(call: SelfAttention) -> Attended:
        out, video, condition = ops.self_attention(call), call.video, call.condition
        if call.site == "blocks.0.self" and condition.q is not None:
            taps["block0_q_rope"] = joined(video.q, condition.q)
            taps["block0_k_rope"] = joined(video.k, condition.k)
            taps["block0_self_attn_heads"] = joined(*out)
        return out

    def cross_attention(call: CrossAttention) -> Attended:
        if call.site == "blocks.0.cross" and call.condition_q is not None:
            # the released code computes the bias also where it is switched off and not applied
            table = ops.bias_table(call.condition_q, call.k, word_bias, call.structure)[0]
            rows = table[:, :, call.structure.bias_tiles.flatten()].flatten(1, 2)
            taps["block0_mcam_bias"] = rows.transpose(0, 1)
        return ops.cross_attention(call)

    return Ops(self_attention=self_attention, cross_attention=cross_attention)


def hook_modules(net: LumosX, taps: dict[str, Tensor]) -> None:
    """Record what modules return; two calls in a row are the video's and the condition's tokens."""

    def keep(key: str, join: bool) -> Callable[..., None]:
        def hook(module, args, out):  # type: ignore[no-untyped-def]
            taps[key] = torch.cat([taps[key], out[0]]) if join and key in taps else out[0]

        return hook

    def block(key: str) -> Callable[..., None]:
        def hook(module, args, out):  # type: ignore[no-untyped-def]
            done = [
                x if delta is None else x + delta * gate for x, delta, gate in filter(None, out)
            ]
            taps[key] = torch.cat([x[0] for x in done])

        return hook

    net.time_embedding.register_forward_hook(keep("time_e", False))
    net.time_projection.register_forward_hook(keep("time_e0", False))
    net.text_embedding.register_forward_hook(keep("context_emb", False))
    net.blocks[0].self_attn.o.register_forward_hook(keep("block0_self_attn_out", True))
    net.blocks[0].cross_attn.o.register_forward_hook(keep("block0_cross_attn_out", True))
    net.head.register_forward_hook(keep("head_out", True))
    for i, module in enumerate(net.blocks):
        module.register_forward_hook(block(f"block{i}_out"))


def e2e(name: str) -> dict[str, tuple[float, float]]:
    g = Golden(name)
    case = ModelCase(str(g["base_model"]))
    text = torch.cat([case.text, case.padded(g["context_null"])])
    schedule = Schedule.released(int(g["steps"]), float(g["shift"]))
    branches = {
        "traj_default": case.references,
        "traj_cond_cfg": g("cond_null_latents")[None, :, :, 0],
    }
    result = {}
    for key in (k for k in g if k.startswith("traj_")):
        references = torch.cat([case.references, branches[key]])

        def velocity(latents: Tensor, time: int, references: Tensor = references) -> Tensor:
            times = torch.full((2,), time)
            both = latents[None].expand(2, -1, -1, -1, -1, -1)
            template = case.template.expand(2, -1, -1)
            out = case.model(both, times, text, references, template, case.structure(2))
            return combined(guidance_branches(float(g["cfg"])), out)

        with torch.no_grad():
            states = list(sample(velocity, g("z_init"), schedule))
        trajectory = torch.stack([state.latents[0] for state in states])
        result[key] = (error(trajectory, g(key)), TOLERANCE["e2e_max_abs"])
    return result


def rope(name: str) -> dict[str, tuple[float, float]]:
    g = Golden(name)
    blocks, head_dim = g["grid_blocks"], int(g["head_dim"])
    assert [2 * n for n in rope_axes(head_dim)] == g["axis_dims"].tolist()
    result = {}
    for key, relational in (("out_shift_T_multi", True), ("out_shift_T", False)):
        frames, height, width = blocks[0].tolist()
        layout = SceneLayout(
            video_frames=frames,
            height=height,
            width=width,
            lone=int(g["num_non_human"]),
            subjects=tuple(g["group_sizes"].tolist()),
            relational_positions=relational,
        )
        assert layout.references == int(g["cond_length"])
        table = rope_table(torch.from_numpy(layout.positions[g["rows"]]), head_dim)
        rotated = ops.rotate(g("x_rows")[None, :, None], table[:, None])
        result[key] = (error(rotated[0, :, 0], g(key)), TOLERANCE["rope_max_abs"])
    return result


def sched(name: str) -> dict[str, tuple[float, float]]:
    g = Golden(name)
    schedule = Schedule.released(int(g["num_steps"]), float(g["shift"]))
    assert schedule.times.tolist() == g["timesteps"].tolist()

    def branch(z: Tensor, time: int, which: str) -> Tensor:
        offset = g(f"b_{which}") * (time / 1000)
        return torch.einsum("oc,c...->o...", g(f"A_{which}"), z) + offset[:, None, None, None]

    def velocity(z: Tensor, time: int) -> Tensor:
        both = [branch(z, time, which) for which in ("cond", "uncond")]
        return combined(guidance_branches(float(g["cfg"])), both)

    states = list(sample(velocity, g("trajectory")[0], schedule))
    trajectory = torch.stack([state.latents for state in states])
    return {
        "sigmas": (error(torch.from_numpy(schedule.sigmas), g("sigmas")), 0.0),
        "trajectory": (error(trajectory, g("trajectory")), TOLERANCE["sched_max_abs"]),
    }


def train(name: str) -> dict[str, tuple[float, float]]:
    g = Golden(name)
    if "base_model" in g:
        return train_loss(g)
    if "x_t" in g:
        noised = flow.add_noise(g("x0"), g("noise"), g("t"))
        return {"x_t": (error(noised, g("x_t")), TOLERANCE["loss_rel"])}
    result = {}
    for key in (k for k in g if k.startswith(("dyn_", "fixed_"))):
        mode, scale = key.split("_")
        shifted = flow.shift_time(
            g("t"),
            height=int(g["height"]),
            width=int(g["width"]),
            num_frames=int(g["num_frames"]),
            scale=float(scale),
            mode="dynamic" if mode == "dyn" else "fixed",
        )
        result[key] = (error(shifted / 1000, g(key) / 1000), TOLERANCE["loss_rel"])
    assert result, f"{name}: no training quantity that is known here"
    return result


def train_loss(g: Golden) -> dict[str, tuple[float, float]]:
    case = ModelCase(str(g["base_model"]))
    x_t = flow.add_noise(g("x0"), g("noise"), g("t_float"))
    assert g("t_float").long().tolist() == g["t_model"].tolist()
    with torch.no_grad():
        out = case.velocity(x_t, g("t_model"), keep_references=True)
        clip = (g("x0"), g("noise"), g("t_float"))
        weighted = flow.training_loss(case.velocity, *clip, weights=g("weights"))
    loss = flow.training_loss(case.velocity, *clip)
    loss.sum().backward()
    parameters = dict(case.model.named_parameters())
    result = {
        "x_t": (error(x_t, g("x_t")), TOLERANCE["loss_rel"]),
        "model_out": (error(out, g("model_out")), TOLERANCE["model_max_abs"]),
        "loss": (error(loss.detach() / g("loss"), torch.ones(1)), TOLERANCE["loss_rel"]),
        "loss_weighted": (
            error(weighted / g("loss_weighted"), torch.ones(1)),
            TOLERANCE["loss_rel"],
        ),
    }
    names = json.loads(str(g["grad_names_json"]))
    scale = max(g["grad_norms"])
    for key, expected in zip(names, g["grad_norms"].tolist(), strict=True):
        gradient = parameters[key].grad
        norm = 0.0 if gradient is None else gradient.double().norm().item()
        # parameters without influence (key biases under a softmax) have rounding noise for gradient
        relative = abs(norm - expected) / max(expected, 1e-6 * scale)
        result[f"norm of grad {key}"] = (relative, TOLERANCE["grad_rel"])
    for key in (k for k in g if k.startswith("grad/")):
        gradient = parameters[key[5:]].grad
        assert gradient is not None
        relative = error(gradient, g(key)) / g(key).abs().max().item()
        result[key] = (relative, TOLERANCE["grad_rel"])
    return result


def t5(name: str) -> dict[str, tuple[float, float]]:
    g = Golden(name)
    encoder = t5_from_wan(g.state, heads=json.loads(str(g["config_json"]))["num_heads"])
    with torch.no_grad():
        out = encoder(input_ids=g("ids"), attention_mask=g("mask")).last_hidden_state
    result = {}
    for i, length in enumerate(g["mask"].sum(1).tolist()):
        result[f"out{i}"] = (error(out[i, :length], g(f"out{i}_valid")), TOLERANCE["t5_max_abs"])
    return result


def vae(name: str) -> dict[str, tuple[float, float]]:
    g = Golden(name)
    mean, std = g["latents_mean"].tolist(), g["latents_std"].tolist()
    coder = VideoAutoencoder(vae_from_wan(g.state, mean, std))
    with torch.no_grad():
        quantities = {
            "image_latent": coder.encode(g("image")),
            "video_latent": coder.encode(g("video")),
            "decoded": coder.decode(g("video_latent")),
        }
    return {k: (error(v, g(k)), TOLERANCE["vae_max_abs"]) for k, v in quantities.items()}


def image(name: str) -> dict[str, tuple[float, float]]:
    from PIL import Image

    g = Golden(name)
    height, width = g["image_size"].tolist()
    result = {}
    for i in range(sum(k.startswith("in_") for k in g)):
        fitted = fit_image(Image.fromarray(g[f"in_{i}"]), height, width, alpha="drop")
        actual = torch.from_numpy(fitted).permute(2, 0, 1)
        result[f"u8_{i}"] = (error(actual, g(f"out_u8_{i}")), TOLERANCE["image_u8"])
        if g[f"out_f32_{i}"].size:
            unit = torch.from_numpy(to_unit(fitted)).permute(2, 0, 1)
            limit = TOLERANCE["image_u8"] * 2 / 255 + 1e-6
            result[f"f32_{i}"] = (error(unit, g(f"out_f32_{i}")), limit)
    return result


def time(name: str) -> dict[str, tuple[float, float]]:
    g = Golden(name)
    table = time_sinusoid(int(g["freq_dim"]))[g("t")]
    return {"emb": (error(table, g("emb")), 1e-6)}


def inputs(name: str) -> dict[str, tuple[float, float]]:
    case = json.loads((ROOT / name).read_text())
    if "words" in case:
        return word_spans(case)
    if "trees" in case:
        return folder_reader(case)
    raise AssertionError(f"{name}: neither word spans nor a folder reader")


def word_spans(case: dict) -> dict[str, tuple[float, float]]:  # type: ignore[type-arg]
    prompt, end = np.array(case["prompt_ids"]), case["eos_id"]
    for word in case["words"]:
        mask = word_mask(prompt, np.array(word["ids"]), end)
        assert list(mask.shape) == word["shape"]
        assert np.flatnonzero(mask).tolist() == word["positions"], word["word"]
    for raw in case["raw_cases"]:
        mask = find_spans(np.array(raw["seq"]), np.array(raw["pattern"]))
        assert mask.tolist() == raw["mask"], raw
    return {"spans": (0.0, 0.0)}


def folder_reader(case: dict) -> dict[str, tuple[float, float]]:  # type: ignore[type-arg]
    import tempfile

    from PIL import Image

    orders = {"sorted": sorted, "reversed": lambda names: sorted(names, reverse=True)}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "caption.txt").write_text("clip;a caption")
        for file in case["files"]:
            path = Path(folder, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 7), "teal").save(path)
        for key, expected in case["trees"].items():
            script, order = key.split("_")
            scene = Scene.from_folder(folder, order=orders[order], script=script)
            lone = [scene.background] if scene.background else []
            humans = [
                [f"human_x_{i}", [r.word for r in subject.references]]
                for i, subject in enumerate(scene.subjects)
            ]
            tree = [*(r.word for r in lone), *humans, *(r.word for r in scene.objects)]
            wanted = [
                label if isinstance(value[0], int) else [label, [word for word, _ in value]]
                for label, value in expected
            ]
            assert tree == wanted, key
    return {"trees": (0.0, 0.0)}


KINDS = {f.__name__: f for f in (model, e2e, rope, sched, train, t5, vae, image, time, inputs)}


@pytest.mark.parametrize("name", sorted(INDEX["files"]) or [pytest.param("", id="empty index")])
def test_golden(name: str, record_property: Callable[[str, object], None]) -> None:
    kind = INDEX["files"][name]["kind"]
    assert kind in KINDS, f"{name}: kind '{kind}' is not one of {sorted(KINDS)}"
    errors = KINDS[kind](name)
    assert errors
    worst, (value, limit) = max(errors.items(), key=lambda item: item[1][0] - item[1][1])
    record_property("worst", f"{kind}: {worst} {value:.2e} (tolerance {limit:.0e})")
    print(f"{name}: worst {worst} {value:.2e} of {limit:.0e}")
    failed = {k: e for k, (e, limit) in errors.items() if not e <= limit}
    assert not failed, failed
