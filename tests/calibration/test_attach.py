"""What is attached to a model is there while the block runs, and nothing of it afterwards."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from lumosx_rt.calibration.attach import attached, linear_at, wrapped
from lumosx_rt.calibration.samples import moments_of, velocity_of
from lumosx_rt.calibration.sites import is_attention, sites_of
from lumosx_rt.reference.backbones.ops import REFERENCE, Ops, self_attention
from tests.calibration import toys

LINEAR, ACTIVATION, ATTENTION = "blocks.1.self_attn.o", "blocks.0.ffn.1", "blocks.0.cross"


def state(model):
    """All that can be attached to: modules and their order, parameters, operations, hooks."""
    named = [(name, id(module)) for name, module in model.named_modules()]
    hooks = [list(m._forward_pre_hooks) + list(m._forward_hooks) for m in model.modules()]
    return named, list(model.state_dict()), id(model.ops), hooks


def changes():
    """One of each: a linear and an activation replaced, an attention's module added."""
    return {LINEAR: nn.Linear(32, 32), ACTIVATION: nn.Identity(), ATTENTION: nn.Linear(1, 1)}


def assert_restored(context):
    """Whatever a block of this context ends with, the model is as it was."""
    for error in (None, ValueError, KeyboardInterrupt):
        model = toys.model()
        before = state(model)
        try:
            with context(model):
                assert state(model) != before
                if error:
                    raise error
        except (ValueError, KeyboardInterrupt) as raised:
            assert type(raised) is error
        assert state(model) == before, error


def test_the_model_is_restored_also_after_an_exception():
    assert_restored(lambda model: attached(model, changes()))
    assert_restored(lambda model: attached(model, {}, Ops()))
    assert_restored(lambda model: attached(model, {}, before=lambda: None))
    assert_restored(lambda model: attached(model, changes(), Ops(), lambda: None))


@pytest.mark.parametrize("left", ["module", "added module", "operations", "hook"])
def test_what_is_left_behind_after_an_exception_would_be_seen(left):
    """Control: a way to attach that restores the model only where nothing was raised."""

    @contextmanager
    def careless(model):
        own = model.ops, model.get_submodule(LINEAR)
        if left == "module":
            model.set_submodule(LINEAR, nn.Linear(32, 32))
        elif left == "added module":
            model.get_submodule("blocks.0").cross = nn.Linear(1, 1)
        elif left == "operations":
            model.ops = Ops()
        else:
            handle = model.register_forward_pre_hook(lambda *_: None)
        yield
        model.ops = own[0]
        model.set_submodule(LINEAR, own[1])
        if left == "added module":
            del model.get_submodule("blocks.0").cross
        elif left == "hook":
            handle.remove()

    with pytest.raises(AssertionError, match="ValueError"):
        assert_restored(careless)


def test_it_is_restored_where_attaching_fails_half_way():
    model = toys.model()
    before = state(model)
    for wrong in ("blocks.0.ffn.7", "blocks.7.ffn.0", "blocks.7.self"):
        with pytest.raises(ValueError, match=r"the model has no `blocks\.[07]"):
            with attached(model, {**changes(), wrong: nn.Identity()}, Ops(), lambda: None):
                raise AssertionError
        assert state(model) == before


def test_blocks_within_blocks_are_undone_one_by_one():
    model = toys.model()
    before = state(model)
    inner, outer = nn.Linear(32, 32), nn.Linear(32, 32)
    with attached(model, {LINEAR: outer, ATTENTION: outer}):
        between = state(model)
        with attached(model, {LINEAR: inner, ATTENTION: inner}):
            assert model.get_submodule(LINEAR) is model.get_submodule(ATTENTION) is inner
        assert state(model) == between
        assert model.get_submodule(LINEAR) is model.get_submodule(ATTENTION) is outer
    assert state(model) == before


def test_functions_stand_around_attentions_and_see_every_call():
    model, seen, passes = toys.model(), [], []
    given = toys.example(0)
    moment = moments_of(model, given, toys.SAMPLING)[0]
    velocity = velocity_of(model, given, 1.0)
    exact = velocity(moment)

    def around(run, call):
        seen.append(call.site)
        return run(call)

    def lone(run, call):
        """References that see themselves alone: another answer."""
        mask = call.structure.group_mask
        alone = torch.zeros_like(mask).scatter(2, torch.zeros_like(mask[..., :1]).long(), True)
        return run(call._replace(structure=call.structure._replace(group_mask=alone)))

    ops = wrapped(model.ops, around, around)
    with attached(model, {}, ops, lambda: passes.append(len(seen))):
        assert torch.equal(velocity(moment), exact)
        velocity(moment)
    sites = [site for site in sites_of(toys.CONFIG) if is_attention(site)]
    assert seen == sites * 2 and passes == [0, len(sites)]
    with attached(model, {}, wrapped(model.ops, lone)):
        assert not torch.equal(velocity(moment), exact)  # control: what stands around counts
    assert torch.equal(velocity(moment), exact)


def test_operations_that_nothing_stands_around_are_the_same_functions():
    assert wrapped(REFERENCE) is REFERENCE
    ops = wrapped(REFERENCE, cross_attention=lambda run, call: run(call))
    assert ops.self_attention is self_attention and ops.norm_modulate is REFERENCE.norm_modulate
    assert ops.cross_attention is not REFERENCE.cross_attention


def test_a_site_that_is_no_linear_is_refused():
    model = toys.model()
    assert linear_at(model, LINEAR) is model.blocks[1].self_attn.o
    with pytest.raises(AssertionError, match=r"blocks\.0\.ffn\.1 is a GELU"):
        linear_at(model, ACTIVATION)
