"""What is observed: the right operand under the right name, in the right timestep bin."""

from dataclasses import replace

import pytest
import torch

from lumosx_rt.calibration.observe import Observer, merged, observe, weight_amax
from lumosx_rt.calibration.samples import moments_of, velocity_of, walk
from lumosx_rt.calibration.scheme import centred
from lumosx_rt.calibration.sites import is_attention, operands_of, sites_of
from lumosx_rt.reference.backbones import ops
from lumosx_rt.reference.backbones.precision import recast
from lumosx_rt.reference.errors import LumosXError
from tests.calibration import toys

FRAME = 2 * 3  # tokens


class Shapes(Observer):
    """Notes shapes instead of magnitudes."""

    def _note(self, site, operand, x):
        if x is not None:
            self.seen.setdefault((site, operand), set()).add(tuple(x.shape[:2]))


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_video_condition_and_text_are_told_apart(guidance):
    observer = Shapes(toys.shared_model(), 2)
    observer.seen = {}
    example = toys.example(0)  # two frames of video, four references
    moment = moments_of(toys.shared_model(), example, toys.SAMPLING)[0]
    with observer.watching():
        for _ in range(2):
            velocity_of(toys.shared_model(), example, guidance)(moment)
    streams = 1 if guidance == 1.0 else 2
    tokens = {"video": 2 * FRAME, "condition": 4 * FRAME, "text": toys.CONFIG.text_len}
    for (_, operand), shapes in observer.seen.items():
        assert shapes == {(streams, tokens[operand.split(".")[0]])}
    wanted = {(s, o) for s in sites_of(toys.CONFIG) for o in operands_of(s)}
    unseen = wanted - observer.seen.keys()
    last = ("self_attn.q", "self_attn.o", "cross_attn.q", "cross_attn.o", "ffn.0", "ffn.2")
    assert unseen == {(f"blocks.1.{part}", "condition") for part in last} | {
        ("blocks.1.self", "condition.q"),
        ("blocks.1.cross", "condition.q"),
    }


def test_maxima_are_those_of_all_steps_of_a_bin():
    model, example = toys.model(), toys.example(0)
    ranges = observe(model, example, toys.SAMPLING)
    calls = list(walk(model, example))
    assert toys.SAMPLING.binned_steps == [[0, 1], [2, 3]]
    inputs, keys = [], []
    handle = model.blocks[0].ffn[2].register_forward_pre_hook(lambda _, x: inputs.append(x[0]))

    def attention(call):
        if call.site == "blocks.1.self":
            keys.append((call.video.k, call.condition.k))
        return ops.self_attention(call)

    model.ops = replace(model.ops, self_attention=attention)
    for moment in calls[2:]:
        velocity_of(model, example, 1.0)(moment)
    handle.remove()
    found = ranges["blocks.0.ffn.2"]
    assert found["video"][1] == max(float(x.abs().max()) for x in inputs[::2])
    assert found["condition"][1] == max(float(x.abs().max()) for x in inputs[1::2])
    plain, smooth = (
        max(float(k[1].abs().max()) for k in some) for some in (keys, [centred(*k) for k in keys])
    )
    found = ranges["blocks.1.self"]
    assert found["condition.k"][1] == plain and found["condition.k_centred"][1] == smooth
    assert smooth != plain and found["condition.q"] == [None, None]


def test_scenes_are_merged_in_any_order_and_no_references_leave_gaps():
    parts = [observe(toys.shared_model(), toys.example(i), toys.SAMPLING) for i in range(3)]
    assert merged(parts) == merged(parts[::-1])
    assert parts[2]["blocks.0.ffn.0"]["condition"] == [None, None]
    video = merged(parts)["blocks.0.ffn.0"]["video"]
    assert video[0] == max(part["blocks.0.ffn.0"]["video"][0] for part in parts)


def test_bf16_is_observed_too_and_nothing_stays_behind():
    model = recast(toys.model(), torch.bfloat16)
    before = model.ops
    ranges = observe(model, toys.example(0), toys.SAMPLING)
    exact = observe(toys.shared_model(), toys.example(0), toys.SAMPLING)
    for site, operands in ranges.items():
        for operand, values in operands.items():
            for a, b in zip(values, exact[site][operand], strict=True):
                assert a == b or abs(a - b) < 0.15 * b
    assert model.ops is before
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("weight", "site"),
    [
        ("blocks.1.self_attn.v.weight", r"blocks\.1\.self: its operand `video\.v`"),
        ("blocks.0.ffn.0.bias", r"blocks\.0\.ffn\.2: its operand `video`"),
    ],
)
def test_what_is_not_finite_is_refused_with_its_site(weight, site):
    model = toys.model()
    model.get_parameter(weight).view(-1)[3] = float("nan")
    with pytest.raises(LumosXError, match=site):
        observe(model, toys.example(0), toys.SAMPLING)


def test_weights_are_observed_a_channel():
    model = toys.model()
    for site, (least, most) in weight_amax(model).items():
        channels = model.get_submodule(site).weight.abs().amax(1)
        assert not is_attention(site)
        assert (least, most) == (float(channels.min()), float(channels.max()))
