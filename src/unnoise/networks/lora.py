"""Adapters: small changes of a network's weights, which never touch the weights themselves.

    LoRA, LoCon     D = (alpha / r) up down                              (Hu et al. 2021)
    with a core     D = (alpha / r) core x_1 up x_2 down                 (Tucker form, for convolutions)
    LoHa            D = (alpha / r) (a1 b1) o (a2 b2)                    (Hyeon-Woo et al. 2022)
    LoKr            D = (alpha / r) w1 (x) w2, each factor whole or a product
    full            D = the difference itself
    DoRA            W' = m (W + D) / |W + D|, a magnitude a row or a column (Liu et al. 2024)

At scale s the network has W' = W + s D; for DoRA see `Decomposed`. `apply` gives a network that shares every untouched tensor with the
original and has new tensors where there is a change: to take an adapter off is to drop the copy, and its memory is `touched`.

`live` gives such a copy without a merge: LoRA computes beside the layer, y = W x + s (alpha / r) up down x. Its factors can be trained, and
its scale may differ from row to row.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unnoise.errors import ArgumentError

Size = tuple[int, int]  # of a weight as a matrix: its first axis, and all others


def ratio(alpha: Tensor | None, rank: int) -> float:
    """alpha / rank; without alpha, or with 0, the authors' code takes alpha = rank."""
    return float(alpha) / rank if alpha is not None and float(alpha) else 1.0


def _tucker(core: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """core (p, q, kh, kw), rows (out, p), columns (q, in) -> (out, in kh kw)."""
    return torch.einsum("op,pqhw,qi->oihw", rows, core, columns).flatten(1)


@dataclass(frozen=True)
class LowRank:
    """up (out, r), down (r, in); of convolutions with trailing axes. With `mid` (r, r, kh, kw) both are 1x1."""

    up: Tensor
    down: Tensor
    mid: Tensor | None = None
    alpha: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def size(self) -> Size:
        return self.up.shape[0], self.down[0].numel() * (self.mid[0, 0].numel() if self.mid is not None else 1)

    def change(self, like: Tensor) -> Tensor:
        up, down = self.up.to(like).flatten(1), self.down.to(like).flatten(1)
        product = up @ down if self.mid is None else _tucker(self.mid.to(like), up, down)
        return ratio(self.alpha, self.rank) * product.reshape(like.shape)


@dataclass(frozen=True)
class Hadamard:
    """LoHa: a (out, r), b (r, in), twice. With cores t (r, r, kh, kw): a (r, out), b (r, in)."""

    a1: Tensor
    b1: Tensor
    a2: Tensor
    b2: Tensor
    t1: Tensor | None = None
    t2: Tensor | None = None
    alpha: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.b1.shape[0]

    @property
    def size(self) -> Size:
        if self.t1 is None:
            return self.a1.shape[0], self.b1.shape[1]
        return self.a1.shape[1], self.b1.shape[1] * self.t1[0, 0].numel()

    def change(self, like: Tensor) -> Tensor:
        first, second = self._product(self.a1, self.b1, self.t1, like), self._product(self.a2, self.b2, self.t2, like)
        return ratio(self.alpha, self.rank) * (first * second).reshape(like.shape)

    @staticmethod
    def _product(a: Tensor, b: Tensor, core: Tensor | None, like: Tensor) -> Tensor:
        a, b = a.to(like), b.to(like)
        return a @ b if core is None else _tucker(core.to(like), a.T, b)


@dataclass(frozen=True)
class Kronecker:
    """LoKr: w1 (x) w2, where w1 is (a, b) or w1_a w1_b, and w2 is (c, d, ...), w2_a w2_b, or a core t2 between w2_a (r, c) and w2_b (r, d).

    Where both factors are whole there is no rank, and alpha does nothing.
    """

    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None
    alpha: Tensor | None = None

    @property
    def rank(self) -> int:
        """0: both factors are whole."""
        product = self.w1_b if self.w1_b is not None else self.w2_b
        return product.shape[0] if product is not None else 0

    @property
    def size(self) -> Size:
        (a, b), (c, d) = self._first(), self._second()
        return a * c, b * d

    def _first(self) -> Size:
        if self.w1 is not None:
            return self.w1.shape[0], self.w1.shape[1]
        return _given(self.w1_a).shape[0], _given(self.w1_b).shape[1]

    def _second(self) -> Size:
        if self.w2 is not None:
            return self.w2.shape[0], self.w2[0].numel()
        a, b = _given(self.w2_a), _given(self.w2_b)
        if self.t2 is not None:
            return a.shape[1], b.shape[1] * self.t2[0, 0].numel()
        return a.shape[0], b[0].numel()

    def change(self, like: Tensor) -> Tensor:
        first = self.w1.to(like) if self.w1 is not None else _given(self.w1_a).to(like) @ _given(self.w1_b).to(like)
        strength = ratio(self.alpha, self.rank) if self.rank else 1.0
        return strength * torch.kron(first, self._right(like)).reshape(like.shape)

    def _right(self, like: Tensor) -> Tensor:
        if self.w2 is not None:
            return self.w2.to(like).flatten(1)
        a, b = _given(self.w2_a).to(like), _given(self.w2_b).to(like)
        return _tucker(self.t2.to(like), a.T, b) if self.t2 is not None else a @ b.flatten(1)


def _given(factor: Tensor | None) -> Tensor:
    if factor is None:
        raise TypeError("a LoKr factor is either whole or two matrices")
    return factor


@dataclass(frozen=True)
class Difference:
    """The whole change of a weight, a bias or a norm."""

    difference: Tensor

    @property
    def rank(self) -> int:
        return 0

    @property
    def size(self) -> Size:
        return _size(self.difference)

    def change(self, like: Tensor) -> Tensor:
        return self.difference.to(like).reshape(like.shape)


Additive = LowRank | Hadamard | Kronecker | Difference


@dataclass(frozen=True)
class Decomposed:
    """DoRA: the sum W + D scaled to the learnt magnitudes m, of which each axis of length 1 is normed over.

    The two that write such files agree at scale 1 only:

        LyCORIS     (W + D) (s (m / |W + D| - 1) + 1)
        PEFT        m (W + s D) / |W + s D|

    LyCORIS' tends to W + D, not to W, as s tends to 0.
    """

    change: Additive
    magnitude: Tensor  # (out, 1, ...) or (1, in, ...)
    dialect: Literal["lycoris", "peft"] = "lycoris"

    @property
    def rank(self) -> int:
        return self.change.rank

    @property
    def size(self) -> Size:
        return self.change.size

    def of(self, weight: Tensor, scale: float) -> Tensor:
        m = self.magnitude.to(weight)
        m = m.reshape(*m.shape, *[1] * (weight.ndim - m.ndim))
        axes = [i for i, n in enumerate(m.shape) if n == 1]
        joined = weight + (scale if self.dialect == "peft" else 1.0) * self.change.change(weight)
        norm = torch.linalg.vector_norm(joined, dim=axes or None, keepdim=True).clamp_min(torch.finfo(joined.dtype).eps)
        return joined * (m / norm) if self.dialect == "peft" else joined * (scale * (m / norm - 1) + 1)


@dataclass(frozen=True)
class Rows:
    """A change of some rows: those of a joint query-key-value matrix that are one matrix elsewhere, or two halves exchanged."""

    delta: Additive | Decomposed
    rows: tuple[tuple[int, int], ...]  # (first, last + 1) of ours, in the other's order

    @property
    def rank(self) -> int:
        return self.delta.rank

    @property
    def size(self) -> Size:
        return self.delta.size

    def of(self, weight: Tensor, scale: float) -> Tensor:
        changed = adapted(torch.cat([weight[a:b] for a, b in self.rows]), self.delta, scale)
        result = weight.clone()
        for (a, b), piece in zip(self.rows, changed.split([b - a for a, b in self.rows]), strict=True):
            result[a:b] = piece
        return result


Delta = LowRank | Hadamard | Kronecker | Difference | Decomposed | Rows
Deltas = Mapping[str, tuple[Delta, ...]]  # by parameter; several on one act one after another


def adapted(weight: Tensor, delta: Delta, scale: float) -> Tensor:
    """W' of a weight in the precision that it is given in."""
    if isinstance(delta, Decomposed | Rows):
        return delta.of(weight, scale)
    return weight + scale * delta.change(weight)


def fits(delta: Delta, shape: Sequence[int]) -> bool:
    """Whether a parameter of this shape can have it."""
    if isinstance(delta, Rows):
        return delta.size == (sum(b - a for a, b in delta.rows), math.prod(shape[1:]))
    return delta.size == (shape[0], math.prod(shape[1:]))


def tensors(delta: Delta) -> Iterable[Tensor]:
    """All that it holds."""
    for part in fields(delta):
        value = getattr(delta, part.name)
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Delta):
            yield from tensors(value)


def apply(network: nn.Module, deltas: Deltas, scale: float = 1.0) -> nn.Module:
    """The network with an adapter; the one given stays as it is, and shares with it every tensor that the adapter does not change."""
    return stack(network, [(deltas, scale)])


def stack(network: nn.Module, adapters: Sequence[tuple[Deltas, float]]) -> nn.Module:
    """Several adapters at once, added in float32 and rounded once. Scale 0 is exactly off; with nothing left, the network itself.

    Additive kinds may stand in any order; DoRA renormalises what those before it have made. Raises AttributeError for a parameter that the
    network lacks.
    """
    active = [(deltas, scale) for deltas, scale in adapters if scale]
    names = dict.fromkeys(name for deltas, _ in active for name in deltas)
    return replaced(network, {name: _changed(network.get_parameter(name), name, active) for name in names})


def touched(network: nn.Module, names: Iterable[str]) -> int:
    """Bytes of new tensors in a copy that changes these parameters."""
    return sum(p.numel() * p.element_size() for p in map(network.get_parameter, set(names)))


@torch.no_grad()
def _changed(weight: Tensor, name: str, adapters: Sequence[tuple[Deltas, float]]) -> Tensor:
    result = weight.to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    for deltas, scale in adapters:
        for delta in deltas.get(name, ()):
            result = adapted(result, delta, scale)
    return result.to(weight.dtype)


def replaced(network: nn.Module, changes: Mapping[str, Tensor | nn.Module]) -> nn.Module:
    """A copy of the modules on the way to these parameters and modules, with them in place; everything else is shared."""
    if not changes:
        return network
    twin = _copied(network)
    below: dict[str, dict[str, Tensor | nn.Module]] = {}
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        if rest:
            below.setdefault(first, {})[rest] = value
        elif isinstance(value, nn.Module):
            twin._modules[first] = value
        else:
            twin._parameters[first] = nn.Parameter(value, requires_grad=False)
    for first, inner in below.items():
        twin._modules[first] = replaced(network.get_submodule(first), inner)
    return twin


def _copied(module: nn.Module) -> nn.Module:
    """A module that shares parameters and submodules with this one, and has tables of its own for them and for hooks."""
    twin = copy.copy(module)
    twin.__dict__.update({name: copy.copy(value) for name, value in vars(module).items() if isinstance(value, dict)})
    return twin


Scale = float | Tensor  # one for all rows, or one for each row, (b,)


class Branch(nn.Module):
    """LoRA beside one layer: x -> s (alpha / r) up(down(x)), on some of the layer's outputs where `rows` names them.

    Of a convolution, `down` (with a core: `mid`) has its kernel, stride and padding, and `up` is 1x1. Factors that are parameters stay
    the same objects, so that an optimiser may hold them; they compute in the dtype of x.
    """

    def __init__(self, delta: LowRank, scale: Scale, rows: tuple[tuple[int, int], ...] = ()):
        super().__init__()
        self.up, self.down, self.mid = (
            _parameter(delta.up),
            _parameter(delta.down),
            delta.mid if delta.mid is None else _parameter(delta.mid),
        )
        self.ratio, self.scale, self.rows = ratio(delta.alpha, delta.rank), scale, rows

    def forward(self, x: Tensor, layer: nn.Linear | nn.Conv2d) -> Tensor:
        change = self._convolved(x, layer) if isinstance(layer, nn.Conv2d) else self._projected(x)
        axis = 1 if isinstance(layer, nn.Conv2d) else change.ndim - 1
        if self.rows:  # the other outputs get nothing
            index = torch.cat([torch.arange(a, b, device=x.device) for a, b in self.rows])
            shape = [len(layer.weight) if i == axis else n for i, n in enumerate(change.shape)]
            change = change.new_zeros(shape).index_copy(axis, index, change)
        scale = self.scale.to(change).view(-1, *[1] * (change.ndim - 1)) if isinstance(self.scale, Tensor) else self.scale
        return scale * self.ratio * change

    def _projected(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down.to(x).flatten(1)), self.up.to(x).flatten(1))

    def _convolved(self, x: Tensor, layer: nn.Conv2d) -> Tensor:
        place = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        up = self.up.to(x).flatten(1)[:, :, None, None]
        if self.mid is None:
            return F.conv2d(F.conv2d(x, self.down.to(x).reshape(-1, *layer.weight.shape[1:]), **place), up)
        return F.conv2d(F.conv2d(F.conv2d(x, self.down.to(x).flatten(1)[:, :, None, None]), self.mid.to(x), **place), up)


def _parameter(factor: Tensor) -> nn.Parameter:
    return factor if isinstance(factor, nn.Parameter) else nn.Parameter(factor, requires_grad=False)


def live(network: nn.Module, adapters: Sequence[tuple[Deltas, Scale]]) -> nn.Module:
    """`stack` without a merge: a copy of the network whose layers have the adapters beside them, and share their weights with it.

    Layers keep their classes, names and weights. A layer has its branches in the submodule `lora`, which a forward hook adds to its output.
    Raises ArgumentError for a change that is no LoRA of a Linear or Conv2d, AttributeError for a parameter that the network lacks.
    """
    branches: dict[str, list[Branch]] = {}
    for deltas, scale in adapters:
        for name, several in deltas.items():
            branches.setdefault(name.rpartition(".")[0], []).extend(_branch(network, name, delta, scale) for delta in several)
    return replaced(network, {path: _beside(network.get_submodule(path), new) for path, new in branches.items()})


def _branch(network: nn.Module, name: str, delta: Delta, scale: Scale) -> Branch:
    path, _, leaf = name.rpartition(".")
    layer, inner = network.get_submodule(path), delta.delta if isinstance(delta, Rows) else delta
    plain = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    if not isinstance(inner, LowRank) or not plain or leaf != "weight":
        raise ArgumentError(f"got a {type(inner).__name__} of {name}: only LoRA of Linear and Conv2d runs beside a layer, merge the others")
    return Branch(inner, scale, delta.rows if isinstance(delta, Rows) else ())


def _beside(layer: nn.Module, new: Sequence[Branch]) -> nn.Module:
    twin, earlier = _copied(layer), getattr(layer, "lora", None)
    if earlier is None:
        twin.register_forward_hook(_add)
    twin.add_module("lora", nn.ModuleList([*(earlier or ()), *new]))
    return twin


def _add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    for branch in layer.get_submodule("lora").children():
        output = output + branch(inputs[0], layer)
    return output


def _size(tensor: Tensor) -> Size:
    return tensor.shape[0], math.prod(tensor.shape[1:])
