"""Training steps of gpu.py: forward, backward and Adam of whole networks; half precision by autocast."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import harness
import networks
import torch
from gpu_device import DTYPES, Device, allow_tf32
from torch.nn import functional as F
from tqdm import tqdm

BASELINE = "sepconv"
CONTESTANTS = (BASELINE, "stock-nhwc", "stock-nchw")
# Networks, images of this size, batches.
MODELS = ("optimized_xception", "xception")
SIZE, BATCHES, CLASSES = 32, (64, 512), 10
TURN = 4  # samples, as layers have them, that a turn lasts


def step(device: Device, setup: networks.Setup, model: str, batch: int, dtype: str) -> Callable[[], None]:
    """A call is one training step."""
    form, stored = setup.memory_format, DTYPES[dtype][0]
    network = networks.build(model, setup.layers, CLASSES).to(device.name, memory_format=form).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    images = networks.images(batch, SIZE).to(device.name, memory_format=form)
    labels = torch.arange(batch, device=device.name) % CLASSES

    def run() -> None:
        with torch.autocast(device.name, stored, enabled=stored != torch.float32):
            loss = F.cross_entropy(network(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def measure(device: Device, args: argparse.Namespace) -> list[dict[str, Any]]:
    # float16 wants a scaler of gradients, which is not what is measured here.
    dtypes = [name for name in args.dtypes if name != "float16"]
    rows = []
    with tqdm(list(itertools.product(MODELS, BATCHES, dtypes)), disable=None, leave=False) as bar:
        for model, batch, dtype in bar:
            title = f"{model}, {SIZE}x{SIZE}, batch {batch}, {dtype}"
            bar.set_description(title)
            allow_tf32(dtype)
            runs = {name: step(device, networks.SETUPS[name], model, batch, dtype) for name in CONTESTANTS}
            device.interleave(runs, 1, 0)  # makes the optimizer's state, chooses algorithms
            memory = {name: device.peak_mib(run) for name, run in runs.items()}
            seconds = device.interleave(runs, args.rounds, TURN * args.sample_ms)
            rows.append({"name": title, "contestants": harness.compare(seconds, BASELINE), "mib": memory})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        [
            row["name"],
            *(harness.time_and_ratio(row["contestants"][name]) for name in CONTESTANTS),
            *("-" if row["mib"][name] is None else f"{row['mib'][name]:.0f}" for name in CONTESTANTS),
        ]
        for row in rows
    ]
    return harness.table(["training step, ms", *CONTESTANTS, *(f"MiB {name}" for name in CONTESTANTS)], lines)
