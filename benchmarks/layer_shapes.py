"""Named layers of real networks, read from shapes/*.txt.

A line is a layer: a name and the integers that the file's header names; `count` and `multiplier` may be left
out. A line such as `stages: relu | bn+relu6 | bn` says what the network does before the depthwise
convolution, between the two, and after the pointwise one; it holds for the layers below it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

FOLDER = Path(__file__).with_name("shapes")
ACTIVATIONS = ("relu", "relu6")


@dataclass(frozen=True)
class Stage:
    """What happens to every channel at one place of a layer."""

    batch_norm: bool = False
    activation: str | None = None

    @staticmethod
    def parse(text: str) -> Stage:
        words = [] if text == "none" else text.split("+")
        batch_norm = words[:1] == ["bn"]
        activation = words[batch_norm:]
        if len(activation) > 1 or not set(activation) <= set(ACTIVATIONS):
            raise ValueError(
                f"a stage is none, bn, one of {', '.join(ACTIVATIONS)}, or as bn+relu, got {text!r}"
            )
        return Stage(batch_norm, *activation)

    def __str__(self) -> str:
        return "+".join(["bn"] * self.batch_norm + [self.activation] * bool(self.activation)) or "none"


@dataclass(frozen=True)
class Stages:
    """The three places: before the depthwise convolution, between the two, after the pointwise one."""

    prologue: Stage = Stage()
    middle: Stage = Stage()
    epilogue: Stage = Stage()

    @staticmethod
    def parse(text: str) -> Stages:
        parts = [part.strip() for part in text.split("|")]
        if len(parts) != 3:
            raise ValueError(f"stages are three, as in 'relu | none | bn', got {text!r}")
        stages = Stages(*map(Stage.parse, parts))
        if stages.prologue.batch_norm:
            raise ValueError(f"no batch norm folds into what stands before it, got {text!r}")
        return stages

    def __str__(self) -> str:
        return f"{self.prologue} | {self.middle} | {self.epilogue}"


PLAIN = Stages()


@dataclass(frozen=True)
class Layer:
    """One separable convolution as a line of a shape file names it; `height` and `width` are the input's."""

    name: str
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    count: int = 1  # how often the network has it
    multiplier: int = 1  # depthwise outputs for each input channel
    stages: Stages = PLAIN

    @property
    def geometry(self) -> tuple[int, ...]:
        """Everything but name, count and stages: layers that agree here are the same work."""
        return tuple(getattr(self, column) for column in COLUMNS[1:] if column != "count")

    @property
    def middle_channels(self) -> int:
        return self.in_channels * self.multiplier

    @property
    def output_size(self) -> tuple[int, int]:
        reach = self.dilation * (self.kernel - 1) + 1
        return (
            (self.height + 2 * self.padding - reach) // self.stride + 1,
            (self.width + 2 * self.padding - reach) // self.stride + 1,
        )

    def flops(self, batch: int = 1) -> int:
        """Floating point operations of one forward pass: two for each multiply-add of both stages."""
        height, width = self.output_size
        return 2 * batch * height * width * self.middle_channels * (self.kernel**2 + self.out_channels)

    def elements(self, batch: int = 1) -> int:
        """Elements that any implementation must move: input and weights once in, output once out."""
        height, width = self.output_size
        weights = self.middle_channels * (self.kernel**2 + self.out_channels)
        image = self.in_channels * self.height * self.width + self.out_channels * height * width
        return batch * image + weights


COLUMNS = [field.name for field in fields(Layer)][:-1]
REQUIRED = COLUMNS[: COLUMNS.index("count")]


def available() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def _layer(line: str, stages: Stages) -> Layer:
    words = line.split()
    if not len(REQUIRED) <= len(words) <= len(COLUMNS) or not all(word.isdecimal() for word in words[1:]):
        raise ValueError(f"expected a name and integers ({' '.join(COLUMNS)}), got {line!r}")
    columns = dict(zip(COLUMNS[1:], map(int, words[1:]), strict=False))
    layer = Layer(words[0], **columns, stages=stages)
    if (
        min(value for column, value in columns.items() if column != "padding") < 1
        or min(layer.output_size) < 1
    ):
        raise ValueError(f"sizes must be positive and give an output, got {line!r}")
    return layer


def parse(text: str, source: str) -> list[Layer]:
    """Layers of a shape file's text; `source` names it in errors."""
    layers, stages = [], PLAIN
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.split("#")[0].strip()
        try:
            if line.startswith("stages:"):
                stages = Stages.parse(line.removeprefix("stages:").strip())
            elif line:
                layers.append(_layer(line, stages))
        except ValueError as error:
            raise ValueError(f"{source}, line {number}: {error}") from None
    if not layers:
        raise ValueError(f"{source}: no layers")
    return layers


def path_of(name: str) -> Path:
    """shapes/<name>.txt, or the file at path `name`."""
    path = Path(name) if name.endswith(".txt") else FOLDER / f"{name}.txt"
    if not path.is_file():
        raise ValueError(
            f"shapes must be one of {', '.join(available())} or the path of a .txt file, got {name!r}"
        )
    return path


def load(name: str) -> list[Layer]:
    """The layers of shapes/<name>.txt, or of the file at path `name`."""
    path = path_of(name)
    return parse(path.read_text(), str(path))
