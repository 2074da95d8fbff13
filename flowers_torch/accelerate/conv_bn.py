"""A copy of a network for inference: batch norm folded into the convolutions, their activations fused.

On a CPU the elementwise layers of small networks cost as much as their convolutions. Folding takes batch norm
away (its scale and shift become weights and bias); oneDNN then computes a convolution and its activation in
one pass.
"""

import contextlib
import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, get_same_padding, pad_same
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

# Activations that oneDNN appends to a convolution: its name for them and their bounds.
FUSED: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # relative deviation (L2) of the answers to noise


def noise(size: int) -> Tensor:
    """Two images (2, 3, size, size) to try networks out with, the same ones each time."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@dataclasses.dataclass
class Unit:
    """A convolution, the batch norm that takes its output, and what takes that; by their names."""

    conv: str
    norm: str
    activation: str = ""  # a module behind the norm; empty: the norm's own, or none


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How a convolution lies on its maps, as oneDNN wants to be told."""

    padding: list[int]
    stride: list[int]
    dilation: list[int]
    groups: int
    same: list[int] | None  # kernel size, where the padding follows from the map (TensorFlow's `same`)

    @classmethod
    def of(cls, conv: nn.Conv2d) -> "Geometry":
        """Of a convolution that `is_fusable`."""
        same = list(conv.kernel_size) if isinstance(conv, Conv2dSame) else None
        padding = [0, 0] if same else [int(side) for side in conv.padding]
        return cls(padding, list(conv.stride), list(conv.dilation), conv.groups, same)

    def pad(self, maps: Tensor) -> Tensor:
        """Maps with the padding that is not left to oneDNN."""
        return pad_same(maps, self.same, self.stride, self.dilation) if self.same else maps


def convolve(
    maps: Tensor, weight: Tensor, bias: Tensor | None, where: Geometry, activation: type[nn.Module]
) -> Tensor:
    """Convolution, bias and activation in one call of oneDNN, without a gradient; all of one type."""
    name, bounds = FUSED[activation]
    convolution: Any = torch.ops.mkldnn._convolution_pointwise  # what torch.compile's CPU kernels call too
    settings = (where.padding, where.stride, where.dilation, where.groups)
    answer: Tensor = convolution(maps, weight, bias, *settings, name, bounds, "")
    return answer


class FusedConv2d(nn.Module):
    """Convolution, bias and activation in one call.

    Args:
        conv: With bias; one that `is_fusable`.
        activation: One of `FUSED`.
        dtype: Of the arithmetic and of the output.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        weight = conv.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", conv.bias.detach().to(dtype) if conv.bias is not None else None)
        self.where, self.activation = Geometry.of(conv), type(activation)
        wider = F.pad(weight, (1, 0, 1, 0)) if self.where.same and conv.dilation == (1, 1) else None
        self.register_buffer("wider", wider)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        where, weight = self._without_padding(maps)
        bias: Any = self.bias
        return convolve(where.pad(maps.to(weight.dtype)), weight, bias, where, self.activation)

    def _without_padding(self, maps: Tensor) -> tuple[Geometry, Any]:
        """Geometry and weight that need no padded copy of the maps, where there are such.

        Uneven `same` padding has a row and a column more behind the maps than in front. With zeros in front
        of the kernel it is even padding, which oneDNN does on the way.
        """
        if self.where.same is None:
            return self.where, self.weight
        how = (self.where.same, self.where.stride, self.where.dilation)
        totals = {get_same_padding(*sides) for sides in zip(maps.shape[2:], *how, strict=True)}
        total = totals.pop()
        if totals or (total % 2 and self.wider is None):
            return self.where, self.weight
        even = dataclasses.replace(self.where, padding=[(total + 1) // 2] * 2, same=None)
        return even, self.wider if total % 2 else self.weight


def fold(
    model: nn.Module, forward: Callable[[nn.Module], Tensor], dtype: torch.dtype = torch.float32
) -> nn.Module:
    """A folded copy of a network, or the network itself where the copy would not answer the same.

    Which layers follow each other is seen, not known; that the copy answers the same is tried, not believed.

    Args:
        model: In inference mode; stays as it is.
        forward: Runs a network, this one or its copy, over the same few images. What it does not reach stays
            unfolded.
        dtype: That the convolutions shall compute in. On a CPU they are fused for float32 and bfloat16;
            elsewhere batch norm is folded, and autocast chooses the type. A copy for bfloat16 is to be
            called under autocast, for the layers that are not fused.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    with torch.no_grad(), without_tf32():
        units, expected = find_units(model, forward)
        apart = [Unit(unit.conv, unit.norm) for unit in units]
        fused = [(dtype, units), (dtype, apart)] if on_cpu and dtype in ALLOWED else []
        for kind, some in (*fused, (None, units)):
            made = _replace(model, some, kind)
            try:
                # Layers that are not fused take the others' bf16 under autocast, as they will in use.
                with torch.autocast("cpu", dtype, enabled=kind is torch.bfloat16):
                    answer = forward(made).float()
            except RuntimeError:  # this processor or build of torch does not fuse
                continue
            deviation = (answer - expected).norm() / expected.norm().clamp(min=1e-12)
            if deviation <= ALLOWED[kind or torch.float32]:
                return made
    return model


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Full float32 on a GPU inside: with ten bits of mantissa no copy would answer the same."""
    places: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    try:
        yield
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed


def find_units(model: nn.Module, forward: Callable[[nn.Module], Tensor]) -> tuple[list[Unit], Tensor]:
    """Convolutions whose output a batch norm takes, each used once, and the network's answer in float32."""
    calls: Counter[str] = Counter()
    takers: Counter[str] = Counter()  # of a norm's output
    makers: dict[int, str] = {}  # id of an output -> name of its maker
    alive: list[Tensor] = []  # a dead tensor's id would be used again
    units: dict[str, Unit] = {}  # by the name of the norm
    names = {module: name for name, module in model.named_modules()}

    def seen(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name, maker = names[module], makers.get(id(inputs[0]), "")
        calls[name] += 1
        if isinstance(module, nn.BatchNorm2d):
            if maker and isinstance(model.get_submodule(maker), nn.Conv2d):
                units[name] = Unit(maker, name)
        elif maker in units:
            takers[maker] += 1
            units[maker].activation = "" if isinstance(module, nn.Conv2d) else name
        makers[id(output)] = name
        alive.append(output)

    kinds = (nn.Conv2d, nn.BatchNorm2d, *FUSED)
    layers = [m for m in model.modules() if isinstance(m, kinds) and not isinstance(m, nn.Identity)]
    hooks = [module.register_forward_hook(seen) for module in layers]
    try:
        answer = forward(model).float()
    finally:
        for hook in hooks:
            hook.remove()
    for unit in units.values():
        if calls[unit.activation] > 1 or takers[unit.norm] > 1:
            unit.activation = ""
    return [unit for unit in units.values() if calls[unit.conv] == calls[unit.norm] == 1], answer


def parts(model: nn.Module, unit: Unit) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.Module, str] | None:
    """Convolution, norm, activation and the name of its place; None where there is nothing to fold."""
    conv, norm = model.get_submodule(unit.conv), model.get_submodule(unit.norm)
    if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
        return None
    if norm.running_mean is None:
        return None  # it follows the batch
    if isinstance(norm, BatchNormAct2d) and type(norm.drop) is not nn.Identity:
        return None  # in training it does more than can be seen here
    # timm's norm has its activation inside; others have it behind, or a function that is not seen.
    activation: nn.Module = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
    if type(activation) is nn.Identity and unit.activation:
        return conv, norm, model.get_submodule(unit.activation), unit.activation
    return conv, norm, activation, unit.norm


def statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Stored mean and variance."""
    kept: Any = norm.running_mean, norm.running_var
    return kept


def _replace(model: nn.Module, units: list[Unit], dtype: torch.dtype | None) -> nn.Module:
    """The copy: folded, and with a type of arithmetic also fused."""
    made = copy.deepcopy(model)
    for unit in units:
        if not (found := parts(made, unit)):
            continue
        conv, norm, activation, where = found
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, *statistics(norm), norm.eps, norm.weight, norm.bias
        )
        put(made, unit.norm, activation if where == unit.norm else nn.Identity())
        if dtype and type(activation) in FUSED and is_fusable(conv):
            put(made, unit.conv, FusedConv2d(conv, activation, dtype))
            put(made, where, nn.Identity())
    return made


def is_fusable(conv: nn.Conv2d) -> bool:
    """Whether oneDNN's call can stand for it."""
    plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return plain or type(conv) is Conv2dSame


def put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Sets the submodule of that name."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
