"""The fast operations as a whole: what is supported, and the model that runs on them."""

import pytest
import torch

from lumosx_rt.kernels.fused import fused_ops, supports, why_unsupported
from lumosx_rt.kernels.linear_fp8 import LinearFp8, quantize_mlp
from lumosx_rt.kernels.tiles import ARCHITECTURES
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.backbones.ops import REFERENCE
from lumosx_rt.reference.backbones.wan import LumosX
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.mechanisms.lumosx.structure import structure_of
from tests.helpers.budget import relative
from tests.kernels.cases import random
from tests.reference.test_golden import TOLERANCE, ModelCase, error

E4M3, BF16 = torch.float8_e4m3fn, torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model_c01_bg_only.npz", "model_c03_face_2attr.npz"])
def test_the_fused_model_reproduces_the_released_one(name: str) -> None:
    case = ModelCase(name)
    case.model.ops = fused_ops((9, 0), head_dim=case.model.config.head_dim)
    with torch.no_grad():
        video = case.velocity(case.golden("x"), case.golden("t"))
    assert error(video, case.golden("out_video")) <= TOLERANCE["model_max_abs"]


CONFIG = LumosXConfig(
    dim=32, ffn_dim=48, num_heads=1, num_layers=2, freq_dim=16, text_dim=16, text_len=24
)


def velocities(model: LumosX, seeds: int = 1) -> torch.Tensor:
    layouts = [SceneLayout.from_key(key) for key in ("1x3x5+1+2", "1x3x5+3+-")]
    inputs = (
        random(2, seeds, 16, 1, 6, 10, seed=1),
        torch.tensor([900, 900]),
        random(2, 24, 16, seed=2),
        random(2, 3, 16, 6, 10, seed=3),
        random(2, 3, 24, seed=4),
    )
    with torch.no_grad():
        return model(*inputs, structure_of(layouts, model.config.head_dim))


def models(dtype: torch.dtype) -> tuple[LumosX, LumosX]:
    """The same weights in float64 and in `dtype`; the head's are not zero."""
    torch.manual_seed(0)
    model = LumosX(CONFIG, dtype)
    exact = LumosX(CONFIG, torch.float64).double()
    exact.load_state_dict(model.state_dict())
    return exact, model


@pytest.mark.slow
def test_the_fused_model_in_bfloat16_errs_at_most_twice_as_much_as_plain_torch() -> None:
    exact, model = models(BF16)
    wanted = velocities(exact)
    plain = relative(velocities(model), wanted)
    model.ops = fused_ops((9, 0), head_dim=32)
    fused = relative(velocities(model), wanted)
    print(f"plain {plain:.2e}, fused {fused:.2e}")
    assert 1e-4 < plain and fused <= 2 * plain


@pytest.mark.slow
def test_the_model_in_e4m3() -> None:
    """8-bit products in attention and in every linear of the blocks: near, but not as near."""
    exact, model = models(BF16)
    wanted = velocities(exact)
    model.ops = fused_ops((9, 0), head_dim=32, e4m3_attention=True, e4m3_rows=True)
    for block in model.blocks:
        block.ffn = quantize_mlp(block.ffn)
        for attention in (block.self_attn, block.cross_attn):
            for name in "qkvo":
                setattr(attention, name, LinearFp8(getattr(attention, name)))
    found = relative(velocities(model), wanted)
    print(f"e4m3: {found:.2e}")
    assert 1e-3 < found < 0.1


@pytest.mark.parametrize("sm", ARCHITECTURES)
def test_what_is_supported(sm: int) -> None:
    ops = ("relational_attention", "relational_cross_attention", "qk_norm_rope", "norm_modulate")
    assert all(supports(op, sm, dtype) for op in ops for dtype in (BF16, torch.float16))
    assert supports("relational_attention", sm, E4M3) == (sm >= 89)
    assert fused_ops(divmod(sm, 10)) != REFERENCE


def test_what_is_not_supported_is_said_with_the_reason() -> None:
    assert "needs sm_89 or later, this is sm_80" in str(
        why_unsupported("relational_attention", 80, E4M3)
    )
    assert "no kernels for sm_75" in str(why_unsupported("norm_modulate", 75, BF16))
    assert "float64" in str(why_unsupported("norm_modulate", 90, torch.float64))
    assert "up to 128 channels, not 256" in str(
        why_unsupported("relational_attention", 90, BF16, 256)
    )
    assert "there is no op 'conv'" in str(why_unsupported("conv", 90, BF16))
    with pytest.raises(ValueError, match="sm_80"):
        fused_ops((8, 0), e4m3_attention=True)
    with pytest.raises(ValueError, match="no kernels for sm_75"):
        fused_ops((7, 5))
    with pytest.raises(ValueError, match="triton kernel's, not flex's"):
        fused_ops((9, 0), self_attention="flex", e4m3_attention=True)
    with pytest.raises(ValueError, match="accepted are triton"):
        fused_ops((9, 0), self_attention="fastest")
