"""A training run: epochs of Adam on cross-entropy, validated, recorded and checkpointed."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from . import checkpoint, data, recipe
from .config import AMP_DTYPES, ConfigError, TrainConfig
from .distributed import World, joined_world
from .files import WeightsError
from .images import Batch, ImageData, batches
from .metrics import EpochRecord, PeakMemory, validate
from .progress import progress_bar
from .settings import build_model

# Losses are read from the device in groups: reading each would make a GPU wait for every step.
LOSSES_A_READ = 16
# What a run adds to plain Adam; a checkpoint that does not name these has none of them.
_RECIPE = {
    field.name: field.default
    for field in fields(TrainConfig)
    if field.name in ("augment", "schedule", "label_smoothing", "ema")
}


class Run:
    """One run on one process: model, optimizer, data and how far it is."""

    def __init__(self, config: TrainConfig, images: ImageData, world: World) -> None:
        self.config, self.images, self.world = config, images, world
        self.device = world.device
        self.image_size = config.image_size or images.image_size
        self.output = None if config.output is None else Path(config.output)
        self._check_image_size()
        self.steps = self._checked_steps()
        torch.manual_seed(config.seed)
        self.model = build_model(
            config.setting,
            len(images.classes),
            images.channels,
            layers=config.layers,
            stem_stride=config.stem_stride,
            row_stride=config.row_stride,
        ).to(self.device, memory_format=self._memory_format)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr)
        self.average = recipe.averaged(self.model, config.ema) if config.ema else None
        self.state = checkpoint.RunState.start()
        self._begin_or_resume()
        self.parallel_model: nn.Module = self.model
        if world.size > 1:
            # Strides of dimensions of size 1 differ, as in every 1x1 and depthwise weight: nothing is lost.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            device_ids = [self.device] if self.device.type == "cuda" else None
            self.parallel_model = DistributedDataParallel(self.model, device_ids=device_ids)

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.config.channels_last else torch.contiguous_format

    def _check_image_size(self) -> None:
        # Two 3x3 convolutions without padding, the first of stride 2 and over every row_stride-th row.
        smallest = 6 * self.config.row_stride + 1 if self.config.stem_stride == 2 else 1
        if self.image_size < smallest:
            raise ConfigError(f"image_size must be at least {smallest} for this stem, got {self.image_size}")

    def _checked_steps(self) -> int:
        size, count = self.config.batch_size, len(self.images.train)
        if size % self.world.size or size < 2 * self.world.size:
            raise ConfigError(
                f"batch_size must give each of {self.world.size} process(es) the same share of at least 2 "
                f"(batch norm needs two values), got {size}"
            )
        if count < size:
            raise ConfigError(f"batch_size must be at most the {count} training images, got {size}")
        return count // size

    # --- checkpoints ---------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, object]:
        """What has to be the same for a resumed run to go on as if never stopped."""
        names = ("setting", "stem_stride", "row_stride", "batch_size", "lr", "seed", "amp", *_RECIPE)
        # A schedule that ends with the run is another one in a longer run.
        epochs = None if self.config.schedule == "constant" else self.config.epochs
        return {name: getattr(self.config, name) for name in names} | {
            "epochs of the schedule": epochs,
            "image_size": self.image_size,
            "classes": len(self.images.classes),
            "channels": self.images.channels,
            "training images": len(self.images.train),
            "test images": len(self.images.test),
        }

    def _begin_or_resume(self) -> None:
        if self.output is None:
            return
        path = checkpoint.checkpoint_path(self.output)
        # Every process looks before any may write: else the slower could find the first one's checkpoint.
        found = any(self.world.gather(path.exists()))
        if not found:
            return
        if not self.config.resume:
            raise ConfigError(f"output holds {path} of an earlier run: resume it, or choose another folder")
        state, content = checkpoint.load(self.output)
        identity = _RECIPE | content["identity"]
        for name, value in self._identity().items():
            if identity.get(name) != value:
                raise ConfigError(f"{name} must be {identity.get(name)!r} to resume {path}, got {value!r}")
        try:
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            if self.average is not None:
                self.average.module.load_state_dict(content["average"])
                self.average.n_averaged.fill_(self._steps_done(state))
        except (KeyError, RuntimeError, ValueError) as error:
            raise WeightsError(f"{path}: does not fit this run: {error}") from error
        self.state = state
        checkpoint.restore_process(state, content["processes"], self.world)
        if self.world.is_main:
            checkpoint.write_csv(self.output, state.records)

    def save(self) -> None:
        """Writes the checkpoint and the CSV (main process); every process has to call it."""
        if self.output is None:
            return
        processes = self.world.gather(checkpoint.process_state(self.state, self.world))
        if self.world.is_main:
            checkpoint.save(
                self.output,
                state=self.state,
                identity=self._identity(),
                model=self.model.state_dict(),
                optimizer=self.optimizer.state_dict(),
                processes=processes,
                average=None if self.average is None else self.average.module.state_dict(),
            )

    # --- an epoch ------------------------------------------------------------------------------------------

    def prepare(self, images: torch.Tensor, labels: torch.Tensor) -> Batch:
        """Moves a uint8 batch to the device as float32 of mean 0.5 and deviation 0.5, scaled if need be."""
        images = images.to(self.device, torch.float32, memory_format=self._memory_format, copy=True)
        images = images.div_(127.5).sub_(1)
        if images.shape[-1] != self.image_size:
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return images, labels.to(self.device)

    def _steps_done(self, state: checkpoint.RunState) -> int:
        return (state.epoch - 1) * self.steps + state.step

    def _augmented(self, images: torch.Tensor) -> torch.Tensor:
        """This process's part of a batch, cropped and mirrored as its place in the whole batch says."""
        if self.config.augment == "none":
            return images
        crops = recipe.draw_crops(self.config.batch_size, self.config.seed, self.state.epoch, self.state.step)
        first = self.world.rank * len(images)
        return recipe.crop_and_flip(images, crops[first : first + len(images)])

    def _set_learning_rate(self) -> None:
        if self.config.schedule == "one-cycle":
            factor = recipe.one_cycle(self._steps_done(self.state), self.steps * self.config.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.lr * factor

    def _autocast(self) -> torch.autocast:
        dtype = AMP_DTYPES[self.config.amp]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _share(self) -> torch.Tensor:
        """This process's images of the epoch's remaining batches.

        The order depends on seed and epoch alone, so that a resumed epoch goes on with the same batches.
        The last, incomplete batch is left out: batch norm over one 1x1 map would fail.
        """
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + self.state.epoch) % 2**63)
        order = torch.randperm(len(self.images.train), generator=generator)
        order = order[: self.steps * self.config.batch_size]
        return order.view(self.steps, self.world.size, -1)[self.state.step :, self.world.rank].flatten()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _mean_loss(self) -> float:
        """The mean loss of the epoch so far, as this process sees it."""
        return self.state.loss_sum * self.world.size / self.state.step

    def train_epoch(self) -> None:
        """Trains to the end of the epoch under way; counts in `state`."""
        state, share = self.state, self.config.batch_size // self.world.size
        every, smoothing = self.config.checkpoint_steps, self.config.label_smoothing
        losses: list[torch.Tensor] = []

        def read_losses() -> None:
            # One by one, so that the sum has the same bits wherever a checkpoint falls.
            for loss in torch.stack(losses).tolist() if losses else ():
                state.loss_sum += loss
            losses.clear()

        self.parallel_model.train()
        label = f"epoch {state.epoch}/{self.config.epochs}"
        shown = self.config.progress and self.world.is_main
        started = self._now()
        with progress_bar(label, self.steps, state.step, shown) as bar:
            for batch in batches(self.images.train, self._share(), share, self.config.workers):
                images, labels = self.prepare(self._augmented(batch[0]), batch[1])
                self._set_learning_rate()
                self.optimizer.zero_grad(set_to_none=True)
                with self._autocast():
                    loss = F.cross_entropy(self.parallel_model(images), labels, label_smoothing=smoothing)
                loss.backward()
                self.optimizer.step()
                if self.average is not None:
                    self.average.update_parameters(self.model)
                losses.append(loss.detach() / self.world.size)
                state.step += 1
                if len(losses) == LOSSES_A_READ:
                    read_losses()
                    bar.set_postfix_str(f"loss {self._mean_loss():.4f}", refresh=False)
                bar.update()
                if every and state.step % every == 0 and state.step < self.steps:
                    read_losses()
                    state.seconds += self._now() - started
                    self.save()
                    started = self._now()
        read_losses()
        state.seconds += self._now() - started

    def validate(self) -> tuple[float, float, float]:
        """Accuracy, mean loss and seconds over the test images, each of which counts once."""
        judged = self.model if self.average is None else self.average.module
        # Each process updated its own running statistics of batch norm; the saved ones are to be judged.
        networks = (self.model,) if judged is self.model else (self.model, judged)
        self.world.broadcast([buffer for network in networks for buffer in network.buffers()])
        share = torch.arange(len(self.images.test)).tensor_split(self.world.size)[self.world.rank]
        size = self.config.batch_size
        started = self._now()
        shown = self.config.progress and self.world.is_main
        with progress_bar("validation", -(-len(share) // size), 0, shown) as bar, self._autocast():
            test = batches(self.images.test, share, size, self.config.workers)
            accuracy, loss = validate(judged, test, self.prepare, self.world, bar.update)
        return accuracy, loss, self._now() - started

    def finish_epoch(self, memory: PeakMemory) -> EpochRecord:
        """Validates, records the epoch, moves on to the next and saves."""
        accuracy, loss, seconds = self.validate()
        state = self.state
        (train_loss_sum,) = self.world.sum([state.loss_sum])
        record = EpochRecord(
            epoch=state.epoch,
            train_seconds=round(state.seconds, 3),
            train_loss=train_loss_sum / self.steps,
            val_accuracy=accuracy,
            val_loss=loss,
            val_seconds=round(seconds, 3),
            peak_memory_mib=round(self.world.max([memory.mib()])[0], 1),
        )
        self.state = checkpoint.RunState(state.epoch + 1, 0, 0.0, 0.0, [*state.records, record])
        self.save()
        return record


def describe(run: Run) -> str:
    """One line for people: what trains on what."""
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    images, size = run.images, run.images.image_size
    splits = f"{len(images.train):,} training and {len(images.test):,} test images"
    return (
        f"{run.config.setting}: {parameters:,} parameters, {run.config.layers} layers, {run.device}, "
        f"{torch.get_num_threads()} thread(s), {run.world.size} process(es); "
        f"{splits} of {images.channels}x{size}x{size}, {len(images.classes)} classes"
    )


def _train_in(
    world: World,
    config: TrainConfig,
    on_epoch: Callable[[EpochRecord], object] | None,
    images: ImageData | None,
) -> list[EpochRecord]:
    if config.download is not None:
        if world.is_main:
            data.download(config.download, config.data)
        world.gather(None)  # the others wait
    if images is None:
        images = data.load(config.data, config.image_size, config.train_limit, config.test_limit)
    run = Run(config, images, world)
    if config.progress and world.is_main:
        print(describe(run), file=sys.stderr)
    memory = PeakMemory(world.device)
    while run.state.epoch <= config.epochs:
        memory.reset()
        run.train_epoch()
        record = run.finish_epoch(memory)
        if on_epoch is not None and world.is_main:
            on_epoch(record)
    return run.state.records


def train(
    config: TrainConfig,
    on_epoch: Callable[[EpochRecord], object] | None = None,
    images: ImageData | None = None,
) -> list[EpochRecord]:
    """Trains as `config` says and returns the record of every epoch, those before a resume included.

    Args:
        config: the options.
        on_epoch: called with the record of each epoch trained now, by the main process alone.
        images: data that is loaded already; else ``config.data`` is loaded.

    Raises:
        ConfigError: an option that cannot work, by name.
        DataError: data missing or broken; the message names the file.
        WeightsError: a broken checkpoint; the message names the file.

    >>> from sepconv.models.training import TrainConfig, train
    >>> config = TrainConfig('optimized', 'fashion-mnist-subset', epochs=1, train_limit=8, test_limit=4,
    ...                      batch_size=8, progress=False)
    >>> [record] = train(config)
    >>> record.epoch
    1
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with joined_world(config.device) as world:
        return _train_in(world, config, on_epoch, images)
