"""Arguments against the signature that names their kinds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import pytest
import torch

from lumosx_rt.reference.errors import BadInput
from lumosx_rt.reference.kinds import check_fields, checked


class Options(TypedDict, total=False):
    depth: int | None


@checked
def called(
    path: str | Path,
    folder: Path,
    *,
    count: int | None = None,
    scale: float = 1.0,
    how: Literal["fast", "slow"] = "fast",
    seeds: Sequence[int] = (0,),
    report: Callable[[str], None] = print,
    table: Mapping[str, Any] | None = None,
    force: bool = False,
    **options: Unpack[Options],
) -> tuple[Any, ...]:
    return path, folder, count, scale, how, seeds, force, options


def test_what_is_given_is_made_plain():
    assert called("a", "b", count=np.int64(3), scale=torch.tensor(2.0), seeds=np.arange(2)) == (
        "a", Path("b"), 3, 2.0, "fast", (0, 1), False, {},
    )  # fmt: skip
    found = called(Path("a"), Path("b"), scale=1, seeds=iter([1]), depth=np.int8(4))
    assert found == (Path("a"), Path("b"), None, 1.0, "fast", (1,), False, {"depth": 4})
    assert type(called("a", "b", count=np.int64(3))[2]) is int
    assert called("a", "b", warp="x")[-1] == {"warp": "x"}  # the function's own to know


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"path": 3}, "called: path must be text or a path, got 3"),
        ({"path": "a\0b"}, "called: path must be"),
        ({"folder": "x" * 256}, "called: folder must be a path"),
        ({"folder": None}, "called: folder must be a path, got None"),
        ({"count": 1.5}, "called: count must be an integer or None, got 1.5"),
        ({"count": "3"}, "count must be"),
        ({"count": True}, "count must be"),
        ({"scale": "1"}, "scale must be a number"),
        ({"how": "soon"}, "how must be 'fast', 'slow', got 'soon'"),
        ({"how": ["fast"]}, "how must be"),
        ({"seeds": "12"}, "seeds must be a Sequence"),
        ({"seeds": [1.5]}, "seeds must be"),
        ({"seeds": np.array(3)}, "seeds must be"),
        ({"report": 3}, "report must be a Callable"),
        ({"table": [1]}, "table must be a Mapping or None"),
        ({"force": 1}, "force must be a bool"),
        ({"depth": "x"}, "called: depth must be an integer or None"),
    ],
)
def test_what_is_of_another_kind_is_refused(given, said):
    with pytest.raises(BadInput) as found:
        called(**{"path": "a", "folder": "b"} | given)
    assert said in str(found.value)


def test_what_is_missing_is_refused():
    with pytest.raises(BadInput, match="called: missing a required argument: 'folder'"):
        called("a")


def test_fields_of_a_dataclass():
    @dataclass(frozen=True)
    class Made:
        steps: int
        rate: float = 1.0

        def __post_init__(self) -> None:
            check_fields(self)

    assert type(Made(np.int32(3)).steps) is int
    with pytest.raises(BadInput, match="Made: rate must be a number, got 'x'"):
        Made(3, "x")
