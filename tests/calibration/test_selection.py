"""What stays in high precision for a budget, and the work that is counted."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from lumosx_rt.calibration.samples import moments_of, stratified, velocity_of
from lumosx_rt.calibration.selection import choose
from lumosx_rt.calibration.sensitivity import Effect, decibels, effects_of, energies_of
from lumosx_rt.calibration.sites import flops_of, is_attention, sites_of, why_not
from lumosx_rt.reference.backbones.config import PRESETS, LumosXConfig
from lumosx_rt.reference.errors import LumosXError
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from tests.calibration import toys

NOISE = {"a": 1e-2, "b": 1e-3, "c": 1e-4, "d": 1e-5}
FLOPS = {"a": 10, "b": 20, "c": 30, "d": 20, "unable": 20}


def measure(sites):
    """Errors that add, twice as large in the second bin."""
    return tuple(f * sum(NOISE[site] for site in sites) for f in (1, 2))


def chosen(budget):
    effects = {site: Effect((noise,), (noise, 2 * noise)) for site, noise in NOISE.items()}
    return choose(effects, FLOPS, {"unable": "odd sizes"}, budget, measure)


@pytest.mark.parametrize(
    ("budget", "kept", "share"),
    [(10, set(), 0.8), (20, {"a"}, 0.7), (30, {"a", "b"}, 0.5), (90, {"a", "b", "c", "d"}, 0)],
)
def test_as_little_is_kept_as_the_budget_asks(budget, kept, share):
    choice = chosen(budget)
    assert set(choice.kept) == kept | {"unable"}
    assert choice.kept["unable"] == "odd sizes"
    assert choice.chosen.share == pytest.approx(share) and choice.chosen.worst >= budget
    assert choice.chosen in choice.front
    shares = [point.share for point in choice.front]
    assert shares == sorted(shares) and {0.0, 0.8} <= set(shares)
    assert all(f"{budget:g} dB" in choice.kept[site] for site in kept)


def test_a_site_that_need_not_stay_goes_back():
    """The costliest for its work is not needed once a heavier one stays."""
    effects = {"small": Effect((1e-3,), (1e-3,)), "big": Effect((9e-3,), (9e-3,))}
    flops = {"small": 1, "big": 100}
    choice = choose(
        effects, flops, {}, 21, lambda sites: (sum(effects[s].velocity[0] for s in sites),)
    )
    assert set(choice.kept) == {"big"}


@pytest.mark.parametrize("budget", [0, -3, float("nan"), float("inf")])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(LumosXError, match="above 0 dB"):
        chosen(budget)


def test_effects_are_those_of_one_site_alone():
    document, examples = toys.calibration(), [toys.example(0), toys.example(2)]
    model = toys.model()
    simulation = document.simulation(model)
    sites = ["blocks.0.self_attn.v", "blocks.0.self", "blocks.1.ffn.2"]
    moments = [moments_of(model, example, toys.SAMPLING) for example in examples]
    parts = [
        energies_of(simulation, example, some, 1.0, sites)
        for example, some in zip(examples, moments, strict=True)
    ]
    effects = effects_of(parts)
    assert set(effects) == set(sites)
    for effect in effects.values():
        assert all(15 < decibels(ratio) < 40 for ratio in effect.site)
        assert all(25 < decibels(ratio) < 90 for ratio in effect.velocity)
    noise = signal = 0.0
    for example, some in zip(examples, moments, strict=True):
        velocity = velocity_of(model, example, 1.0)
        exact = velocity(some[1])
        with simulation.running(["blocks.0.self"]):
            noise += float((velocity(some[1]) - exact).double().square().sum())
        signal += float(exact.double().square().sum())
    assert effects["blocks.0.self"].velocity[1] == pytest.approx(noise / signal, rel=1e-5)


@pytest.mark.parametrize("key", toys.KEYS)
def test_the_work_of_linears_is_what_torch_counts(key):
    example = toys.example(toys.KEYS.index(key))
    moment = moments_of(toys.shared_model(), example, toys.SAMPLING)[0]
    counter = FlopCounterMode(display=False)
    with counter:
        velocity_of(toys.shared_model(), example, 1.0)(moment)
    counted = counter.get_flop_counts()
    for site, flops in flops_of(toys.CONFIG, [example.layout]).items():
        if not is_attention(site):
            assert flops == sum(counted[f"LumosX.{site}"].values()), site


def test_the_work_of_attention_is_that_of_its_pairs():
    layout = SceneLayout.from_key("2x2x3+1+2")  # 12 tokens of video, groups of 6 and 12
    flops = flops_of(toys.CONFIG, [layout, layout])
    assert flops["blocks.0.self"] == 2 * 4 * 32 * (12 * 30 + 6 * 6 + 12 * 12)
    assert flops["blocks.1.self"] == 2 * 4 * 32 * (12 * 30)
    assert flops["blocks.0.cross"] == 2 * 4 * 32 * 30 * 12
    assert flops["blocks.1.cross"] == 2 * 4 * 32 * 12 * 12


def test_self_attention_is_70_percent_of_full_size_work():
    layout = SceneLayout.from_key("21x30x52+0+-")
    flops = flops_of(PRESETS["1.3b"], [layout])
    own = sum(value for site, value in flops.items() if site.endswith(".self"))
    assert own / sum(flops.values()) == pytest.approx(0.70, abs=0.005)


def test_odd_sizes_cannot():
    odd = LumosXConfig(dim=48, ffn_dim=100, num_heads=2, num_layers=1, text_dim=16, text_len=8)
    said = {site: why_not(site, odd) for site in sites_of(odd)}
    unable = {site for site, why in said.items() if why}
    assert unable == {"blocks.0.ffn.0", "blocks.0.ffn.2", "blocks.0.self", "blocks.0.cross"}
    assert "48 -> 100" in said["blocks.0.ffn.0"]
    assert not any(why_not(site, PRESETS["14b"]) for site in sites_of(PRESETS["14b"]))


def test_few_scenes_show_every_number_of_subjects():
    from lumosx_rt.calibration.samples import find_scenes

    scenes = find_scenes("world-v1").scenes
    assert len(scenes) == 64
    found = stratified(scenes, 6)
    assert sorted(len(scenes[i].subjects) for i in found) == [1, 1, 2, 2, 3, 3]
    assert stratified(scenes[:2], 6) == [0, 1]
