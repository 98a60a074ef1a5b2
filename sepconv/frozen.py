"""A separable convolution for inference: weights packed once, batch norms folded, activations fused."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepconv import functional, reference
from sepconv._checks import autocasts, pair
from sepconv._types import Padding, Pair
from sepconv.modules import SeparableConv2d, is_depthwise, is_plain, is_pointwise

__all__ = ["FrozenSeparableConv2d"]

_ops = torch.ops.sepconv
_NAME = "FrozenSeparableConv2d"
_NUMBERS = {name: number for number, name in enumerate(reference.ACTIVATIONS)}
_DEVICES = ("cpu", "meta")  # where there are kernels, if only fake ones
_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
_LAYERS = {nn.Identity: None, nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Hardswish: "hardswish"}


class _Pack(NamedTuple):
    """Packed weights, and of what and for what they were packed."""

    packed: Tensor
    depthwise_weight: Tensor
    pointwise_weight: Tensor
    versions: tuple[int, int] | None
    cpu_capability: str

    def is_of(self, depthwise_weight: Tensor, pointwise_weight: Tensor) -> bool:
        """Whether the weights are those that were packed, unchanged as far as torch can tell."""
        return (
            self.depthwise_weight is depthwise_weight
            and self.pointwise_weight is pointwise_weight
            and (
                self.versions is None
                or self.versions == (depthwise_weight._version, pointwise_weight._version)
            )
        )


class FrozenSeparableConv2d(nn.Module):
    """A separable convolution for inference: what surrounds it folded in, its weights packed once.

    Computes, up to rounding, ::

        middle = middle_activation(depthwise(prologue_activation(input)))
        output = activation(pointwise(middle) + residual)

    in one pass over the input. Batch norms are folded into the weights by :meth:`from_layers`. There is no
    gradient: an input that requires one is refused where gradients are recorded.

    The buffers hold plain weights, and so does the state dict. What the kernels read is a packed copy, made
    at the first call and again when the weights have been moved, cast, loaded or replaced, or the CPU
    capability has changed; it is neither saved nor copied. After a change in place that PyTorch does not
    count (``.data``, ``.numpy()``, tensors made under ``torch.inference_mode()``), call :meth:`repack`.

    Where there is no kernel (other devices and dtypes, the gradient transforms of ``torch.func``,
    forward-mode differentiation) stock functions give the same result.

    Args:
        depthwise_weight: (C_in * m, 1, kh, kw), kept as a buffer without a copy, as are the next three.
        pointwise_weight: (C_out, C_in * m, 1, 1).
        depthwise_bias: (C_in * m,) or None.
        pointwise_bias: (C_out,) or None.
        stride, dilation: of the depthwise convolution.
        padding: of the depthwise convolution: numbers, ``'same'`` or ``'valid'``.
        padding_mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.
        depth_multiplier: m.
        prologue_activation: applied to the input: None, ``'relu'``, ``'relu6'``, ``'hardswish'``, or an
            instance of ``nn.ReLU``, ``nn.ReLU6``, ``nn.Hardswish`` or ``nn.Identity``.
        middle_activation: applied between the two convolutions, likewise.
        activation: applied last, likewise.

    Shape:
        (N, C_in, H, W) to (N, C_out, H', W'), or both without N; ``residual`` has the shape of the output.

    Raises:
        TypeError, ValueError: an argument that is none of the above, by name.
        RuntimeError: from a call, when input or residual do not fit.

    Example:
        >>> import torch, sepconv
        >>> from torch import nn
        >>> depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        >>> pointwise, norm = nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16).eval()
        >>> frozen = sepconv.FrozenSeparableConv2d.from_layers(
        ...     depthwise, pointwise, pointwise_norm=norm, prologue_activation="relu"
        ... )
        >>> image = torch.randn(2, 8, 15, 15)
        >>> with torch.inference_mode():
        ...     expected = norm(pointwise(depthwise(image.relu())))
        ...     torch.testing.assert_close(frozen(image), expected)
        >>> list(frozen.state_dict())
        ['depthwise_weight', 'pointwise_weight', 'pointwise_bias']
    """

    depthwise_weight: Tensor
    pointwise_weight: Tensor
    depthwise_bias: Tensor | None
    pointwise_bias: Tensor | None

    def __init__(
        self,
        depthwise_weight: Tensor,
        pointwise_weight: Tensor,
        depthwise_bias: Tensor | None = None,
        pointwise_bias: Tensor | None = None,
        *,
        stride: Pair = 1,
        padding: Padding = 0,
        dilation: Pair = 1,
        padding_mode: str = "zeros",
        depth_multiplier: int = 1,
        prologue_activation: str | nn.Module | None = None,
        middle_activation: str | nn.Module | None = None,
        activation: str | nn.Module | None = None,
    ) -> None:
        super().__init__()
        weights = {
            "depthwise_weight": depthwise_weight,
            "pointwise_weight": pointwise_weight,
            "depthwise_bias": depthwise_bias,
            "pointwise_bias": pointwise_bias,
        }
        _check_weights(weights, depth_multiplier)
        for name, tensor in weights.items():
            self.register_buffer(name, None if tensor is None else tensor.detach())
        self.in_channels = depthwise_weight.shape[0] // depth_multiplier
        self.out_channels = pointwise_weight.shape[0]
        self.depth_multiplier = depth_multiplier
        self.kernel_size = tuple(depthwise_weight.shape[2:])
        self.stride = _pair("stride", stride)
        self.dilation = _pair("dilation", dilation)
        if padding_mode not in _PADDING_MODES:
            raise _unfit("padding_mode", "one of " + ", ".join(_PADDING_MODES), repr(padding_mode))
        self.padding_mode = padding_mode
        self.prologue_activation = _activation("prologue_activation", prologue_activation)
        self.middle_activation = _activation("middle_activation", middle_activation)
        self.activation = _activation("activation", activation)
        self.padding, self._border = self._split_padding(padding)
        self._packs: dict[torch.dtype, _Pack] = {}

    @classmethod
    def from_layers(
        cls,
        depthwise: nn.Conv2d,
        pointwise: nn.Conv2d,
        *,
        depthwise_norm: nn.BatchNorm2d | None = None,
        pointwise_norm: nn.BatchNorm2d | None = None,
        prologue_activation: str | nn.Module | None = None,
        middle_activation: str | nn.Module | None = None,
        activation: str | nn.Module | None = None,
    ) -> FrozenSeparableConv2d:
        """Freeze a depthwise and a 1x1 convolution, the batch norms behind them and the activations around.

        Weights are copied; norms are folded in float64 and the result rounded to the convolutions' dtype.

        Args:
            depthwise: a plain ``nn.Conv2d`` (no subclass, no hooks) with one group for each input channel.
            pointwise: a plain 1x1 ``nn.Conv2d`` without stride and padding.
            depthwise_norm, pointwise_norm: the ``nn.BatchNorm2d`` behind each, in eval mode, or None.
            prologue_activation, middle_activation, activation: see :class:`FrozenSeparableConv2d`; the
                middle one comes after `depthwise_norm`, the last one after `pointwise_norm` and residual.

        Raises:
            ValueError: a layer is none of these; the message names the argument.
        """
        if not is_depthwise(depthwise):
            raise _unfit("depthwise", "a plain nn.Conv2d with groups equal to in_channels", depthwise)
        if not is_pointwise(pointwise) or pointwise.in_channels != depthwise.out_channels:
            channels = depthwise.out_channels
            raise _unfit("pointwise", f"a plain 1x1 nn.Conv2d of {channels} input channels", pointwise)
        depthwise_weight, depthwise_bias = _folded("depthwise_norm", depthwise, depthwise_norm)
        pointwise_weight, pointwise_bias = _folded("pointwise_norm", pointwise, pointwise_norm)
        return cls(
            depthwise_weight,
            pointwise_weight,
            depthwise_bias,
            pointwise_bias,
            stride=depthwise.stride,
            padding=depthwise.padding,
            dilation=depthwise.dilation,
            padding_mode=depthwise.padding_mode,
            depth_multiplier=depthwise.out_channels // depthwise.in_channels,
            prologue_activation=prologue_activation,
            middle_activation=middle_activation,
            activation=activation,
        )

    @classmethod
    def from_separable_conv2d(
        cls,
        layer: SeparableConv2d,
        *,
        norm: nn.BatchNorm2d | None = None,
        prologue_activation: str | nn.Module | None = None,
        activation: str | nn.Module | None = None,
    ) -> FrozenSeparableConv2d:
        """Freeze a :class:`sepconv.SeparableConv2d`, the batch norm behind it and the activations around.

        Raises:
            ValueError: as :meth:`from_layers`.

        Example:
            >>> import torch, sepconv
            >>> from torch import nn
            >>> layer = sepconv.SeparableConv2d(8, 16, 3, padding=1)
            >>> frozen = sepconv.FrozenSeparableConv2d.from_separable_conv2d(layer, activation=nn.ReLU6())
            >>> image = torch.randn(8, 15, 15)
            >>> with torch.inference_mode():
            ...     torch.testing.assert_close(frozen(image), nn.functional.relu6(layer(image)))
        """
        if not is_plain(layer, SeparableConv2d):
            raise _unfit("layer", "a plain SeparableConv2d", layer)
        return cls.from_layers(
            layer.depthwise,
            layer.pointwise,
            pointwise_norm=norm,
            prologue_activation=prologue_activation,
            activation=activation,
        )

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if functional.is_unbatched(_NAME, input):
            residual = None if residual is None else residual.unsqueeze(0)
            return self.forward(input.unsqueeze(0), residual).squeeze(0)
        if input.shape[1] != self.in_channels:
            raise RuntimeError(
                f"{_NAME}: input must have {self.in_channels} channels, got shape {tuple(input.shape)}"
            )
        dtype = self.pointwise_weight.dtype
        if autocasts(input) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(input.device.type)
            input, residual = _cast(input, dtype), _cast(residual, dtype)
        elif input.dtype != dtype:
            raise RuntimeError(
                f"{_NAME}: input must have the dtype of the weights, {dtype}, got {input.dtype}"
            )
        if self._border is not None:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = F.pad(input, self._border, mode)
        if input.device.type not in _DEVICES or not functional.has_kernel(input):
            return self._stock(input, residual)
        return self._frozen(input, residual)

    def repack(self) -> None:
        """Pack the weights again, after a change in place that PyTorch does not count.

        Example:
            >>> import torch, sepconv
            >>> frozen = sepconv.FrozenSeparableConv2d(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
            >>> frozen(torch.ones(1, 1, 1, 1)).item()
            1.0
            >>> frozen.pointwise_weight.data.fill_(3.0).item()
            3.0
            >>> frozen.repack()
            >>> frozen(torch.ones(1, 1, 1, 1)).item()
            3.0
        """
        packs, self._packs = self._packs, {}
        if self.depthwise_weight.device.type in _DEVICES:
            for dtype in packs:
                self._pack(dtype)

    def extra_repr(self) -> str:
        shown = {"kernel_size": self.kernel_size, "stride": self.stride}
        defaults = {
            "padding": (0, 0),
            "dilation": (1, 1),
            "padding_mode": "zeros",
            "depth_multiplier": 1,
            "prologue_activation": None,
            "middle_activation": None,
            "activation": None,
        }
        values = {name: getattr(self, name) for name in defaults}
        shown |= {name: value for name, value in values.items() if value != defaults[name]}
        described = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{self.in_channels}, {self.out_channels}, {described}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packs": {}}

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.repack()

    def _split_padding(self, padding: Padding) -> tuple[tuple[int, int], tuple[int, int, int, int] | None]:
        """What the kernel pads with zeros, and what F.pad has to add before: (left, right, top, bottom)."""
        more = 0, 0, 0, 0
        if isinstance(padding, str):
            weight = "depthwise_weight", self.depthwise_weight
            padding, more = functional.explicit_padding(_NAME, padding, *weight, self.stride, self.dilation)
        vertical, horizontal = _pair("padding", padding, least=0)
        if self.padding_mode == "zeros":
            return (vertical, horizontal), more if any(more) else None
        border = (horizontal, horizontal + more[1], vertical, vertical + more[3])
        return (0, 0), border if any(border) else None

    def _stock(self, input: Tensor, residual: Tensor | None) -> Tensor:
        dtype = input.dtype
        weights = (self.depthwise_weight, self.pointwise_weight, self.depthwise_bias, self.pointwise_bias)
        output = reference.frozen_separable_conv2d(
            input,
            *(_cast(weight, dtype) for weight in weights),
            residual,
            self.stride,
            self.padding,
            self.dilation,
            self.prologue_activation,
            self.middle_activation,
            self.activation,
        )
        if residual is not None and residual.shape != output.shape:  # it was broadcast
            raise RuntimeError(
                f"{_NAME}: residual must have shape {tuple(output.shape)}, got {tuple(residual.shape)}"
            )
        return output

    def _frozen(self, input: Tensor, residual: Tensor | None) -> Tensor:
        dtype = input.dtype
        if torch.compiler.is_compiling():
            return self._call(input, self._packed_for_graph(dtype), residual)
        buffers = self._buffers
        pack = self._packs.get(dtype)
        if pack is None or not pack.is_of(buffers["depthwise_weight"], buffers["pointwise_weight"]):
            pack = self._pack(dtype)
        try:
            return self._call(input, pack.packed, residual)
        except RuntimeError:
            if pack.cpu_capability == _ops.cpu_capability():
                raise
        return self._call(input, self._pack(dtype).packed, residual)

    def _call(self, input: Tensor, packed: Tensor, residual: Tensor | None) -> Tensor:
        dtype = input.dtype
        buffers = self._buffers
        depthwise_bias, pointwise_bias = buffers["depthwise_bias"], buffers["pointwise_bias"]
        return functional.run_operator(
            _ops.frozen_separable_conv2d.default,
            input,
            packed,
            _cast(depthwise_bias, dtype),
            _cast(pointwise_bias, dtype),
            residual,
            self.out_channels,
            self.depth_multiplier,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            _NUMBERS[self.prologue_activation],
            _NUMBERS[self.middle_activation],
            _NUMBERS[self.activation],
        )

    def _pack(self, dtype: torch.dtype) -> _Pack:
        """Pack the weights in `dtype` (autocast's may differ from theirs) and keep that for later calls."""
        weights = self.depthwise_weight, self.pointwise_weight
        with torch.inference_mode(False):
            packed = _ops.pack_separable_conv2d(*(_cast(weight, dtype) for weight in weights))
        # Tensors made under inference mode have no versions.
        counted = not any(weight.is_inference() for weight in weights)
        versions = tuple(weight._version for weight in weights) if counted else None
        pack = _Pack(packed, *weights, versions, _ops.cpu_capability())
        if type(packed) is Tensor:  # not a fake one
            self._packs = {d: other for d, other in self._packs.items() if other.is_of(*weights)}
            self._packs[dtype] = pack
        return pack

    def _packed_for_graph(self, dtype: torch.dtype) -> Tensor:
        """For torch.compile, packed while it traces, an input of the graph; for torch.export, a part of it.

        An exported program may run on another machine: it packs for itself.
        """
        weights = self.depthwise_weight, self.pointwise_weight
        if not torch.compiler.is_exporting() and self._is_packed(dtype):
            pack = self._packs[dtype]
            if pack.depthwise_weight is weights[0] and pack.pointwise_weight is weights[1]:
                return pack.packed
        return _ops.pack_separable_conv2d(*(_cast(weight, dtype) for weight in weights))

    @torch.compiler.assume_constant_result
    def _is_packed(self, dtype: torch.dtype) -> bool:
        """Runs while torch.compile traces."""
        pack = self._packs.get(dtype)
        if pack is None or not pack.is_of(self.depthwise_weight, self.pointwise_weight):
            self._pack(dtype)
        return dtype in self._packs


def _cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)


def _unfit(name: str, wanted: str, got: object) -> ValueError:
    return ValueError(f"{_NAME}: {name} must be {wanted}, got {got}")


def _pair(name: str, value: Pair, least: int = 1) -> tuple[int, int]:
    values = tuple(pair(value))
    if len(values) != 2:
        raise _unfit(name, "an int or a pair", value)
    if min(values) < least:
        raise _unfit(name, f"at least {least}", value)
    return values


def _activation(name: str, value: str | nn.Module | None) -> str | None:
    """The name of an activation given by name or as a layer."""
    if is_plain(value, *_LAYERS):
        return _LAYERS[type(value)]
    if value is None or (isinstance(value, str) and value in _NUMBERS):
        return value
    raise _unfit(name, "None, nn.ReLU, nn.ReLU6, nn.Hardswish, 'relu', 'relu6' or 'hardswish'", repr(value))


def _check_weights(weights: dict[str, Tensor | None], depth_multiplier: int) -> None:
    for name, tensor in weights.items():
        if not (isinstance(tensor, Tensor) or (tensor is None and name.endswith("bias"))):
            raise TypeError(f"{_NAME}: {name} must be a Tensor, got {type(tensor).__name__}")
    depthwise, pointwise = weights["depthwise_weight"], weights["pointwise_weight"]
    if depth_multiplier < 1:
        raise _unfit("depth_multiplier", "at least 1", depth_multiplier)
    shape = tuple(depthwise.shape)
    if len(shape) != 4 or 0 in shape or shape[1] != 1 or shape[0] % depth_multiplier:
        raise _unfit(
            "depthwise_weight",
            f"of shape (C_in * multiplier, 1, kh, kw) with multiplier {depth_multiplier}",
            shape,
        )
    middle = shape[0]
    shape = tuple(pointwise.shape)
    if len(shape) != 4 or shape[0] < 1 or shape[1:] != (middle, 1, 1):
        raise _unfit("pointwise_weight", f"of shape (C_out, {middle}, 1, 1)", shape)
    for name, channels in (("depthwise_bias", middle), ("pointwise_bias", shape[0])):
        bias = weights[name]
        if bias is not None and tuple(bias.shape) != (channels,):
            raise _unfit(name, f"of shape ({channels},)", tuple(bias.shape))
    for name, tensor in weights.items():
        if tensor is not None and (tensor.dtype, tensor.device) != (depthwise.dtype, depthwise.device):
            wanted = f"{depthwise.dtype} on {depthwise.device}, as depthwise_weight"
            raise _unfit(name, wanted, f"{tensor.dtype} on {tensor.device}")


def _folded(name: str, layer: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor | None]:
    """Copies of weight and bias of `layer` with the `norm` behind it."""
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if norm is None:
        return weight.clone(), None if bias is None else bias.clone()
    if not is_plain(norm, nn.BatchNorm2d) or norm.training or norm.running_mean is None:
        raise _unfit(name, "a plain nn.BatchNorm2d in eval mode with running statistics", norm)
    if norm.num_features != layer.out_channels:
        raise _unfit(name, f"of {layer.out_channels} features", norm)
    # y = (x + bias - mean) / sqrt(var + eps) * gamma + beta
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() if bias is None else bias.double() - norm.running_mean.double()
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return (weight.double() * scale.view(-1, 1, 1, 1)).to(weight.dtype), shift.to(weight.dtype)
