"""The benchmarks run, check what they time, and write records that the README's tables can be made from."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from profiles import nightly_only
from torch import nn

import sepconv
from sepconv import models
from sepconv.models.layers import StockSeparableConv2d

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="benchmarks/ lies in the clone only")

TINY = """\
stages: relu | none | bn
small 16 24 14 14 3 1 1 1 2
stages: none | bn+relu6 | bn+relu
odd.3x3 7 5 9 8 3 1 1 1 1
odd.5x5 7 5 9 8 5 2 2 1 1 2
"""


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


def run_script(name: str, *arguments: str | Path, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]
    # What is tested is no time: threads that spin would take the cores from each other, and from other tests.
    env = os.environ | {"OMP_WAIT_POLICY": "passive"}
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=env)


def record_of(script: str, path: Path, *arguments: str | Path) -> dict:
    done = run_script(script, "--threads", "1", "--rounds", "1", "--json", path, *arguments)
    assert done.returncode == 0, done.stderr
    run = json.loads(path.read_text())
    assert run["schema"] == 2
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
    multiplier = depthwise.out_channels // depthwise.in_channels
    return depthwise.in_channels, pointwise.out_channels, shape[2], shape[3], *window, multiplier


@pytest.mark.parametrize(
    ("name", "build", "size", "options", "count"),
    [
        ("xception", models.xception, 299, {}, 34),
        ("optimized_xception", models.optimized_xception, 32, {}, 24),
        ("optimized_xception_stride1", models.optimized_xception, 32, {"stem_stride": 1}, 24),
    ],
)
def test_shape_files_hold_the_layers_of_our_networks(layer_shapes, name, build, size, options, count):
    model = build(layers="stock", **options)
    found = separable_geometries(model, size)
    assert len(found) == count
    listed = layer_shapes.load(name)
    assert geometries(listed) == found
    stages = [str(layer.stages) for layer in listed for _ in range(layer.count)]
    assert stages == separable_unit_stages(model)


def separable_unit_stages(model: nn.Module) -> list[str]:
    """What the network has around its separable layers, as shape files say it."""
    found = []
    for unit in model.modules():
        if isinstance(unit, nn.Sequential) and any(isinstance(m, StockSeparableConv2d) for m in unit):
            words = {nn.ReLU: "relu", nn.BatchNorm2d: "bn", StockSeparableConv2d: "|"}
            before, after = "+".join(words[type(module)] for module in unit).split("|")
            found.append(f"{before.strip('+') or 'none'} | none | {after.strip('+') or 'none'}")
    return found


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
    "line",
    [
        "a 1 2 3",
        "a 16 24 14 14 three 1 1 1 1",
        "a 0 24 14 14 3 1 1 1 1",
        "a 16 24 2 2 5 1 0 1 1",
        "a 16 24 14 14 3 1 1 1 1 0",
        "a 16 24 14 14 3 1 1 1 1 1 1",
        "stages: relu | bn",
        "stages: none | silu | bn",
        "stages: bn | none | bn",
        "",
    ],
)
def test_a_malformed_shape_file_is_refused_by_name(layer_shapes, line):
    with pytest.raises(ValueError, match=r"made-up\.txt"):
        layer_shapes.parse(line, "made-up.txt")


def test_stages_hold_for_the_layers_below_them(layer_shapes):
    layers = layer_shapes.parse("a 8 8 5 5 3 1 1 1\n" + TINY, "made-up.txt")
    assert [str(layer.stages) for layer in layers] == [
        "none | none | none",
        "relu | none | bn",
        *["none | bn+relu6 | bn+relu"] * 2,
    ]
    assert layers[2].stages.middle == layer_shapes.Stage(batch_norm=True, activation="relu6")
    assert [layer.multiplier for layer in layers] == [1, 1, 1, 2]


def test_every_window_stands_beside_its_twin(layer_shapes):
    groups: dict[str, dict] = {}
    for layer in layer_shapes.load("windows"):
        group, _, window = layer.name.rpartition(".")
        groups.setdefault(group, {})[window] = layer
    for windows in groups.values():
        twin = windows.pop("3x3")
        assert (twin.kernel, twin.stride, twin.dilation, twin.multiplier) == (3, 1, 1, 1)
        assert windows.keys() == {"5x5", "7x7", "dilation2", "stride2", "multiplier2"}
        for layer in windows.values():
            assert (layer.in_channels, layer.out_channels) == (twin.in_channels, twin.out_channels)
            assert layer.output_size == twin.output_size


def test_flops_and_bytes_count_both_stages(layer_shapes):
    layer = layer_shapes.Layer("x", 8, 16, 10, 10, 3, 2, 1, 1)
    assert layer.output_size == (5, 5)
    assert layer.flops(batch=2) == 2 * (2 * 25 * 8 * 9 + 2 * 25 * 8 * 16)
    assert layer.elements(batch=2) == 2 * (8 * 100 + 16 * 25) + 8 * 9 + 8 * 16
    twice = layer_shapes.Layer("x", 8, 16, 10, 10, 3, 2, 1, 1, multiplier=2)
    assert twice.flops(batch=2) == 2 * layer.flops(batch=2)
    assert twice.elements() == layer.elements() + 8 * 9 + 8 * 16


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
    with pytest.raises(ValueError, match=r"old\.json: schema must be 2, got 0"):
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


@pytest.mark.parametrize("stages", ["none | none | none", "relu | none | bn", "relu6 | bn+relu6 | bn+relu"])
@pytest.mark.parametrize("engine", ["sepconv-frozen", "sepconv-frozen-nchw", "onnxruntime", "openvino"])
def test_frozen_contestants_compute_the_layer_and_its_stages(layer_shapes, peers, engine, stages):
    stages = layer_shapes.Stages.parse(stages)
    layer = layer_shapes.Layer("x", 8, 16, 9, 10, 5, 2, 2, 1, multiplier=2, stages=stages)
    case = peers.Case.random(layer, 1, torch.float32, backward=False, threads=1)
    try:
        contestant = peers.CONTESTANTS[engine](case)
    except peers.Unavailable as reason:
        pytest.skip(f"{engine}: {reason}")
    exact, bounds = peers.reference(case)
    error = peers.check(engine, contestant.outputs(), exact, bounds, torch.float32)
    assert error < 1e-6
    plain = peers.reference(
        dataclasses.replace(case, layer=dataclasses.replace(layer, stages=layer_shapes.PLAIN))
    )
    assert torch.equal(plain[0][0], exact[0]) is (
        stages.epilogue.activation is stages.prologue.activation is None
    )


# Whole scripts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backward", "dtype"), [(False, "float32"), (True, "float32"), (False, "bfloat16")])
def test_layers_writes_times_of_every_contestant(tmp_path, backward, dtype):
    shapes = tmp_path / "tiny.txt"
    shapes.write_text(TINY)
    names = ["sepconv", "sepconv-nchw", "stock-nhwc", "stock-nchw", "onednn"]
    names += ["sepconv-float32"] if dtype == "bfloat16" else []
    options = ["--shapes", shapes, "--sample-ms", "0", "--dtype", dtype, "--contestants", ",".join(names)]
    run = record_of("layers.py", tmp_path / "layers.json", *options, *(["--backward"] if backward else []))
    assert [row["name"] for row in run["rows"]] == ["small", "odd.3x3", "odd.5x5"]
    for row in run["rows"]:
        assert row["stages"] == "none | none | none", "plain runs have no stages"
        assert row["contestants"].keys() | row["missing"].keys() == {*names, "fma"}
        assert row["contestants"].keys() >= {"sepconv", "stock-nhwc", "stock-nchw"}
        for result in row["contestants"].values():
            assert 0 < result["ms"]["low"] <= result["ms"]["median"] <= result["ms"]["high"]
        assert row["contestants"]["sepconv"]["ratio"]["median"] == 1
        assert row["probe"]["gflops"] > 0
    small, odd, odder = (row["contestants"]["stock-nhwc"]["ms"]["median"] for row in run["rows"])
    total = run["total"]["contestants"]["stock-nhwc"]["ms"]["median"]
    assert math.isclose(total, 2 * small + odd + odder)
    assert run["total"]["count"] == 4
    text = "\n".join(importlib.import_module("layer_tables").summary(run))
    assert "sum of 4 layers" in text and "best stock" in text and "NCHW:" in text and "3x3 twin" in text
    assert ("error against float64" in text) is (dtype == "bfloat16")


def test_layers_times_frozen_weights_with_stages(tmp_path):
    shapes = tmp_path / "tiny.txt"
    shapes.write_text(TINY)
    names = "sepconv-frozen,sepconv-frozen-nchw,onnxruntime"
    options = ["--shapes", shapes, "--sample-ms", "0", "--frozen", "--contestants", names]
    run = record_of("layers.py", tmp_path / "layers.json", *options)
    assert run["baseline"] == "sepconv-frozen"
    assert [row["stages"] for row in run["rows"]] == ["relu | none | bn", *["none | bn+relu6 | bn+relu"] * 2]
    for row in run["rows"]:
        assert row["contestants"].keys() >= {"sepconv-frozen", "sepconv-frozen-nchw"}
        assert row["contestants"]["sepconv-frozen"]["error"] < 1e-6


def test_layers_can_be_capped_to_avx2(tmp_path):
    if "avx2" not in sepconv.info()["available_cpu_capabilities"]:
        pytest.skip("this CPU has no AVX2")
    shapes = tmp_path / "tiny.txt"
    shapes.write_text(TINY)
    options = ["--shapes", shapes, "--sample-ms", "0", "--isa", "avx2", "--contestants", "sepconv,stock-nhwc"]
    run = record_of("layers.py", tmp_path / "layers.json", *options)
    assert run["machine"]["isa"] == "avx2"
    assert "avx2" in run["probe"]["method"] or "torch.mm" in run["probe"]["method"]


def test_average_compares_with_a_copy_and_with_stock(tmp_path):
    options = ["--bytes", "3000000", "--sample-ms", "0"]
    run = record_of("average.py", tmp_path / "average.json", *options)
    assert all(row["bytes"] >= 3_000_000 for row in run["averages"])
    assert all(row["contestants"].keys() >= {"sepconv", "sepconv-nchw", "copy"} for row in run["averages"])
    assert all("stock-conv-alone" in row["contestants"] for row in run["convolutions"])
    table = importlib.import_module("average").table(run)
    assert "GB/s" in table and "299x299" in table


@nightly_only
def test_average_can_leave_the_average_out(tmp_path):
    options = ["--bytes", "3000000", "--sample-ms", "0", "--core"]
    run = record_of("average.py", tmp_path / "average.json", *options)
    for row in run["convolutions"]:
        assert row["contestants"].keys() >= {"core", "core-nchw", "core-without-average"}
        assert row["average_costs"]["median"] > 0
    assert "the kernel with its average takes" in importlib.import_module("average").table(run)


def test_overhead_times_calls_with_and_without_gradients(tmp_path):
    run = record_of("overhead.py", tmp_path / "overhead.json", "--sample-ms", "0")
    assert [row["name"] for row in run["rows"]] == ["inference", "forward, recorded", "forward and backward"]
    assert run["rows"][0]["contestants"].keys() == {
        "sepconv",
        "sepconv-module",
        "sepconv-frozen",
        "stock",
        "stock-modules",
    }
    assert "µs a call" in importlib.import_module("overhead").table(run)


def test_layers_refuses_unknown_contestants_and_shapes():
    for option, value in (("--contestants", "sepconv,nobody"), ("--shapes", "nothing")):
        done = run_script("layers.py", option, value)
        assert done.returncode != 0
        assert option in done.stderr and value.split(",")[-1] in done.stderr


def test_training_writes_phases_and_memory(tmp_path):
    names = ["sepconv", "stock-nhwc", "sepconv-bfloat16"]
    options = ["--batch", "8", "--steps", "1", "--contestants", ",".join(names)]
    run = record_of("training.py", tmp_path / "training.json", *options)
    assert list(run["contestants"]) == names
    for result in run["contestants"].values():
        phases = [result["ms"][phase]["median"] for phase in ("forward", "backward", "optimizer")]
        assert min(phases) > 0
        assert math.isclose(sum(phases), result["ms"]["step"]["median"], rel_tol=1e-6)
        assert result["peak_mib"] > 0
    activations, blocks = (
        {name: result[key] for name, result in run["contestants"].items()}
        for key in ("activation_mib", "block_mib")
    )
    assert 0 < activations["sepconv"] < activations["stock-nhwc"], "the depthwise output must not be saved"
    assert 0 < blocks["sepconv"] <= 0.4 * blocks["stock-nhwc"], "nothing but the block's input must be saved"
    plot, training = importlib.import_module("plot"), importlib.import_module("training")
    for name in names:
        assert name in training.table(run)
    plot.save(plot.phases(run), tmp_path / "phases.png")
    assert (tmp_path / "phases.png").read_bytes().startswith(b"\x89PNG")


def test_training_profiles_the_operators_of_a_step():
    options = ["--batch", "4", "--steps", "1", "--contestants", "sepconv", "--threads", "1"]
    done = run_script("training.py", "--profile", *options)
    assert done.returncode == 0, done.stderr
    assert "sepconv, a step" in done.stdout
    assert "aten::_fused_adam_" in done.stdout
    assert "others" in done.stdout


def test_training_refuses_a_network_that_computes_something_else(monkeypatch):
    training = importlib.import_module("training")
    build = training.networks.build
    args = argparse.Namespace(model="optimized_xception", batch=4, size=32, classes=10, stem_stride=2)
    training.compare_in_float64(args)

    def one_weight_off(model: str, layers: str, num_classes: int, stem_stride: int = 2) -> nn.Module:
        network = build(model, layers, num_classes, stem_stride)
        if layers == "sepconv":
            with torch.no_grad():
                network.exit.body[0].conv.pointwise.weight[0, 0] += 1e-3
        return network

    monkeypatch.setattr(training.networks, "build", one_weight_off)
    with pytest.raises(AssertionError, match="loss in float64"):
        training.compare_in_float64(args)


def made_up_training(name: str, **steps: float) -> dict:
    """A training record: milliseconds a step; as many MiB of activations, twice that at peak."""
    return {
        "name": name,
        "probe": {"steady": True},
        "contestants": {
            contestant.replace("_", "-"): {
                "ms": {"step": {"median": ms}},
                "ratio": {"median": ms / steps["sepconv"]},
                "activation_mib": ms,
                "peak_mib": 2 * ms,
                "block_mib": 100.0,
            }
            for contestant, ms in steps.items()
        },
    }


def test_training_tables_compare_networks():
    training = importlib.import_module("training")
    runs = [
        made_up_training("one", sepconv=10.0, stock_nhwc=25.0),
        made_up_training("two", sepconv=20.0, sepconv_bfloat16=10.0, stock_bfloat16=40.0),
    ]
    one, two = training.steps_table(runs).splitlines()[2:]
    assert "10.0" in one and "25.0 (2.50x)" in one and one.count(" - ") == 2
    assert "40.0 (2.00x)" in two
    block, *rows = training.memory_table(runs).splitlines()[2:]
    assert "one block" in block and "100 (100%)" in block
    assert [row.split("|")[1].strip() for row in rows] == [
        "one: activations",
        "one: peak",
        "two: activations",
        "two: peak",
    ]
    assert "25 (40%)" in rows[0] and "50 (40%)" in rows[1]
    assert "40 (25%)" in rows[2], "bfloat16 is compared with bfloat16"


@pytest.mark.parametrize("name", ["mobilenetv1_100", "mobilenetv2_100"])
def test_timms_mobilenets_are_the_same_networks_as_chains(name):
    pytest.importorskip("timm", reason="timm, whose networks are compared, is not installed")
    networks = importlib.import_module("networks")
    stock, ours = (networks.build(name, layers, 10).double() for layers in ("stock", "sepconv"))
    assert isinstance(ours, sepconv.FusedSequential)
    assert list(ours.state_dict()) == list(stock.state_dict())
    images = networks.images(4, 64).double().contiguous(memory_format=torch.channels_last)
    for model in (stock, ours):
        nn.functional.cross_entropy(model(images), torch.arange(4)).backward()
    # All together: some are rounding alone, such as those of a shift that the next batch norm undoes.
    actual, expected = (networks.flat([p.grad for p in model.parameters()]) for model in (ours, stock))
    assert networks.relative_error(actual, expected) < 1e-9
    for (key, a), b in zip(stock.state_dict().items(), ours.state_dict().values(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-12, msg=key)


def test_an_unknown_block_becomes_no_chain():
    timm = pytest.importorskip("timm", reason="timm, whose networks are refused, is not installed")
    mobilenets = importlib.import_module("mobilenets")
    with pytest.raises(TypeError, match="se: no chain is known for a SqueezeExcite"):
        mobilenets.fused(timm.create_model("efficientnet_b0"))


# How trainings drift apart ----------------------------------------------------------------------------------


def drifts_of(path: Path, *options: str, seconds: float = 300) -> dict[str, dict]:
    done = run_script("convergence.py", "--threads", "2", "--json", path, *options, seconds=seconds)
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(path.read_text())["rows"]}


def test_training_begins_as_with_stock_layers(tmp_path):
    # In float32 the first steps of stock on one and two threads hardly differ: a course needs more of them.
    options = ["--only", "float64", "--steps", "3", "--seeds", "1", "--batch", "8"]
    rows = drifts_of(tmp_path / "convergence.json", *options)
    assert list(rows) == ["float64"]
    for row in rows.values():
        assert row["marks"] == [1, 2, 3]
        assert row["drifts"][row["reference"]] == [0, 0, 0]
        assert min(row["drifts"][row["yardstick"]]) > 0, "without any drift of stock's nothing is compared"
        assert all(row["ratios"][way] <= row["limit"] for way in row["ours"])
    assert max(rows["float64"]["drifts"]["sepconv"]) < 1e-11


@nightly_only
def test_training_takes_the_course_of_stock_layers(tmp_path):
    rows = drifts_of(tmp_path / "convergence.json", seconds=3600)
    assert {name: row["marks"][-1] for name, row in rows.items()} == {
        "float64": 200,
        "float32": 200,
        "bfloat16": 300,
    }


def test_a_drift_beyond_the_limit_is_told():
    convergence = importlib.import_module("convergence")
    row = {
        "name": "float64",
        "of": "parameters",
        "reference": "a",
        "yardstick": "b",
        "ours": ["c"],
        "limit": 10,
        "marks": [1],
        "drifts": {"a": [0.0], "b": [1e-13], "c": [2e-12]},
        "ratios": {"a": 0.0, "b": 1.0, "c": 20.0},
        "last_losses": {"a": 1.0, "b": 1.0, "c": 1.0},
    }
    assert convergence.exceeded({"rows": [row]}) == [
        "float64: c drifts 20.00 times as far as b, more than 10"
    ]
    assert "20.00 (limit 10)" in convergence.table(row)
    row["ratios"]["c"] = math.nan
    assert convergence.exceeded({"rows": [row]}), "a training that diverged has not held the limit"


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
    for script in ("plot.py", "roofline.py"):
        target = tmp_path / f"{script}.png"
        done = run_script(script, tmp_path / "demo.json", "-o", target)
        assert done.returncode == 0, done.stderr
        assert target.stat().st_size > 10_000


def made_up_run(**ms: float) -> dict:
    """A record of one layer of 1 GFLOP and 1 MB, at 100 GFLOP/s and 10 GB/s."""

    def results(count: int) -> dict:
        return {
            name.replace("_", "-"): {
                "ms": {"median": count * value},
                "ratio": {"median": value / ms["sepconv"]},
                "error": 1.0,
            }
            for name, value in ms.items()
        }

    row = {"name": "one", "count": 2, "flops": 10**9, "bytes": 10**6, "contestants": results(1)}
    row |= {"probe": {"steady": True, "gflops": 100.0}, "missing": {}}
    return {
        "settings": {"contestants": list(results(1)), "dtype": "float32", "shapes": "x", "batch": 1},
        "machine": {"cpu": "made up", "threads": 1, "isa": "avx512"},
        "baseline": "sepconv",
        "probe": {
            "method": "",
            "gflops": 100.0,
            "dtype_gflops": 100.0,
            "dtype_method": "",
            "copy_gbps": 10.0,
        },
        "rows": [row],
        "total": {"count": 2, "flops": 2 * 10**9, "contestants": results(2)},
    }


def test_shares_and_rivals_are_what_the_times_say():
    layer_tables = importlib.import_module("layer_tables")
    run = made_up_run(sepconv=20.0, stock_nhwc=19.0, stock_nchw=40.0, onnxruntime=10.0, fma=12.0)
    (row,) = run["rows"]
    assert layer_tables.limit_ms(run, row) == 10.0  # 1 GFLOP at 100 GFLOP/s; the bytes take 0.1 ms
    assert layer_tables.shares(run, row) == ["60%", "50%", "50%"]
    assert layer_tables.shares(run, layer_tables.total(run)) == ["60%", "50%", "50%"]
    row["bytes"] = 15 * 10**7
    assert layer_tables.limit_ms(run, row) == 15.0
    assert layer_tables.shares(run, row) == ["60%", "50%", "75%"]
    assert str(layer_tables.best_stock(row)) == "0.95x stock-nhwc"
    assert str(layer_tables.best_peer(row)) == "0.50x onnxruntime"
    assert layer_tables.behind(run) == "1 of 1"
    assert layer_tables.worst(run) == "0.50x one (onnxruntime)"
    assert layer_tables.behind(made_up_run(sepconv=20.0, stock_nhwc=19.8)) == "0 of 1"  # within the noise


def test_a_roofline_mixes_no_machines():
    roofline = importlib.import_module("roofline")
    run = made_up_run(sepconv=20.0, stock_nhwc=19.0)
    (point,) = roofline.points([run], "sepconv")
    assert (point.intensity, point.ours) == (1000.0, 50.0)
    assert point.lead == pytest.approx(19 / 20)
    other = made_up_run(sepconv=20.0, stock_nhwc=19.0)
    other["machine"]["threads"] = 2
    with pytest.raises(ValueError, match="differ in threads"):
        roofline.roofline([run, other])


def test_record_names_are_matched_or_refused():
    record = importlib.import_module("record")
    assert record.chosen([]) == list(record.RUNS)
    assert record.chosen(["demo", "average*"]) == ["demo", "average", "average-raised"]
    with pytest.raises(SystemExit, match="nobody matches none of demo"):
        record.chosen(["demo", "nobody"])


def test_every_record_is_a_command_that_its_script_understands(monkeypatch, layer_shapes):
    record = importlib.import_module("record")
    for name, (script, *options) in record.RUNS.items():
        assert (BENCHMARKS / script).is_file()
        if "--shapes" in options:
            assert options[options.index("--shapes") + 1] in layer_shapes.available(), name


def test_every_record_has_a_place_in_a_table():
    record, tables = importlib.import_module("record"), importlib.import_module("tables")
    pages = "".join(
        page.read_text() for page in (tables.README, *(tables.harness.ROOT / "docs").glob("*.md"))
    )
    shown = {
        name
        for table, (_, names) in tables.TABLES.items()
        if f"<!-- table: {table} -->" in pages
        for name in names
    }
    assert shown == set(record.RUNS)
