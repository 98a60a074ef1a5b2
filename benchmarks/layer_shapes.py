"""Named layers of real networks, read from shapes/*.txt."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

FOLDER = Path(__file__).with_name("shapes")


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

    @property
    def geometry(self) -> tuple[int, ...]:
        """Everything but name and count: layers that agree here are the same work."""
        return tuple(getattr(self, field.name) for field in fields(self)[1:-1])

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
        return 2 * batch * height * width * self.in_channels * (self.kernel**2 + self.out_channels)

    def elements(self, batch: int = 1) -> int:
        """Elements that any implementation must move: input and weights once in, output once out."""
        height, width = self.output_size
        weights = self.in_channels * (self.kernel**2 + self.out_channels)
        image = self.in_channels * self.height * self.width + self.out_channels * height * width
        return batch * image + weights


def available() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def parse(text: str, source: str) -> list[Layer]:
    """Layers of a shape file's text; `source` names it in errors."""
    columns = [field.name for field in fields(Layer)]
    layers = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) != len(columns) or not all(word.isdecimal() for word in words[1:]):
            wanted = " ".join(columns)
            raise ValueError(
                f"{source}, line {number}: expected a name and integers ({wanted}), got {line!r}"
            )
        layer = Layer(words[0], *map(int, words[1:]))
        positive = set(columns[1:]) - {"padding"}
        if any(getattr(layer, column) < 1 for column in positive) or min(layer.output_size) < 1:
            raise ValueError(
                f"{source}, line {number}: sizes must be positive and give an output, got {line!r}"
            )
        layers.append(layer)
    if not layers:
        raise ValueError(f"{source}: no layers")
    return layers


def load(name: str) -> list[Layer]:
    """The layers of shapes/<name>.txt, or of the file at path `name`."""
    path = Path(name) if name.endswith(".txt") else FOLDER / f"{name}.txt"
    if not path.is_file():
        raise ValueError(
            f"shapes must be one of {', '.join(available())} or the path of a .txt file, got {name!r}"
        )
    return parse(path.read_text(), str(path))
