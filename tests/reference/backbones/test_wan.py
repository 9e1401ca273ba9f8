"""The transformer against tests/helpers/oracle.py, diffusers' Wan2.1, and itself run another way.

The oracle works in float64 on one sequence with dense masks; so does the model here unless a test
says otherwise, and the two agree to 1e-10. Anything that matters moves the output by far more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from lumosx_rt.reference.backbones.config import PRESETS, LumosXConfig
from lumosx_rt.reference.backbones.saving import save_bundle
from lumosx_rt.reference.backbones.wan import LumosX, time_sinusoid
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.mechanisms.lumosx.structure import structure_of
from tests.helpers import oracle
from tests.helpers.budget import assert_within_budget

MINI = LumosXConfig(
    dim=48,
    ffn_dim=64,
    num_heads=2,
    num_layers=2,
    freq_dim=16,
    text_dim=8,
    text_len=10,
    in_dim=4,
    out_dim=4,
)
PEOPLE = SceneLayout(video_frames=2, height=3, width=9, lone=1, subjects=(2, 1))
EXACT = 1e-10


def mini(config: LumosXConfig = MINI, dtype: torch.dtype = torch.float64, seed: int = 0) -> LumosX:
    """A model whose every parameter matters: norms, biases and gates are random too."""
    model = LumosX(config, dtype)
    model = model.double() if dtype == torch.float64 else model
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if "norm" in name and name.endswith("weight"):
            noise = 1.5 + 0.5 * noise
        elif parameter.dim() > 1 and "modulation" not in name:
            noise *= 1.4 / parameter[0].numel() ** 0.5
        else:
            noise *= 0.4
        parameter.data.copy_(noise)
    return model.eval()


class Inputs:
    """Random inputs of one call; `layouts` are its streams."""

    def __init__(
        self,
        layouts: Sequence[SceneLayout],
        config: LumosXConfig = MINI,
        seeds: int = 1,
        odd: tuple[int, int] = (0, 0),
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.layouts, self.config = list(layouts), config
        first, streams = layouts[0], len(layouts)
        generator = torch.Generator().manual_seed(1)
        channels, count = config.in_dim, first.references
        size = (2 * first.height - odd[0], 2 * first.width - odd[1])

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.latents = random(streams, seeds, channels, first.video_frames, *size)
        self.references = random(streams, count, channels, *size)
        self.text = random(streams, config.text_len, config.text_dim)
        self.text[:, -3:] = 0  # padding, which is attended
        self.time = torch.tensor([(999, 1, 437, 1000)[s % 4] for s in range(streams)])
        masks = torch.rand(streams, count, config.text_len, generator=generator) < 0.3
        weights = zip(layouts, masks.tolist(), strict=True)
        omega = [
            oracle.word_weights(oracle.Facts(**asdict(layout)), mask) for layout, mask in weights
        ]
        shape = (streams, count, config.text_len)
        self.template = torch.tensor(omega, dtype=dtype).reshape(shape)

    def run(
        self,
        model: LumosX,
        keep_references: bool = False,
        streams: slice = slice(None),
        seeds: slice = slice(None),
    ) -> Tensor:
        """All streams and seeds, or those named, in one call."""
        rope = torch.float32 if model.dtype == torch.float32 else torch.float64
        out: Tensor = model(
            self.latents[streams, seeds],
            self.time[streams],
            self.text[streams],
            self.references[streams],
            self.template[streams],
            structure_of(self.layouts[streams], self.config.head_dim, rope),
            keep_references=keep_references,
        )
        return out

    def oracle(
        self,
        model: LumosX,
        stream: int = 0,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        **changed: Any,
    ) -> Tensor:
        """The slow answer for one stream and seed, the references' frames at the end."""
        state = {name: p.to(dtype) for name, p in model.named_parameters()}
        return oracle.velocity(
            state,
            self.config.num_heads,
            oracle.Facts(**(asdict(self.layouts[stream]) | changed)),
            self.latents[stream, seed].to(dtype),
            int(self.time[stream]),
            self.text[stream].to(dtype),
            self.references[stream].to(dtype),
            self.template[stream].to(dtype),
            model.config.mcam_ratio,
        )


@pytest.fixture(autouse=True)
def no_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


def worst(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    return float((actual.double() - expected.double()).abs().max())


def relative(actual: Tensor, expected: Tensor) -> float:
    assert torch.isfinite(actual).all()
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


# -- against the oracle ----------------------------------------------------------------------------

LAYOUTS = [
    *("2x3x9+1+2.1", "1x2x3+0+1", "1x3x9+3+-", "2x3x9+0+3.1.1", "3x2x2+0+-", "2x9x2+1+2"),
    *("2x3x9+1+2.1+nopos", "2x3x9+1+2.1+novis", "2x3x9+1+2.1+notiling", "1x2x9+0+1.2+nopos+novis"),
]


@pytest.mark.parametrize("key", LAYOUTS)
def test_it_is_the_specification(key: str) -> None:
    model, inputs = mini(), Inputs([SceneLayout.from_key(key)])
    full = inputs.run(model, keep_references=True)[0, 0]
    assert worst(full, inputs.oracle(model)) < EXACT
    assert full.std() > 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {"mcam_ratio": 0.0},
        {"mcam_ratio": 1.7},
        {"qk_norm": False},
        {"cross_attn_norm": False},
        {"qk_norm": False, "cross_attn_norm": False, "num_layers": 1},
        {"num_heads": 1, "num_layers": 3},
    ],
    ids=str,
)
def test_switches_of_the_config(changes: dict[str, Any]) -> None:
    config = replace(MINI, **changes)
    model, inputs = mini(config), Inputs([PEOPLE], config)
    norms = {name.split(".")[-2] for name in model.state_dict() if "norm" in name}
    assert ("norm_q" in norms) == config.qk_norm and ("norm3" in norms) == config.cross_attn_norm
    full = inputs.run(model, keep_references=True)[0, 0]
    assert worst(full, inputs.oracle(model)) < EXACT


@pytest.mark.parametrize("odd", [(1, 0), (0, 1), (1, 1)], ids=str)
def test_odd_latent_sizes(odd: tuple[int, int]) -> None:
    model, inputs = mini(), Inputs([PEOPLE], odd=odd)
    full = inputs.run(model, keep_references=True)[0, 0]
    assert full.shape[-2:] == (6 - odd[0], 18 - odd[1])
    assert worst(full, inputs.oracle(model)) < EXACT


def test_float32_is_close() -> None:
    model, inputs = mini(dtype=torch.float32), Inputs([PEOPLE], dtype=torch.float32)
    full = inputs.run(model, keep_references=True)[0, 0]
    assert full.dtype == torch.float32
    exact = inputs.oracle(model)
    assert_within_budget("velocity", full, inputs.oracle(model, dtype=torch.float32), exact)
    assert relative(full, exact) < 1e-5  # the oracle in float32 is not far off itself


@pytest.mark.parametrize(
    "field", ["relational_positions", "relational_visibility", "raster_tiling"]
)
def test_every_switch_of_the_layout_moves_the_video(field: str) -> None:
    """Control: the comparisons above would notice each of the released behaviours missing."""
    model, inputs = mini(), Inputs([PEOPLE])
    released = inputs.run(model)[0, 0]
    changes: dict[str, Any] = {field: False}
    inputs.layouts = [replace(PEOPLE, **changes)]
    switched = inputs.run(model)[0, 0]
    assert worst(switched, released) > 1e-3
    expected = inputs.oracle(model, **{field: True})[:, : PEOPLE.video_frames]
    assert worst(released, expected) < EXACT < 1e-3 < worst(switched, expected)


def test_the_strength_of_the_bias_moves_the_video() -> None:
    model, inputs = mini(), Inputs([PEOPLE])
    released = inputs.run(model)
    for ratio in (0.0, 0.1):
        model.config = replace(MINI, mcam_ratio=ratio)
        assert worst(inputs.run(model), released) > 1e-3


@pytest.mark.parametrize("time", [0, 1, 500, 999, 1000])
def test_time_table(time: int) -> None:
    expected = oracle.sinusoid(time, 16)
    assert worst(time_sinusoid(16)[time], expected) < 1e-7
    assert time_sinusoid(16).shape == (1001, 16) and time_sinusoid(16).dtype == torch.float32


# -- no references: plain Wan2.1 -------------------------------------------------------------------


class Constant(torch.nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, _: Tensor) -> Tensor:
        return self.value


@pytest.mark.parametrize("switches", [{}, {"cross_attn_norm": False}], ids=str)
def test_without_references_it_is_diffusers_wan(switches: dict[str, Any], tmp_path: Path) -> None:
    config = replace(MINI, freq_dim=256, num_layers=3, **switches)
    model = mini(config, torch.float32)
    save_bundle(tmp_path / "bundle", transformer=model)
    build: Any = diffusers.WanTransformer3DModel
    wan = build.from_pretrained(tmp_path / "bundle" / "transformer").eval()
    layout = SceneLayout(video_frames=3, height=4, width=5)
    inputs = Inputs([layout, layout], config, dtype=torch.float32)
    for times in ([3, 0], [999, 437]):
        inputs.time = torch.tensor(times)
        if max(times) > 10:  # diffusers forms the angles in float32, which is rough at late times
            table = torch.stack([oracle.sinusoid(time, 256) for time in times]).float()
            wan.condition_embedder.timesteps_proj = Constant(table)
        plain = wan(inputs.latents[:, 0], inputs.time, inputs.text, return_dict=False)[0]
        exact = torch.stack([inputs.oracle(model, stream) for stream in range(2)])
        assert_within_budget("velocity", inputs.run(model)[:, 0], plain, exact)
        assert plain.std() > 0.1 and relative(plain, exact) < 1e-5


# -- streams, seeds and the pruned last block ------------------------------------------------------

GROUPINGS = ["2x2x9+1+3", "2x2x9+0+2.2", "2x2x9+4+-", "2x2x9+1+1.2+nopos", "2x2x9+1+1.2+novis"]


@pytest.mark.parametrize("keep", [True, False], ids=["all frames", "video"])
def test_streams_do_not_know_of_each_other(keep: bool) -> None:
    model, inputs = mini(), Inputs([SceneLayout.from_key(key) for key in GROUPINGS])
    together = inputs.run(model, keep)
    for s in range(len(GROUPINGS)):
        alone = inputs.run(model, keep, streams=slice(s, s + 1))
        assert worst(together[s], alone[0]) < EXACT
        expected = inputs.oracle(model, stream=s)[:, : together.shape[3]]
        assert worst(together[s, 0], expected) < EXACT
    inputs.layouts[0], inputs.layouts[1] = inputs.layouts[1], inputs.layouts[0]
    assert worst(inputs.run(model, keep)[0], together[0]) > 1e-3


@pytest.mark.parametrize("keep", [True, False], ids=["all frames", "video"])
def test_seeds_share_their_streams_references(keep: bool) -> None:
    layouts = [SceneLayout.from_key(key) for key in GROUPINGS[:3]]
    model, inputs = mini(), Inputs(layouts, seeds=3)
    together = inputs.run(model, keep)
    for seed in range(3):
        alone = inputs.run(model, keep, seeds=slice(seed, seed + 1))
        assert worst(together[:, seed], alone[:, 0]) < EXACT
    assert worst(together[:, 0, :, :2], together[:, 1, :, :2]) > 1e-3
    assert worst(together[2, 1], inputs.oracle(model, 2, 1)[:, : together.shape[3]]) < EXACT


@pytest.mark.parametrize("key", ["2x3x9+1+2.1", "2x3x9+1+2.1+novis", "2x3x9+0+-"])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_last_block_needs_only_keys_and_values_of_references(key: str, layers: int) -> None:
    config = replace(MINI, num_layers=layers)
    model, inputs = mini(config), Inputs([SceneLayout.from_key(key)], config)
    full = inputs.run(model, keep_references=True)
    assert worst(inputs.run(model), full[:, :, :, :2]) < EXACT
    assert full.shape[3] == 2 + inputs.layouts[0].references


def test_pruning_saves_the_work_of_the_last_block() -> None:
    model, inputs = mini(), Inputs([PEOPLE])
    calls: dict[str, int] = {}
    for name, module in model.named_modules():
        if name.endswith(("ffn", "attn.q", "attn.k", "attn.o")):

            def count(_module: Any, _args: Any, _out: Any, name: str = name) -> None:
                calls[name] = calls.get(name, 0) + 1

            module.register_forward_hook(count)
    inputs.run(model)
    both = ("self_attn.q", "self_attn.k", "self_attn.o", "cross_attn.q", "cross_attn.o", "ffn")
    assert {name: calls[f"blocks.0.{name}"] for name in both} == dict.fromkeys(both, 2)
    last = {name: calls[f"blocks.1.{name}"] for name in both}
    assert last == dict.fromkeys(both, 1) | {"self_attn.k": 2}


# -- gradients -------------------------------------------------------------------------------------


def test_gradients_are_the_oracles() -> None:
    """Every parameter's, and so also those that flow through the bias."""
    model, inputs = mini(), Inputs([PEOPLE])
    names, parameters = zip(*model.named_parameters(), strict=True)
    target = torch.randn(4, 2, 6, 18, generator=torch.Generator().manual_seed(2)).double()

    def gradients(video: Tensor) -> dict[str, Tensor]:
        found = torch.autograd.grad((video * target).sum(), parameters)
        return dict(zip(names, found, strict=True))

    actual = gradients(inputs.run(model)[0, 0])
    for name, expected in gradients(inputs.oracle(model)[:, :2]).items():
        assert worst(actual[name], expected) < 1e-8 * max(1.0, float(expected.abs().max())), name
    model.config = replace(MINI, mcam_ratio=0.0)
    name = "blocks.0.cross_attn.norm_k.weight"
    assert relative(gradients(inputs.run(model)[0, 0])[name], actual[name]) > 1e-2


def test_gradient_through_the_bias_is_its_slope() -> None:
    model, inputs = mini(), Inputs([PEOPLE])
    weight = model.get_parameter("blocks.0.cross_attn.norm_q.weight")
    inputs.run(model)[0, 0].square().sum().backward()
    assert weight.grad is not None
    place = int(weight.grad.abs().argmax())
    losses = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            weight[place] += step
            losses.append(float(inputs.run(model)[0, 0].square().sum()))
    slope = (losses[0] - losses[1]) / 2e-5
    assert abs(slope - float(weight.grad[place])) < 1e-6 * abs(slope)


# -- released precision (docs/spec.md#precision) ---------------------------------------------------


def test_dtypes_of_the_released_precision() -> None:
    model = mini(dtype=torch.bfloat16)
    wide = ("time_embedding.", "time_projection.", "head.")
    for name, parameter in model.named_parameters():
        if name.startswith(wide) or name.endswith("modulation"):
            assert parameter.dtype == torch.float32, name
        elif "norm" not in name:
            assert parameter.dtype == torch.bfloat16, name
    seen = []
    model.blocks[0].register_forward_hook(lambda m, a, out: seen.extend([out[0][0], out[1][0]]))
    inputs = Inputs([PEOPLE], dtype=torch.float32)
    out = inputs.run(model)
    seen.append(model.patchify(inputs.references))
    assert [x.dtype for x in seen] == [torch.float32] * 3, "the residual stream stays wide"
    assert out.dtype == torch.float32


def test_bfloat16_errs_at_most_twice_as_much_as_autocast() -> None:
    config = replace(PRESETS["tiny"], num_layers=3, text_len=32, ffn_dim=384)
    layout = SceneLayout(video_frames=2, height=4, width=6, lone=1, subjects=(2, 1))
    inputs = Inputs([layout], config, dtype=torch.float32)
    exact = mini(config)
    expected = exact(
        inputs.latents.double(),
        inputs.time,
        inputs.text.double(),
        inputs.references.double(),
        inputs.template.double(),
        structure_of([layout], config.head_dim, torch.float64),
    )
    plain = mini(config, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = inputs.run(plain)
    released = inputs.run(mini(config, torch.bfloat16))
    assert 1e-3 < relative(released, expected) <= 2 * relative(autocast, expected)
