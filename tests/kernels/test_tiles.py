"""The table of tile sizes: complete, and read as written."""

import json

import pytest
import torch

from lumosx_rt.kernels import tiles
from lumosx_rt.kernels.plugins import launches
from lumosx_rt.kernels.quantize_kv import KEY_BLOCK
from lumosx_rt.kernels.self_attention import NAMES
from lumosx_rt.kernels.tiles import (
    ARCHITECTURES,
    FILE,
    RowTiles,
    architecture,
    attention_settings,
    chosen_self_attention,
    settings,
)


@pytest.mark.parametrize("sm", ARCHITECTURES)
def test_every_architecture_has_every_entry(sm: int) -> None:
    for op in ("norm_modulate", "qk_norm_rope", "gelu_quantize"):
        assert RowTiles(**settings(sm, op)).rows > 0
    for op in ("relational_attention", "relational_cross_attention"):
        for head_dim in (10, 32, 64, 128):
            assert attention_settings(sm, op, "bfloat16", head_dim) == attention_settings(
                sm, op, "float16", head_dim
            )
            assert attention_settings(sm, op, "float32", head_dim).block_m >= 16
    if sm >= 89:
        assert KEY_BLOCK % attention_settings(sm, "relational_attention", "e4m3", 128).block_n == 0
    name, source = chosen_self_attention(sm)
    assert name in NAMES and source


def test_plugins_find_plain_tiles_beside_those_that_a_sweep_chose(monkeypatch) -> None:
    key, op = "relational_attention/half/128", "relational_attention"
    table = json.loads(FILE.read_text())
    own = table["sm_90"][key]
    assert attention_settings(90, op, "bfloat16", 128, plain=True).plain
    table["sm_90"][key] = own | {"block_m": 64, "descriptors": True, "programs_per_sm": 1}
    table["sm_90"][f"{key}/plain"] = own
    monkeypatch.setattr(tiles, "_table", lambda: table)
    chosen = attention_settings(90, op, "bfloat16", 128)
    assert chosen.block_m == 64 and not chosen.plain
    for dtype in (torch.bfloat16, torch.float16):  # the compiler of plugins
        found = launches._attention_tiles(op, dtype, 128, 90)
        assert found.plain and found.block_m == own["block_m"]
    del table["sm_90"][f"{key}/plain"]
    with pytest.raises(KeyError):  # a sweep writes both or neither
        attention_settings(90, op, "bfloat16", 128, plain=True)


def test_every_entry_says_where_it_comes_from() -> None:
    for entries in json.loads(FILE.read_text()).values():
        assert all(entry["source"] for entry in entries.values())


@pytest.mark.parametrize(
    "capability, sm",
    [((8, 0), 80), ((8, 6), 89), ((8, 9), 89), ((9, 0), 90), ((10, 3), 100), ((12, 1), 120)],
)
def test_gpus_take_the_code_of_their_family(capability: tuple[int, int], sm: int) -> None:
    assert architecture(capability) == sm


@pytest.mark.parametrize("capability", [(7, 5), (6, 0), (11, 0), (13, 0)])
def test_other_gpus_are_refused(capability: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="they exist for sm_80, sm_89, sm_90, sm_100, sm_120"):
        architecture(capability)
