"""Tables of the documentation about quality, memory, robustness and builds, from their records.

Every function gets the records that `benchmarks/tables.py` names for it, and the repository's root.
"""

from pathlib import Path
from typing import Any

Record = dict[str, Any]

_METRICS = {
    "identity": "identity",
    "binding": "binding",
    "swapped": "swapped",
    "missing": "missing",
    "unknown": "another look",
    "motion": "motion",
    "object": "object",
    "backdrop": "backdrop",
    "psnr": "PSNR to the target, dB",
    "ssim": "SSIM",
}
_VARIANTS = {
    "full": "full",
    "no relational positions": "no relational positions (R2PE)",
    "no relational visibility": "no relational visibility (CSAM)",
    "no words": "no words (MCAM)",
    "none": "none of the three",
    "none, interleaved": "none, references interleaved",
    "ratio 0.1": "MCAM strength 0.1 (released 0.5)",
    "ratio 1.0": "MCAM strength 1.0",
}
_ABLATED = {
    "identity": "identity",
    "binding": "own attribute (binding)",
    "swapped": "the other's (swapped)",
    "missing": "missing",
    "unknown": "another look (distractor)",
    "placement": "faces swapped (placement)",
}
_KERNELS = (
    ("self-attention", "relational_attention", "bfloat16, heads of 128"),
    ("self-attention in e4m3", "relational_attention", "e4m3 from bfloat16, heads of 128"),
    (
        "cross-attention, references",
        "relational_cross_attention",
        "bfloat16, heads of 128, references",
    ),
    ("QK norm and rotation", "qk_norm_rope", "bfloat16, heads of 128, norm and rotation"),
    ("norm and modulate, width 1536", "norm_modulate", "bfloat16, width 1536"),
)


def headline(binding: Record, ceiling: Record, full: Record, side: Record, root: Path) -> str:
    """The three numbers of the README."""
    rate, top = (run["groups"]["all"]["binding"] for run in (binding, ceiling))
    error = max(check["relative_error"] for check in full["parity"])
    gate = full["parity"][0]["gate"]
    baseline = "as released, eager"
    ratios = [
        row["times_as_fast_as"][baseline]["ratio"]
        for name in ("tiny", "tiny, 4 seeds")
        for row in side["sizes"][name]["rows"]
        if row["name"] == "torch package"
    ]
    return "\n".join(
        [
            f"- **{rate['value']:.3f}** of all attributes are on their owner in "
            f"{binding['scenes']} held-out scenes; the VAE alone allows {top['value']:.3f}.",
            f"- **{error:.1e}** is the error of one full-size forward pass against the reference "
            f"in float32 (gate {gate:.0e}).",
            f"- **{ratios[0]:.2f} and {ratios[1]:.2f} times** as fast as the released formulation "
            "on one CPU thread, with 1 and 4 seeds.",
        ]
    )


def binding(reference: Record, ceiling: Record, four: Record, root: Path) -> str:
    """Metrics down, people across."""
    columns = [(reference["groups"][n], f"{n} {_people(n)}") for n in ("1", "2", "3")]
    columns += [(four["groups"]["4"], "4 people, never trained")]
    columns += [(ceiling["groups"]["all"], "VAE alone, all")]
    head = ["", *(f"{title} ({found['scenes']})" for found, title in columns)]
    rows = [head, ["---"] * len(head)]
    for name, title in _METRICS.items():
        rows.append([title, *(_rate(found[name], name) for found, _ in columns)])
    return _markdown(rows)


def _people(count: str) -> str:
    return "person" if count == "1" else "people"


def ablation(record: Record, root: Path) -> str:
    """Variants down, metrics across."""
    head = ["", *_ABLATED.values(), "binding, less full's"]
    rows = [head, ["---"] * len(head)]
    for name, title in _VARIANTS.items():
        found = record["variants"][name]["groups"]["all"]
        less = record["full minus"].get(name)
        rows.append(
            [
                title,
                *(_rate(found[metric], metric) for metric in _ABLATED),
                "" if less is None else _negated(less["groups"]["all"]["binding"]),
            ]
        )
    return _markdown(rows)


def runtime(record: Record, root: Path) -> str:
    """What the runtime's measures gain or cost, as processor time."""
    frames, height, width = record["size"]
    about = (
        f"`checkpoints/tiny`, {frames}x{height}x{width}, {record['steps']} guided steps; "
        f"{record['environment']['processor']}, threads: {record['environment']['threads']}, "
        "processor time (range over rounds)"
    )
    rows = [["", "times as fast"], ["---"] * 2]
    for row in record["times"]:
        low, high = row["cpu_ratio_range"]
        rows.append([row["what"], f"{row['cpu_ratio']:.2f} ({low:.2f}-{high:.2f})"])
    return f"{about}\n\n{_markdown(rows)}"


def memory(record: Record, root: Path) -> str:
    """Planned and measured peaks, one process each."""
    head = ["engine", "video", "layout", "guidance", "shortcuts", "limit, MiB", "adapted"]
    head += ["planned, MiB", "measured, MiB", "measured / planned"]
    rows = [head, ["---"] * len(head)]
    for row in record["memory"]:
        if "refused" in row:
            cells = [row["engine"], row["size"], "", f"{row['guidance']:g}", "", "", "refused"]
            rows.append([*cells, "", "", ""])
            continue
        adapted = ["branches one by one"] if row["sequential"] else []
        adapted += ["tiles of {}x{}".format(*row["tile"])] if row["tile"] else []
        rows.append(
            [
                row["engine"],
                row["size"],
                f"`{row['layout']}`",
                f"{row['guidance']:g}",
                row["lossy"],
                "" if row["limit_mib"] is None else f"{row['limit_mib']:,}",
                ", ".join(adapted),
                f"{row['planned_mib']:,}",
                f"{row['measured_mib']:,}",
                f"{row['measured_over_planned']:.2f}",
            ]
        )
    return _markdown(rows)


def soak(record: Record, hoisting: Record, root: Path) -> str:
    """One long process; and what keeping constants between steps would save."""
    low, high = record["held_mib"][0], max(record["held_mib"])
    share = hoisting["share_of_step"]
    rows = [
        ["", "measured"],
        ["---"] * 2,
        ["requests in one process, of changing scenes, sizes and seeds", f"{record['requests']:,}"],
        ["of them refused on purpose", f"{record['health']['refused']:,}"],
        ["memory held, MiB", f"{low:.0f} to {high:.0f}"],
        [
            "growth over the second half, KiB a request",
            f"{record['growth_second_half_kib_per_request']:.1f}",
        ],
        [
            "share of a step: text keys and values (computed at every step)",
            f"{100 * share['text_keys_and_values']:.1f} %",
        ],
        [
            "share of a step: modulations (computed at every step)",
            f"{100 * share['modulations']:.3f} %",
        ],
    ]
    return _markdown(rows)


def kills(record: Record, root: Path) -> str:
    rows = [["command, in small", "kills", "finished before the kill", "wrong"], ["---"] * 4]
    for name, job in record["jobs"].items():
        wrong = str(len(job["wrong"]))
        rows.append([f"`{name}`", str(job["kills"]), str(job["finished"]), wrong])
    total = [str(record["kills"]), str(record["finished"]), str(record["wrong"])]
    return _markdown([*rows, ["all", *total]])


def command_lines(record: Record, root: Path) -> str:
    """How hostile command lines ended, by exit code."""
    means = {"0": "done", "1": "refused, or a failed check", "2": "wrong usage", "130": "stopped"}
    rows = [["exit code", "command lines"], ["---"] * 2]
    rows += [[f"{code}: {means[code]}", f"{n:,}"] for code, n in record["exit_codes"].items()]
    rows.append(["a traceback, a bug, over 20 s, another exit code", str(len(record["wrong"]))])
    rows.append(["all", f"{record['lines']:,}"])
    return _markdown(rows)


def public_api(record: Record, root: Path) -> str:
    """How calls with an argument of a wrong kind ended."""
    rows = [["call", "calls"], ["---"] * 2]
    ends = record["ends"]
    rows.append(["answered", f"{ends['answered']:,}"])
    rows += [[f"refused: `{end}`", f"{n:,}"] for end, n in ends.items() if end != "answered"]
    return _markdown([*rows, ["anything else", str(len(record["wrong"]))]])


def mutations(record: Record, root: Path) -> str:
    head = ["damaged", "cases", "refused", "harmless", "wrong", "peak memory, MiB"]
    rows = [head, ["---"] * len(head)]
    for name, kind in record["kinds"].items():
        counts = (kind["cases"], kind["refused"], kind["harmless"], len(kind["wrong"]))
        rows.append([name, *(f"{n:,}" for n in counts), str(kind["peak_mib"])])
    return _markdown([*rows, ["all", f"{record['cases']:,}", "", "", str(record["wrong"]), ""]])


def kernels(record: Record, root: Path) -> str:
    """Registers a thread / KiB of shared memory, by architecture."""
    found = {(row["kernel"], row["what"], row["sm"]): row for row in record["rows"]}
    architectures = sorted({row["sm"] for row in record["rows"]})
    head = ["bf16, heads of 128 (registers a thread / KiB of shared memory)"]
    head += [f"sm_{sm}" for sm in architectures]
    rows = [head, ["---"] * len(head)]
    for title, kernel, what in _KERNELS:
        cells = (found.get((kernel, what, sm)) for sm in architectures)
        rows.append([title, *map(_compiled, cells)])
    return _markdown(rows)


def _compiled(row: Record | None) -> str:
    if row is None:
        return "-"
    return f"{row['registers']} / {row['shared_bytes'] / 1024:.0f}"


def nullgpu(record: Record, root: Path) -> str:
    """What packages of full width took and reserved on a GPU that launches nothing, by torch."""
    head = ["torch", "package", "blocks", "seconds to build", "MB", "launches of a step"]
    head += [f"GiB reserved / planned, {what}" for what in _NULL_LAYOUTS.values()]
    rows = [head, ["---"] * len(head)]
    for torch, found in sorted(record["torch"].items()):
        served = {(f["precision"], f["blocks"]): f for f in found if f["stage"] == "serve"}
        for built in (f for f in found if f["stage"] == "package"):
            layouts = served[built["precision"], built["blocks"]]["layouts"]
            by_key = {(row["layout"], row["seeds"]): row for row in layouts}
            most = [by_key[key] for key in _NULL_LAYOUTS]
            rows.append(
                [
                    torch,
                    f"{built['precision']} ({built['self_attention']})",
                    str(built["blocks"]),
                    f"{built['compile_seconds']:.0f}",
                    str(built["megabytes"]),
                    str(most[-1]["launches"]),
                    *(f"{row['reserved_gib']:.1f} / {row['planned_gib']:.1f}" for row in most),
                ]
            )
    return _markdown(rows)


_NULL_LAYOUTS = {
    ("21x30x52+0+-", 1): "no references",
    ("21x30x52+4+4.4.4", 1): "16 references",
    ("21x30x52+4+4.4.4", 4): "16 and 4 seeds",
}


def fp8_schemes(record: Record, root: Path) -> str:
    """Signal to noise of the velocity with every site in FP8."""
    bins = len(record["bins"])
    head = ["weights", "activations", "keys", f"dB in {bins} bins, from noise to video"]
    rows = [head, ["---"] * len(head)]
    for found in record["measured"]["schemes"]:
        activations = {"tensor": "a tensor, calibrated", "row": "a row, found while running"}
        rows.append(
            [
                f"a {found['weights']}",
                activations[found["activations"]],
                "smoothed" if found["smooth_keys"] else "plain",
                ", ".join(f"{value:.1f}" for value in found["velocity_sqnr"]),
            ]
        )
    return _markdown(rows)


def fp8_quality(record: Record, root: Path) -> str:
    """Precisions down; judgments, and paired differences to fp32."""
    head = ["simulated", "identity", "binding", "identity, less fp32's", "binding, less fp32's"]
    head += ["PSNR, less fp32's, dB", "SQNR of final latents, dB (1, 2, 3 people)"]
    rows = [head, ["---"] * len(head)]
    for name, found in record["precisions"].items():
        rates = found["rates"]["groups"]["all"]
        cells = [name, *(_rate(rates[metric], metric) for metric in ("identity", "binding"))]
        less = found.get("minus fp32")
        if less is None:
            rows.append([*cells, "", "", "", ""])
            continue
        groups = less["groups"]["all"]
        cells += [_difference(groups[metric], 3) for metric in ("identity", "binding")]
        cells.append(_difference(groups["psnr"], 2))
        rows.append([*cells, _decibels(found["final_latent_sqnr_db"])])
    return _markdown(rows)


def _decibels(found: dict[str, float]) -> str:
    return ", ".join(f"{found[people]:.1f}" for people in ("1", "2", "3"))


def full_size(build: Record, plan: Record, fp8: Record, plugin: Record, root: Path) -> str:
    """What was built of the 1.3b preset with random weights."""
    head = ["1.3b, random weights", "seconds", "peak memory, GiB", "written, GiB", "checked"]
    worst = max(check["relative_error"] for check in build["parity"])
    plans = sum(fp8["plan_bytes"].values())
    rows = [
        head,
        ["---"] * len(head),
        [
            "ONNX graph, fp32 (`onnxruntime`)",
            f"{build['seconds']:,.0f}",
            f"{build['peak_memory_gib']:.1f}",
            f"{build['engine_gib']:.2f}",
            f"against the reference, worst {worst:.1e}",
        ],
        [
            f"TensorRT-RTX plan, {plan['precision']}, {plan['target']}",
            f"{plan['seconds']:,.0f} ({plan['compile_seconds']:,.0f} in TensorRT)",
            f"{plan['peak_memory_gib']:.1f}",
            f"{plan['plan_bytes'] / 2**30:.2f}",
            f"{_attentions(plan)} fused attentions, {plan['layers']['kernels']['gemm']} products; "
            f"{plan['plan_run']}",
        ],
        [
            f"TensorRT-RTX plans, {fp8['precision']}, {fp8['target']}, {len(fp8['plan_bytes'])} "
            "buckets",
            f"{fp8['seconds']:,.0f} ({fp8['compile_seconds']:,.0f} in TensorRT)",
            f"{fp8['peak_memory_gib']:.1f}",
            f"{plans / 2**30:.2f}",
            f"{fp8['layers']['products']['FP8']} 8-bit products; {fp8['plan_run']}",
        ],
        [
            f"graph with opaque nodes, {plugin['precision']} (`tensorrt`)",
            f"{plugin['export_seconds']:,.0f}",
            f"{plugin['peak_memory_gib']:.1f}",
            f"{(plugin['graph_bytes'] + plugin['weights_bytes']) / 2**30:.2f}",
            f"{sum(plugin['opaque_nodes'].values())} opaque nodes; not run: no GPU",
        ],
    ]
    return _markdown(rows)


def _attentions(record: Record) -> int:
    kinds = record["layers"]["attention"].values()
    return sum(count for by_type in kinds for count in by_type.values())


def _rate(found: Record | None, metric: str) -> str:
    if found is None:
        return "-"
    digits = 1 if metric == "psnr" else 3
    low, value, high = (f"{found[name]:.{digits}f}" for name in ("low", "value", "high"))
    return value if low == value == high else f"{value} ({low}-{high})"


def _negated(found: Record) -> str:
    turned = {"value": -found["value"], "low": -found["high"], "high": -found["low"]}
    return _difference(turned, 3)


def _difference(found: Record, digits: int) -> str:
    value, low, high = (round(found[name], digits) + 0.0 for name in ("value", "low", "high"))
    return f"{value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _markdown(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
