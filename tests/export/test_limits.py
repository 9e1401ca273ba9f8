"""What sizes a plan serves, and the shapes that follow for its inputs."""

from lumosx_rt.export.limits import Limits, Range
from lumosx_rt.reference.backbones.config import LumosXConfig
from lumosx_rt.reference.mechanisms.lumosx.layout import SceneLayout
from lumosx_rt.reference.sampling.inputs import AXES, INPUTS, LIMITS, check_shapes
from tests.helpers.inputs import feed_of, model_inputs

RELEASED = Limits.around((21, 30, 52), max_references=16, max_seeds=4)


def fixed_shape(name: str) -> tuple[int, ...]:
    """As TensorRT tells it: -1 where an axis is dynamic."""
    return tuple(
        -1 if str(axis).rpartition("*")[2] in LIMITS else 7 if isinstance(axis, str) else axis
        for axis in AXES[name]
    )


def test_a_size_is_served_upright_and_lying_and_whatever_is_smaller() -> None:
    assert RELEASED.frames == Range(1, 21, 21)
    assert RELEASED.height == Range(1, 30, 52) and RELEASED.width == Range(1, 52, 52)
    assert RELEASED.tiles == Range(1, 28, 49)
    assert RELEASED.streams == (1, 2, 2) and RELEASED.seeds == (1, 1, 4)
    assert RELEASED.references == (0, 8, 16)
    assert RELEASED.table()["members"] == [1, 16] and set(RELEASED.table()) == set(LIMITS)


def test_few_references_are_fewer_than_the_usual() -> None:
    assert Limits.around((3, 4, 4), max_references=2, max_seeds=1).references == (0, 2, 2)


def test_any_size_is_what_the_graph_allows() -> None:
    table = Limits.any_size(5).table()
    assert table["references"] == [0, 5] and table["groups"] == table["members"] == [1, 5]
    free = LIMITS.keys() - {"references", "groups", "members"}
    assert {axis: tuple(table[axis]) for axis in free} == {axis: LIMITS[axis] for axis in free}


def test_shapes_of_an_input() -> None:
    least, usual, most = RELEASED.shapes("latents", fixed_shape("latents"))
    assert least == (1, 1, 7, 1, 2, 2) and usual == (2, 1, 7, 21, 60, 104)
    assert most == (2, 4, 7, 21, 104, 104)
    assert RELEASED.shapes("group_inverse", (-1, -1)) == [(1, 0), (2, 8), (2, 16)]


def test_every_extreme_is_one_consistent_request() -> None:
    for extreme in range(3):
        shapes = {name: RELEASED.shapes(name, fixed_shape(name))[extreme] for name in INPUTS}
        check_shapes(shapes, RELEASED.table())


def test_scenes_of_the_size_fit() -> None:
    config = LumosXConfig(dim=48, num_heads=2, ffn_dim=64, num_layers=1, text_dim=7, text_len=7)
    for key in ("21x30x52+1+4.4", "21x52x30+0+-", "1x1x1+0+1"):
        feed = feed_of(model_inputs(config, [SceneLayout.from_key(key)] * 2, 1))
        check_shapes({name: x.shape for name, x in feed.items()}, RELEASED.table())
