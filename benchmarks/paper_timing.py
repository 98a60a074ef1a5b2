"""Times the settings of the paper against each other: training steps, validation batches, peak memory.

Every contestant, a setting with one set of layers, lives in a process of its own (trainee.py), and the
processes take turns, so that all of them share the machine's good and bad moments. Images are random: times
do not depend on what they show.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import harness
import networks
import training
from paper_tables import TimingRow
from tqdm import tqdm

from sepconv.models import SETTINGS

# How networks.py calls the settings.
MODELS = dict(zip(SETTINGS, ("xception", "optimized_xception", "optimized_xception_with_data"), strict=True))
IMAGE_SIZE = 32
CLASSES = 10


def trainee_options(setting: str, batch_size: int, threads: int, steps: int) -> argparse.Namespace:
    return argparse.Namespace(
        model=MODELS[setting],
        batch=batch_size,
        size=IMAGE_SIZE,
        classes=CLASSES,
        stem_stride=2,
        threads=threads,
        steps=steps,
    )


def measure(
    settings: Sequence[str],
    contestants: Sequence[str],
    *,
    batch_size: int,
    threads: int,
    steps: int,
    rounds: int,
    measured_on: str,
) -> list[TimingRow]:
    """Compares the networks in float64, lets all contestants take turns, checks them against float64."""
    options = {setting: trainee_options(setting, batch_size, threads, steps) for setting in settings}
    parameters = {}
    for setting, args in options.items():
        training.compare_in_float64(args)
        model = networks.build(args.model, "stock", CLASSES)
        parameters[setting] = sum(parameter.numel() for parameter in model.parameters())
    workers: dict[tuple[str, str], training.Worker] = {}
    try:
        names = [(setting, layers) for setting in settings for layers in contestants]
        for setting, layers in tqdm(names, desc="start and first steps", disable=None, leave=False):
            workers[setting, layers] = training.Worker(layers, options[setting])
        (steps_of, batches_of), probe = harness.steadily(
            lambda: (
                training.take_turns(workers, rounds),
                training.take_turns(workers, rounds, "validation_turn"),
            ),
            threads,
            isa=harness.cpu_capability(),
        )
        memory = {name: worker.ask("finish")["whole_mib"] for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    return [
        TimingRow(
            setting=setting,
            layers=layers,
            round=turn + 1,
            train_step_ms=round(1e3 * sum(steps_of[setting, layers][turn].values()), 3),
            val_batch_ms=round(1e3 * batches_of[setting, layers][turn], 3),
            peak_memory_mib=round(memory[setting, layers], 1),
            parameters=parameters[setting],
            batch_size=batch_size,
            image_size=IMAGE_SIZE,
            threads=threads,
            steady=int(probe["steady"]),
            measured_on=measured_on,
        )
        for setting, layers in names
        for turn in range(rounds)
    ]
