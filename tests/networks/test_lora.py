"""Adapters against their closed forms, and what they leave alone: the weights that they are put on."""

from __future__ import annotations

import hashlib
import threading

import pytest
import torch
from torch import Tensor, nn

from unnoise.errors import ArgumentError
from unnoise.networks import lora
from unnoise.networks.lora import Decomposed, Delta, Deltas, Difference, Hadamard, Kronecker, LowRank, Rows


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.conv = nn.Conv2d(6, 8, 3, padding=1)
        self.inner = nn.ModuleDict({"linear": nn.Linear(8, 12), "other": nn.Linear(12, 12)})
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).flatten(2).transpose(1, 2)
        return self.inner["other"](self.inner["linear"](h))


def low_rank(out: int, in_: int, rank: int = 2, alpha: float | None = 1.0) -> LowRank:
    return LowRank(torch.randn(out, rank), torch.randn(rank, in_), alpha=None if alpha is None else torch.tensor(alpha))


def of_net(alpha: float = 1.0) -> Deltas:
    return {"inner.linear.weight": (low_rank(12, 8, alpha=alpha),), "conv.weight": (low_rank(8, 54, alpha=alpha),)}


def digest(network: nn.Module) -> str:
    state = network.state_dict()
    return hashlib.sha256(b"".join(name.encode() + value.numpy().tobytes() for name, value in state.items())).hexdigest()


@pytest.mark.parametrize(("alpha", "strength"), [(None, 1.0), (0.0, 1.0), (2.0, 1.0), (1.0, 0.5), (6.0, 3.0)])
def test_alpha_is_over_the_rank_and_the_rank_where_it_is_missing_or_zero(alpha: float | None, strength: float) -> None:
    delta, weight = low_rank(5, 4, alpha=alpha), torch.randn(5, 4)
    torch.testing.assert_close(lora.adapted(weight, delta, 0.7), weight + 0.7 * strength * delta.up @ delta.down)


def test_convolutions_are_two_convolutions_in_a_row() -> None:
    """The definition: x passes down (3x3), then up (1x1)."""
    up, down, x = torch.randn(5, 2, 1, 1), torch.randn(2, 4, 3, 3), torch.randn(1, 4, 7, 7)
    change = LowRank(up, down).change(torch.zeros(5, 4, 3, 3))
    torch.testing.assert_close(nn.functional.conv2d(x, change), nn.functional.conv2d(nn.functional.conv2d(x, down), up))


def test_a_core_is_three_convolutions_in_a_row() -> None:
    up, mid, down, x = torch.randn(5, 2, 1, 1), torch.randn(2, 3, 3, 3), torch.randn(3, 4, 1, 1), torch.randn(1, 4, 7, 7)
    delta = LowRank(up, down, mid)
    expected = nn.functional.conv2d(nn.functional.conv2d(nn.functional.conv2d(x, down), mid), up)
    assert lora.fits(delta, (5, 4, 3, 3))
    torch.testing.assert_close(nn.functional.conv2d(x, delta.change(torch.zeros(5, 4, 3, 3))), expected)


def test_loha_is_the_product_of_two_products() -> None:
    a1, b1, a2, b2 = torch.randn(5, 2), torch.randn(2, 36), torch.randn(5, 2), torch.randn(2, 36)
    delta = Hadamard(a1, b1, a2, b2, alpha=torch.tensor(4.0))
    torch.testing.assert_close(delta.change(torch.zeros(5, 4, 3, 3)), 2 * ((a1 @ b1) * (a2 @ b2)).view(5, 4, 3, 3))
    core = torch.randn(2, 2, 3, 3)
    with_core = Hadamard(a1.T, b1[:, :4], a2.T, b2[:, :4], core, core)
    first, second = (LowRank(a, b[:, :4], core).change(torch.zeros(5, 4, 3, 3)) for a, b in ((a1, b1), (a2, b2)))
    torch.testing.assert_close(with_core.change(torch.zeros(5, 4, 3, 3)), first * second)
    assert lora.fits(delta, (5, 4, 3, 3)) and lora.fits(with_core, (5, 4, 3, 3))


KRONECKERS = {
    "both whole": {"w1": (2, 3), "w2": (4, 5)},
    "second in two": {"w1": (2, 3), "w2_a": (4, 2), "w2_b": (2, 5)},
    "first in two": {"w1_a": (2, 2), "w1_b": (2, 3), "w2": (4, 5)},
    "both in two": {"w1_a": (2, 2), "w1_b": (2, 3), "w2_a": (4, 2), "w2_b": (2, 5)},
}


@pytest.mark.parametrize("name", KRONECKERS)
def test_lokr_is_blocks_of_the_second_factor(name: str) -> None:
    """Block (i, j) of a Kronecker product is w1[i, j] w2; alpha over rank only where there is a rank."""
    parts = {part: torch.randn(shape) for part, shape in KRONECKERS[name].items()}
    delta, like = Kronecker(**parts, alpha=torch.tensor(6.0)), torch.zeros(8, 15)
    w1 = parts["w1"] if "w1" in parts else parts["w1_a"] @ parts["w1_b"]
    w2 = parts["w2"] if "w2" in parts else parts["w2_a"] @ parts["w2_b"]
    found = delta.change(like)
    assert lora.fits(delta, like.shape)
    for i in range(2):
        for j in range(3):
            block = found[4 * i : 4 * i + 4, 5 * j : 5 * j + 5]
            torch.testing.assert_close(block, (1.0 if name == "both whole" else 3.0) * w1[i, j] * w2)


def test_lokr_of_convolutions() -> None:
    w1, w2 = torch.randn(2, 3), torch.randn(4, 5, 3, 3)
    found = Kronecker(w1=w1, w2=w2).change(torch.zeros(8, 15, 3, 3))
    torch.testing.assert_close(found[4:, 5:10], w1[1, 1] * w2)
    a, b, core = torch.randn(2, 4), torch.randn(2, 5), torch.randn(2, 2, 3, 3)
    found = Kronecker(w1=w1, w2_a=a, w2_b=b, t2=core).change(torch.zeros(8, 15, 3, 3))
    torch.testing.assert_close(found[4:, 5:10], w1[1, 1] * LowRank(a.T, b, core).change(torch.zeros(4, 5, 3, 3)))


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3, 3)], ids=["linear", "convolution"])
@pytest.mark.parametrize("axis", [0, 1], ids=["out", "in"])
def test_dora_has_its_magnitudes_at_scale_1(shape: tuple[int, ...], axis: int) -> None:
    weight, change = torch.randn(shape), Difference(torch.randn(shape))
    m = torch.rand([n if i == axis else 1 for i, n in enumerate(shape)]) + 0.5
    for dialect in ("lycoris", "peft"):
        found = lora.adapted(weight, Decomposed(change, m, dialect), 1.0)
        norms = found.movedim(axis, 0).flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, m.flatten())
    assert torch.allclose(*(lora.adapted(weight, Decomposed(change, m, d), 1.0) for d in ("lycoris", "peft")), atol=1e-6)


def test_dora_at_other_scales_is_what_each_dialect_says() -> None:
    weight, d, m = torch.randn(5, 4), torch.randn(5, 4), torch.rand(5, 1) + 0.5
    joined = weight + d
    lycoris = joined * (0.3 * (m / joined.norm(dim=1, keepdim=True) - 1) + 1)
    torch.testing.assert_close(lora.adapted(weight, Decomposed(Difference(d), m), 0.3), lycoris)
    half = weight + 0.3 * d
    peft = m * half / half.norm(dim=1, keepdim=True)
    torch.testing.assert_close(lora.adapted(weight, Decomposed(Difference(d), m, "peft"), 0.3), peft)


def test_dora_of_a_row_of_zeros_is_zero() -> None:
    found = lora.adapted(torch.zeros(2, 3), Decomposed(Difference(torch.zeros(2, 3)), torch.ones(2, 1), "peft"), 1.0)
    assert torch.equal(found, torch.zeros(2, 3))


def test_rows_change_their_own_and_no_others() -> None:
    weight, third, swapped = torch.randn(6, 4), low_rank(2, 4), low_rank(6, 4)
    found = lora.adapted(weight, Rows(third, ((2, 4),)), 0.5)
    torch.testing.assert_close(found[2:4], weight[2:4] + 0.5 * third.change(weight[2:4]))
    assert torch.equal(found[:2], weight[:2]) and torch.equal(found[4:], weight[4:])
    found = lora.adapted(weight, Rows(swapped, ((3, 6), (0, 3))), 1.0)
    torch.testing.assert_close(found, weight + swapped.change(weight).roll(3, dims=0))
    assert lora.fits(Rows(third, ((2, 4),)), (6, 4)) and not lora.fits(Rows(third, ((2, 6),)), (6, 4))


@pytest.mark.parametrize(
    "delta",
    [low_rank(8, 6), Hadamard(*[torch.randn(8, 2), torch.randn(2, 6)] * 2), Difference(torch.randn(8, 6))],
    ids=lambda d: type(d).__name__,
)
def test_another_shape_does_not_fit(delta: Delta) -> None:
    assert lora.fits(delta, (8, 6)) and lora.fits(delta, (8, 6, 1, 1))
    assert not lora.fits(delta, (6, 8)) and not lora.fits(delta, (8, 6, 3, 3)) and not lora.fits(delta, (48,))


def test_the_weights_are_the_same_bytes_after_50_cycles() -> None:
    net = Net()
    before, pointers = digest(net), [p.data_ptr() for p in net.parameters()]
    adapters = [of_net(), of_net(), of_net(3.0)]
    x = torch.randn(1, 6, 4, 4)
    plain = net(x)
    for i in range(50):
        on = lora.stack(net, [(adapters[(i + j) % 3], (-1) ** j * 1e3) for j in range(1 + i % 3)])
        assert not torch.equal(on(x), plain)
    assert digest(net) == before and [p.data_ptr() for p in net.parameters()] == pointers
    assert torch.equal(net(x), plain)


def test_untouched_tensors_are_shared_and_touched_ones_are_counted() -> None:
    net, deltas = Net(), of_net()
    on = lora.apply(net, deltas)
    own = {name for (name, a), b in zip(net.named_parameters(), on.parameters(), strict=True) if a.data_ptr() != b.data_ptr()}
    assert own == set(deltas)
    assert lora.touched(net, deltas) == 4 * (8 * 54 + 12 * 8)
    assert on.get_submodule("inner.other") is net.get_submodule("inner.other")


def test_scale_0_is_the_network_itself() -> None:
    net = Net()
    dora = {"inner.linear.weight": (Decomposed(low_rank(12, 8), torch.ones(12, 1)),)}
    assert lora.apply(net, dora, 0.0) is net and lora.apply(net, {}) is net


def test_adapters_add_up_in_any_order() -> None:
    net, x = Net().double(), torch.randn(1, 6, 4, 4, dtype=torch.float64)
    one, two = of_net(), of_net(2.0)
    expected = net.conv.weight + 0.5 * one["conv.weight"][0].change(net.conv.weight) - 0.2 * two["conv.weight"][0].change(net.conv.weight)  # type: ignore[union-attr]
    there = lora.stack(net, [(one, 0.5), (two, -0.2)])
    back = lora.stack(net, [(two, -0.2), (one, 0.5)])
    in_turn = lora.apply(lora.apply(net, one, 0.5), two, -0.2)
    torch.testing.assert_close(there.get_parameter("conv.weight").data, expected.data)
    torch.testing.assert_close(back(x), there(x))
    torch.testing.assert_close(in_turn(x), there(x))


def test_a_sum_in_half_precision_is_rounded_once() -> None:
    """Two changes of half a unit in the last place each: added one by one they would be lost."""
    net = Net(torch.bfloat16)
    net.conv.weight.data.fill_(1.0)
    half = {"conv.weight": (Difference(torch.full((8, 6, 3, 3), 2.0**-8)),)}  # bfloat16 has steps of 2^-7 above 1
    on = lora.stack(net, [(half, 1.0), (half, 1.0)])
    weight = on.get_parameter("conv.weight")
    assert weight.dtype == torch.bfloat16 and torch.equal(weight.float(), torch.full((8, 6, 3, 3), 1 + 2.0**-7))


def test_requests_side_by_side_equal_their_solo_runs() -> None:
    net, x = Net(), torch.randn(2, 6, 4, 4)
    adapters: list[Deltas] = [of_net(), of_net(2.0), {}]
    solo = [lora.apply(net, deltas, 0.7)(x) for deltas in adapters]
    found: dict[int, list[Tensor]] = {i: [] for i in range(3)}

    def request(i: int) -> None:
        for _ in range(20):
            found[i].append(lora.apply(net, adapters[i], 0.7)(x))

    threads = [threading.Thread(target=request, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, solo[i]) for i in range(3) for result in found[i]) and all(len(f) == 20 for f in found.values())


def test_hooks_of_a_copy_are_not_the_original_s() -> None:
    net = Net()
    on = lora.apply(net, of_net())
    calls: list[int] = []
    on.register_forward_pre_hook(lambda *_: calls.append(1))
    net(torch.randn(1, 6, 4, 4))
    assert not calls


def test_a_parameter_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="nowhere"):
        lora.apply(Net(), {"nowhere.weight": (low_rank(2, 2),)})


# The live form


class Layers(nn.Module):
    """A convolution with stride and padding, one of 1x1, and Linear layers, one of them a joint matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.point = nn.Conv2d(8, 8, 1)
        self.inner = nn.ModuleDict({"qkv": nn.Linear(8, 12), "out": nn.Linear(4, 8, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        h = self.point(self.down(x)).flatten(2).transpose(1, 2)
        q, k, v = self.inner["qkv"](h).chunk(3, dim=-1)
        return self.inner["out"](q * k + v)


def of_layers() -> Deltas:
    """A pair, a pair with a core, a pair flattened to matrices, a third of a joint matrix, and its two halves exchanged."""
    core = LowRank(torch.randn(8, 2, 1, 1), torch.randn(3, 6, 1, 1), torch.randn(2, 3, 3, 3), torch.tensor(2.0))
    return {
        "down.weight": (LowRank(torch.randn(8, 2, 1, 1), torch.randn(2, 6, 3, 3), alpha=torch.tensor(1.0)), core),
        "point.weight": (low_rank(8, 8),),
        "inner.qkv.weight": (low_rank(12, 8), Rows(low_rank(4, 8), ((4, 8),)), Rows(low_rank(12, 8), ((6, 12), (0, 6)))),
        "inner.out.weight": (low_rank(8, 4, alpha=None),),
    }


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 * expected.abs().max().item())


@pytest.mark.parametrize("scales", [(1.0,), (0.7, -0.3), (0.5, 0.0, 2.0)], ids=str)
def test_the_live_form_is_the_merge(scales: tuple[float, ...]) -> None:
    net, x = Layers().double(), torch.randn(2, 6, 8, 8, dtype=torch.float64)
    adapters = [(of_layers(), scale) for scale in scales]
    on = lora.live(net, adapters)
    assert (on(x) - net(x)).abs().max() > 0.1
    assert_near(on(x), lora.stack(net, adapters)(x))


def test_in_single_precision_they_differ_by_rounding() -> None:
    net, x, deltas = Layers(), torch.randn(2, 6, 8, 8), of_layers()
    merged = lora.apply(net, deltas, 0.7)(x)
    torch.testing.assert_close(lora.live(net, [(deltas, 0.7)])(x), merged, rtol=0, atol=1e-5 * merged.abs().max().item())


def test_a_scale_for_each_row() -> None:
    """Every row is the network that has this row's scales merged; 0 is the network itself."""
    net, x = Layers().double(), torch.randn(3, 6, 8, 8, dtype=torch.float64)
    one, two = of_layers(), of_layers()
    first, second = torch.tensor([0.0, 1.0, 0.3]), torch.tensor([0.0, -0.5, 0.0])
    found = lora.live(net, [(one, first), (two, second)])(x)
    for i in range(3):
        merged = lora.stack(net, [(one, first[i].item()), (two, second[i].item())])
        torch.testing.assert_close(found[i : i + 1], merged(x[i : i + 1]), rtol=1e-6, atol=1e-6)
    assert torch.equal(found[:1], net(x[:1]))


def test_a_network_that_is_live_takes_another_adapter() -> None:
    net, x, one, two = Layers().double(), torch.randn(2, 6, 8, 8, dtype=torch.float64), of_layers(), of_layers()
    in_turn = lora.live(lora.live(net, [(one, 0.5)]), [(two, 0.2)])
    assert_near(in_turn(x), lora.stack(net, [(one, 0.5), (two, 0.2)])(x))


def test_taken_off_the_base_is_the_same_bits() -> None:
    net, x = Layers(), torch.randn(2, 6, 8, 8)
    before, plain, names = digest(net), net(x), [name for name, _ in net.named_modules()]
    for _ in range(5):
        on = lora.live(net, [(of_layers(), 1e3)])
        assert not torch.equal(on(x), plain)
        shared = dict(net.named_parameters())
        assert all(p is shared[name] for name, p in on.named_parameters() if name in shared)
    assert digest(net) == before and torch.equal(net(x), plain) and [name for name, _ in net.named_modules()] == names


def test_layers_keep_their_classes_names_and_weights() -> None:
    net = Layers()
    on = lora.live(net, [(of_layers(), 1.0)])
    assert isinstance(on.get_submodule("down"), nn.Conv2d) and isinstance(on.get_submodule("inner.qkv"), nn.Linear)
    assert set(dict(net.named_parameters())) <= set(dict(on.named_parameters()))


def test_a_gradient_reaches_the_factors_alone_and_is_that_of_the_merge() -> None:
    """d loss / d up and d down beside the layer against those of W + (alpha / r) up down, written out."""
    net, x = Layers().double().requires_grad_(False), torch.randn(2, 6, 8, 8, dtype=torch.float64)
    up, down = (nn.Parameter(torch.randn(*shape, dtype=torch.float64)) for shape in ((12, 2), (2, 8)))
    lora.live(net, [({"inner.qkv.weight": (LowRank(up, down, alpha=torch.tensor(6.0)),)}, 0.5)])(x).square().sum().backward()
    assert all(p.grad is None for p in net.parameters()) and up.grad is not None and down.grad is not None
    found = up.grad.clone(), down.grad.clone()
    weight = net.get_parameter("inner.qkv.weight") + 0.5 * 3.0 * up @ down
    torch.func.functional_call(net, {"inner.qkv.weight": weight}, (x,)).square().sum().backward()
    assert_near(found[0], up.grad - found[0])  # gradients add up
    assert_near(found[1], down.grad - found[1])


@pytest.mark.parametrize(
    ("name", "delta"),
    [
        ("inner.qkv.weight", Difference(torch.zeros(12, 8))),
        ("inner.qkv.weight", Decomposed(low_rank(12, 8), torch.ones(12, 1))),
        ("inner.qkv.bias", low_rank(12, 1)),
    ],
    ids=["difference", "dora", "bias"],
)
def test_other_kinds_are_merged(name: str, delta: Delta) -> None:
    with pytest.raises(ArgumentError, match=rf"of {name}: only LoRA of Linear and Conv2d runs beside a layer"):
        lora.live(Layers(), [({name: (delta,)}, 1.0)])
