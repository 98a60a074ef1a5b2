"""The benchmarks run, check what they time, and write records that the README's tables can be made from."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sepconv import models
from sepconv.models.layers import StockSeparableConv2d

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="benchmarks/ lies in the clone only")

TINY = "small 16 24 14 14 3 1 1 1 2\nodd 7 5 9 8 5 2 2 1 1\n"


@pytest.fixture(scope="module", autouse=True)
def _benchmarks_on_path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture
def layer_shapes():
    return importlib.import_module("layer_shapes")


@pytest.fixture
def harness():
    return importlib.import_module("harness")


@pytest.fixture
def peers():
    return importlib.import_module("peers")


def run_script(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def record_of(script: str, path: Path, *arguments: str | Path) -> dict:
    done = run_script(script, "--threads", "1", "--rounds", "1", "--json", path, *arguments)
    assert done.returncode == 0, done.stderr
    run = json.loads(path.read_text())
    assert run["schema"] == 1
    assert run["benchmark"] == script.removesuffix(".py")
    assert run["machine"].keys() >= {"cpu", "cores", "threads", "isa", "malloc", "python", "torch", "sepconv"}
    assert run["machine"]["isa"] != "reference", "measured without sepconv's kernels"
    assert run["date"] and run["commit"]
    assert run["settings"]["rounds"] == 1
    return run


# Shape files ------------------------------------------------------------------------------------------------


def geometries(layers) -> list[tuple[int, ...]]:
    return [layer.geometry for layer in layers for _ in range(layer.count)]


def separable_geometries(model: nn.Module, size: int) -> list[tuple[int, ...]]:
    """What the network's stock separable layers see, in the order of their calls."""
    seen = []

    def note(module: StockSeparableConv2d, inputs: tuple[torch.Tensor], _: torch.Tensor) -> None:
        seen.append(geometry(module.depthwise, module.pointwise, inputs[0].shape))

    for module in model.modules():
        if isinstance(module, StockSeparableConv2d):
            module.register_forward_hook(note)
    model.to("meta").eval()(torch.empty(1, 3, size, size, device="meta"))
    return seen


def geometry(depthwise: nn.Conv2d, pointwise: nn.Conv2d, shape: torch.Size) -> tuple[int, ...]:
    window = (depthwise.kernel_size[0], depthwise.stride[0], depthwise.padding[0], depthwise.dilation[0])
    return depthwise.in_channels, pointwise.out_channels, shape[2], shape[3], *window


@pytest.mark.parametrize(
    ("name", "build", "size", "count"),
    [("xception", models.xception, 299, 34), ("optimized_xception", models.optimized_xception, 32, 24)],
)
def test_shape_files_hold_the_layers_of_our_networks(layer_shapes, name, build, size, count):
    found = separable_geometries(build(layers="stock"), size)
    assert len(found) == count
    assert geometries(layer_shapes.load(name)) == found


@pytest.mark.parametrize(
    ("name", "timm_name", "size", "options", "head"),
    [
        ("mobilenetv1", "mobilenetv1_100", 224, {}, 0),
        ("mobilenetv2", "mobilenetv2_100", 224, {}, 0),
        ("efficientnet_b0", "efficientnet_b0", 224, {}, 0),
        ("deeplabv3plus", "xception65", 513, {"output_stride": 16}, 5),  # timm has the backbone, not the head
    ],
)
def test_shape_files_hold_the_layers_of_timms_networks(layer_shapes, name, timm_name, size, options, head):
    timm = pytest.importorskip(
        "timm", reason="timm, whose networks the shapes are compared with, is not installed"
    )
    model = timm.create_model(timm_name, pretrained=False, **options)
    calls: list[tuple[nn.Conv2d, torch.Size]] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda conv, inputs, _: calls.append((conv, inputs[0].shape)))
    model.to("meta").eval()(torch.empty(1, 3, size, size, device="meta"))
    # Squeeze-excite's convolutions see 1x1 maps and stand between the two that belong together.
    calls = [(conv, shape) for conv, shape in calls if shape[2] > 1]
    found = [
        geometry(depthwise, pointwise, shape)
        for (depthwise, shape), (pointwise, _) in itertools.pairwise(calls)
        if depthwise.groups == depthwise.in_channels > 1 and pointwise.kernel_size == (1, 1)
    ]
    listed = geometries(layer_shapes.load(name))
    assert listed[: len(listed) - head] == found


def test_every_shape_file_parses(layer_shapes):
    assert {"xception", "mobilenetv1", "mobilenetv2", "efficientnet_b0", "deeplabv3plus", "demo"} <= set(
        layer_shapes.available()
    )
    for name in layer_shapes.available():
        assert layer_shapes.load(name)


@pytest.mark.parametrize(
    "line", ["a 1 2 3", "a 16 24 14 14 three 1 1 1 1", "a 0 24 14 14 3 1 1 1 1", "a 16 24 2 2 5 1 0 1 1", ""]
)
def test_a_malformed_shape_file_is_refused_by_name(layer_shapes, line):
    with pytest.raises(ValueError, match=r"made-up\.txt"):
        layer_shapes.parse(line, "made-up.txt")


def test_flops_and_bytes_count_both_stages(layer_shapes):
    layer = layer_shapes.Layer("x", 8, 16, 10, 10, 3, 2, 1, 1)
    assert layer.output_size == (5, 5)
    assert layer.flops(batch=2) == 2 * (2 * 25 * 8 * 9 + 2 * 25 * 8 * 16)
    assert layer.elements(batch=2) == 2 * (8 * 100 + 16 * 25) + 8 * 9 + 8 * 16


# The harness ------------------------------------------------------------------------------------------------


def test_contestants_take_turns_in_rotating_order(harness):
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = harness.interleave(runs, rounds=3, sample_ms=0)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    warm_up_and_sample = [calls[start] for start in range(0, len(calls), 2)]
    assert warm_up_and_sample == ["a", "b", "a", "b", "b", "a", "a", "b"]  # the first two calibrate
    assert calls == [name for name in warm_up_and_sample for _ in range(2)]


def test_ratios_are_taken_round_by_round(harness):
    rows = harness.compare({"sepconv": [1.0, 2.0, 4.0], "peer": [2.0, 4.0, 12.0]}, "sepconv")
    assert rows["peer"]["ratio"] == {"median": 2.0, "low": 2.0, "high": 2.5}
    assert rows["peer"]["ms"]["median"] == 4000.0


@pytest.mark.parametrize(
    ("rates", "measured", "steady"),
    [([100, 98], 1, True), ([100, 90, 89], 2, True), ([100, 90, 80, 70], 3, False)],
)
def test_a_row_is_measured_again_while_the_probe_moves(harness, monkeypatch, rates, measured, steady):
    probe = importlib.import_module("probe")
    remaining = iter(rates)
    monkeypatch.setattr(probe, "fma_peak", lambda *_: probe.Peak(next(remaining), 0, "made up"))
    attempts: list[int] = []
    _, seen = harness.steadily(lambda: attempts.append(1), threads=1)
    assert len(attempts) == measured
    assert seen["steady"] is steady


def test_the_probe_measures_this_machine(monkeypatch, tmp_path):
    probe = importlib.import_module("probe")
    peak = probe.fma_peak(1, seconds=0.02)
    assert 1 < peak.sustained <= peak.gflops < 10_000
    assert "FMA" in peak.method or "torch.mm" in peak.method
    monkeypatch.setattr(probe, "_library", lambda isa: None)
    assert "torch.mm" in probe.fma_peak(1, seconds=0.02).method


def test_a_record_of_another_schema_is_refused(harness, tmp_path):
    path = tmp_path / "old.json"
    path.write_text('{"schema": 0}')
    with pytest.raises(ValueError, match=r"old\.json: schema must be 1, got 0"):
        harness.load(path)


def test_tables_are_aligned_markdown(harness):
    assert harness.table(["a", "ms"], [["one", "1.0"], ["b", "12.5"]]) == (
        "| a   |   ms |\n| :-- | ---: |\n| one |  1.0 |\n| b   | 12.5 |"
    )
    assert [harness.milliseconds(x) for x in (0.0123, 1.234, 12.34, 123.4)] == [
        "0.012",
        "1.23",
        "12.3",
        "123",
    ]


# Contestants ------------------------------------------------------------------------------------------------


def test_a_wrong_contestant_is_refused(layer_shapes, peers):
    case = peers.Case.random(
        layer_shapes.Layer("x", 8, 16, 6, 6, 3, 1, 1, 1), 2, torch.float32, backward=True, threads=1
    )
    exact, bounds = peers.reference(case)
    outputs = peers.CONTESTANTS["stock-nchw"](case).outputs()
    peers.check("right", outputs, exact, bounds, torch.float32)
    for index in range(len(outputs)):
        wrong = [tensor.clone() for tensor in outputs]
        wrong[index].view(-1)[3] += 1e-3
        with pytest.raises(AssertionError, match=f"result {index}"):
            peers.check("wrong", wrong, exact, bounds, torch.float32)
    broken = (outputs[0] * torch.nan, *outputs[1:])
    with pytest.raises(AssertionError, match="result 0"):
        peers.check("broken", broken, exact, bounds, torch.float32)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_inference_engines_compute_the_layer(layer_shapes, peers, engine):
    layer = layer_shapes.Layer("x", 8, 16, 9, 10, 5, 2, 2, 1)
    case = peers.Case.random(layer, 1, torch.float32, backward=False, threads=1)
    try:
        contestant = peers.CONTESTANTS[engine](case)
    except peers.Unavailable as reason:
        pytest.skip(f"{engine}: {reason}")
    peers.check(engine, contestant.outputs(), *peers.reference(case), torch.float32)


# Whole scripts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backward", "dtype"), [(False, "float32"), (True, "float32"), (False, "bfloat16")])
def test_layers_writes_times_of_every_contestant(tmp_path, backward, dtype):
    shapes = tmp_path / "tiny.txt"
    shapes.write_text(TINY)
    names = ["sepconv", "sepconv-nchw", "stock-nhwc", "stock-nchw", "onednn", "onnxruntime"]
    options = ["--shapes", shapes, "--sample-ms", "0", "--dtype", dtype, "--contestants", ",".join(names)]
    run = record_of("layers.py", tmp_path / "layers.json", *options, *(["--backward"] if backward else []))
    assert [row["name"] for row in run["rows"]] == ["small", "odd"]
    for row in run["rows"]:
        assert row["contestants"].keys() | row["missing"].keys() == set(names)
        assert row["contestants"].keys() >= {"sepconv", "stock-nhwc", "stock-nchw"}
        for result in row["contestants"].values():
            assert 0 < result["ms"]["low"] <= result["ms"]["median"] <= result["ms"]["high"]
        assert row["contestants"]["sepconv"]["ratio"]["median"] == 1
        assert row["probe"]["gflops"] > 0
    small, odd = (row["contestants"]["stock-nhwc"]["ms"]["median"] for row in run["rows"])
    total = run["total"]["contestants"]["stock-nhwc"]["ms"]["median"]
    assert math.isclose(total, 2 * small + odd)
    assert run["total"]["count"] == 3


def test_layers_refuses_unknown_contestants_and_shapes():
    for option, value in (("--contestants", "sepconv,nobody"), ("--shapes", "nothing")):
        done = run_script("layers.py", option, value)
        assert done.returncode != 0
        assert option in done.stderr and value.split(",")[-1] in done.stderr


def test_training_writes_phases_and_memory(tmp_path):
    options = ["--batch", "8", "--steps", "1", "--contestants", "sepconv,stock-nhwc"]
    run = record_of("training.py", tmp_path / "training.json", *options)
    assert run["contestants"].keys() == {"sepconv", "stock-nhwc"}
    for result in run["contestants"].values():
        phases = [result["ms"][phase]["median"] for phase in ("forward", "backward", "optimizer")]
        assert min(phases) > 0
        assert math.isclose(sum(phases), result["ms"]["step"]["median"], rel_tol=1e-6)
        assert result["peak_mib"] > 0
    activations = {name: result["activation_mib"] for name, result in run["contestants"].items()}
    assert 0 < activations["sepconv"] < activations["stock-nhwc"], "the depthwise output must not be saved"


def test_models_writes_a_row_for_each_contestant(tmp_path):
    options = ["--model", "optimized_xception", "--size", "32", "--classes", "10"]
    run = record_of(
        "models.py", tmp_path / "models.json", *options, "--contestants", "sepconv,stock-nhwc,stock-nchw"
    )
    (row,) = run["rows"]
    assert row["contestants"].keys() == {"sepconv", "stock-nhwc", "stock-nchw"}


def test_the_demos_table_verdict_and_plot_follow_its_record(tmp_path):
    demo, plot = importlib.import_module("demo"), importlib.import_module("plot")
    shapes = tmp_path / "tiny.txt"
    shapes.write_text(TINY)
    options = ["--shapes", shapes, "--sample-ms", "0", "--contestants", "sepconv,stock-nhwc,stock-nchw"]
    run = record_of("layers.py", tmp_path / "demo.json", *options)

    def epochs(seconds: float, memory: float) -> list[dict[str, float]]:
        columns = {"train_loss": 1.5, "val_loss": 1.25, "val_accuracy": 0.5, "val_seconds": 1.0}
        return [
            {"epoch": n, "train_seconds": seconds, "peak_memory_mib": memory, **columns} for n in (1.0, 2.0)
        ]

    run["training"] = {"stock-nhwc": epochs(10, 600), "sepconv": epochs(5, 500)}
    assert "2.00x as fast" in demo.verdict(run)
    assert "epoch 2, sepconv" in demo.training_table(run)
    run["training"]["sepconv"] = epochs(20, 500)
    assert "SLOWER, 0.50x" in demo.verdict(run)
    plot.save(plot.demo(run), tmp_path / "demo.png")
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    for kind in ("bars", "roofline"):
        target = tmp_path / f"{kind}.png"
        done = run_script("plot.py", tmp_path / "demo.json", "--kind", kind, "-o", target)
        assert done.returncode == 0, done.stderr
        assert target.stat().st_size > 10_000
