"""ControlNets against their authors' outputs, and how several of them act on a network, or do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from networks import golden, golden_control
from networks.controlled import Controlled, skipping
from networks.test_sizes import giga_macs
from unnoise.conditioning import Cond, Hint
from unnoise.diffusion import predictions, schedules
from unnoise.diffusion.grids import grid
from unnoise.errors import ArgumentError
from unnoise.networks.controlnet import ControlNet, ControlNetConfig
from unnoise.networks.controlnet_mmdit import MMDiTControlNet, MMDiTControlNetConfig
from unnoise.networks.mmdit import MMDiT, MMDiTConfig
from unnoise.networks.unet import UNet, UNetConfig
from unnoise.runtime.control import hint, own_config, scales, window
from unnoise.runtime.denoise import NetworkDenoiser

SD1 = UNetConfig()
SD2 = UNetConfig(head_width=64, context_width=1024, linear_projection=True)
_SDXL = {"head_width": 64, "linear_projection": True, "context_width": 2048, "pooled_width": 2816}
SDXL = UNetConfig(widths=(320, 640, 1280), depths=(0, 2, 10), mid_depth=10, **_SDXL)


@pytest.mark.parametrize(
    ("unet", "parameters", "residuals"), [(SD1, 361_279_120, 13), (SD2, 364_228_240, 13), (SDXL, 1_251_014_160, 10)], ids=["1", "2", "xl"]
)
def test_sizes(unet: UNetConfig, parameters: int, residuals: int) -> None:
    with torch.device("meta"):
        net = ControlNet(ControlNetConfig(unet))
    assert count(net) == parameters
    assert count(net.controlnet_cond_embedding) == 1_086_480
    assert net.control.residuals == len(net.controlnet_down_blocks) + 1 == residuals
    if unet is SD1:
        with torch.device("meta"):
            x, t, cond, picture = torch.zeros(1, 4, 64, 64), torch.zeros(1), Cond(torch.zeros(1, 77, 768)), torch.zeros(1, 3, 512, 512)
        assert giga_macs(lambda: net(x, t, cond, picture)) == pytest.approx(141.65, rel=2e-3)
        assert count(net.controlnet_down_blocks) + count(net.controlnet_mid_block) == 11_479_680


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def test_authors_residuals(shared: Path) -> None:
    io, record, _, net = golden_control.ldm(shared / "golden/controlnet/control_ldm")
    mine = {f"residual.{k:02d}": r for k, r in enumerate(net(io["x"], io["t"], Cond(io["c"]), io["hint"]))}
    assert len(mine) == 5
    golden.assert_recorded(io, record, {**mine, "hint_features": net.controlnet_cond_embedding(io["hint"])})


@pytest.mark.parametrize(
    ("output", "scale", "options"),
    [
        ("eps.no_control", 0.0, {}),
        ("eps.scale1", 1.0, {}),
        ("eps.strength", 0.8, {}),
        ("eps.guess", 0.8, {"guess": "power"}),
        ("eps.only_mid", 1.0, {"only_mid": True}),
    ],
)
@torch.no_grad()
def test_authors_control(shared: Path, output: str, scale: float, options: dict) -> None:
    io, record, unet, net = golden_control.ldm(shared / "golden/controlnet/control_ldm")
    cond = Cond(io["c"], hints=(hint(net, io["hint"], scale, **options),))
    golden.assert_recorded(io, record, {output: Controlled(unet)(io["x"], io["t"], cond)})


def test_guess_mode_scales(shared: Path) -> None:
    """The authors' thirteen; diffusers' from a tenth to one."""
    io, _, _, _ = golden_control.ldm(shared / "golden/controlnet/control_ldm")
    torch.testing.assert_close(scales(13, 0.8, guess="power"), io["guess_scales"])
    torch.testing.assert_close(scales(13, 0.8, guess="logspace")[[0, 6, 12]], torch.tensor([0.08, 0.8 * 10**-0.5, 0.8]).double())


@pytest.mark.parametrize("case", ["controlnet_2b", "controlnet_8b"])
@torch.no_grad()
def test_authors_transformers(shared: Path, case: str) -> None:
    found, mmdit, net = golden_control.sd3(shared / "golden/sd3" / case)
    schedule = schedules.flow(shift=3.0)
    times = schedule.time(2 * ((1 - found["in.sigma"]) / found["in.sigma"]).log())
    latents = found["in.control"].expand(len(times), -1, -1, -1)
    cond = Cond(tokens=found["in.context"], pooled=found["in.y"])
    for k, residual in enumerate(net(found["in.x"], schedule.timestep(times).float(), cond, latents, mmdit)):
        found.assert_close(residual, f"out.residual.{k}")
    denoiser = NetworkDenoiser(mmdit, schedule, predictions.flow)
    for scale, name in ((1.0, "controlled"), (0.0, "plain")):
        estimate = denoiser(found["in.x"], times, Cond(cond.tokens, cond.pooled, hints=(hint(net, latents, scale),)))
        assert isinstance(estimate, Tensor)
        found.assert_close(estimate, f"out.denoised_{name}")


TINY = UNetConfig(widths=(16, 32), depths=(0, 1), blocks=1, heads=2, context_width=12, pooled_width=6, groups=8)
SMALL = MMDiTConfig(in_channels=4, width=32, depth=4, heads=2, context_width=12, pooled_width=6, positions=8)


def lively(module: nn.Module) -> nn.Module:
    """Nothing left at zero."""
    for p in module.parameters():
        nn.init.normal_(p, std=p[0].numel() ** -0.5 if p.dim() > 1 else 0.3)
    return module.eval()


def control(config: ControlNetConfig | None = None) -> ControlNet:
    net = lively(ControlNet(config or ControlNetConfig(TINY)))
    assert isinstance(net, ControlNet)
    return net


FORMS = ["joint", "2b", "8b"]
FAMILIES = ["unet", *FORMS]
Family = tuple[nn.Module, list, int, int]  # network, two nets, channels of a hint, its size beside x


def transformer(form: str, **changes) -> MMDiTControlNet:
    sizes = MMDiTConfig(in_channels=4, width=32, depth=2, heads=2, context_width=12, pooled_width=6, positions=8)
    net = lively(MMDiTControlNet(MMDiTControlNetConfig(sizes, **{"form": form, "hint_channels": 4, **changes})))
    assert isinstance(net, MMDiTControlNet)
    return net


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    torch.manual_seed(1)
    if request.param == "unet":
        return lively(UNet(TINY)), [control(), control()], 3, 8
    return lively(MMDiT(SMALL)), [transformer(request.param), transformer(request.param)], 4, 1


def asked(family: Family, rows: int = 3) -> tuple[Tensor, Tensor, Cond, list[Tensor]]:
    """x, t, Cond, and an image for each of two nets."""
    _, _, channels, times = family
    cond = Cond(tokens=torch.randn(rows, 5, 12), pooled=torch.randn(rows, 6))
    images = [torch.rand(rows, channels, 8 * times, 8 * times) for _ in range(2)]
    return torch.randn(rows, 4, 8, 8), torch.linspace(100, 900, rows), cond, images


def shown(cond: Cond, *hints: Hint) -> Cond:
    return Cond(cond.tokens, cond.pooled, hints=hints)


@torch.no_grad()
def test_a_fresh_net_adds_nothing_and_a_lively_one_does(family: Family) -> None:
    network, nets, _, _ = family
    x, t, cond, (image, _) = asked(family)
    plain = network(x, t, cond)
    nets[1].reset_parameters()
    fresh = Controlled(network)(x, t, shown(cond, hint(nets[1], image)))
    assert torch.equal(fresh, plain)
    assert (Controlled(network)(x, t, shown(cond, hint(nets[0], image))) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("steady", [False, True])
@torch.no_grad()
def test_off_is_exactly_off(family: Family, steady: bool) -> None:
    """Scale 0, other times, no hint: the plain network's bits, in rows alone and beside rows that are controlled."""
    network, nets, _, _ = family
    x, t, cond, (image, other) = asked(family)
    controlled, plain = Controlled(network, steady=steady), network(x, t, cond)
    for off in (hint(nets[0], image, 0.0), hint(nets[0], image, acts=(900.0, 1000.0)), hint(nets[0], image, acts=(0.0, 99.0))):
        assert torch.equal(controlled(x, t, shown(cond, off)), plain)
        assert torch.equal(controlled(x, t, shown(cond, off, hint(nets[1], other, 0.0))), plain)
    assert torch.equal(controlled(x, t, cond), plain)
    beside = controlled(x, t, shown(cond, hint(nets[0], image, acts=(400.0, 500.0)), hint(nets[1], other, acts=(500.0, torch.inf))))
    assert torch.equal(beside[0], plain[0])  # t = 100; the others are 500 and 900
    assert (beside[1:] - plain[1:]).flatten(1).abs().amax(1).min() > 1e-3
    added = controlled.residuals(x, t, shown(cond, hint(nets[0], image, acts=(400.0, 500.0), only_mid=True)))
    last = len(hint(nets[0], image).scales[0]) - 1
    for i, residual in zip(own_config(nets[0]).places(network.config), added, strict=True):
        if residual is not None:  # minus zero leaves every number as it is, zeros of both signs included
            silent = residual[[0, 2]] if i == last else residual
            assert not silent.any() and silent.signbit().all()


@torch.no_grad()
def test_a_net_that_is_off_is_not_asked(family: Family) -> None:
    network, nets, _, _ = family
    x, t, cond, (image, _) = asked(family)
    for p in nets[0].parameters():
        p.fill_(torch.nan)
    mixed = shown(cond, hint(nets[0], image, 0.0))
    assert Controlled(network)(x, t, mixed).isfinite().all()
    half = hint(nets[0], image, acts=(600.0, torch.inf))  # broken for the last row, and for that alone
    assert Controlled(network)(x, t, shown(cond, half)).isfinite().flatten(1).all(1).tolist() == [True, True, False]


@pytest.mark.parametrize("steady", [False, True])
@torch.no_grad()
def test_rows_are_independent(family: Family, steady: bool) -> None:
    """Stacked with other requests, one of them without control, each row is what it is alone."""
    network, nets, _, _ = family
    x, t, cond, (image, other) = asked(family)
    controlled = Controlled(network, steady=steady)
    requests = [
        Cond(cond.tokens[:1], cond.pooled[:1], hints=(hint(nets[0], image[:1], 0.7),)),
        Cond(cond.tokens[1:2], cond.pooled[1:2]),
        Cond(cond.tokens[2:], cond.pooled[2:], hints=(hint(nets[0], image[2:]), hint(nets[1], other[2:], 0.5))),
    ]
    together = controlled(x, t, Cond.stack(requests))
    alone = torch.cat([controlled(x[i : i + 1], t[i : i + 1], request) for i, request in enumerate(requests)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    again = controlled(x.flip(0), t.flip(0), Cond.stack(requests).pick(torch.tensor([2, 1, 0]))).flip(0)
    torch.testing.assert_close(again, together, rtol=1e-5, atol=1e-5)
    if steady:  # a row has the same companions in number, so the same bits
        pairs = [Cond.stack(requests).rows(0, 2), Cond.stack([requests[0], requests[0]])]
        one, two = (controlled(x[index], t[index], pair) for index, pair in zip(([0, 1], [0, 0]), pairs, strict=True))
        assert torch.equal(one[0], two[0])


@torch.no_grad()
def test_two_nets_are_the_sum_of_their_scaled_residuals(family: Family) -> None:
    network, nets, _, _ = family
    x, t, cond, images = asked(family)
    rates = (0.3, 1.7)
    hints = [hint(net, image, rate) for net, image, rate in zip(nets, images, rates, strict=True)]
    given = [net(x, t, cond, image, network) for net, image in zip(nets, images, strict=True)]
    total = [sum(rate * r for rate, r in zip(rates, pair, strict=True)) for pair in zip(*given, strict=True)]
    spread = [None if i is None else total[i] for i in own_config(nets[0]).places(network.config)]
    expected = network(x, t, cond, residuals=spread)
    torch.testing.assert_close(Controlled(network)(x, t, shown(cond, *hints)), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_residuals_have_the_dtype_of_the_network_and_scales_more_than_its_digits(family: Family) -> None:
    network, nets, _, _ = family
    x, t, cond, (image, _) = asked(family)
    network.bfloat16(), nets[0].bfloat16()
    told = Cond(cond.tokens.bfloat16(), cond.pooled.bfloat16(), hints=(hint(nets[0], image, 0.8),))
    x = x.bfloat16()
    given = nets[0](x, t, Cond(told.tokens, told.pooled), image, network)
    mine = Controlled(network).residuals(x, t, told)
    for i, residual in zip(own_config(nets[0]).places(network.config), mine, strict=True):
        assert (residual is None) if i is None else torch.equal(residual, (given[i].float() * 0.8).bfloat16())


@torch.no_grad()
def test_pooled_conditions_and_text_are_heard(family: Family) -> None:
    network, nets, _, _ = family
    x, t, cond, (image, _) = asked(family)
    first = nets[0](x, t, cond, image, network)[-1]
    sizes = nets[0].config
    deaf = isinstance(sizes, MMDiTControlNetConfig) and sizes.form != "joint"  # blocks of the image alone
    assert torch.equal(nets[0](x, t, Cond(cond.tokens + 1, cond.pooled), image, network)[-1], first) is deaf
    assert (nets[0](x, t, Cond(cond.tokens, cond.pooled + 1), image, network)[-1] - first).abs().max() > 1e-3
    assert (nets[0](x, t + 50, cond, image, network)[-1] - first).abs().max() > 1e-3
    assert (nets[0](x, t, cond, image + 0.5, network)[-1] - first).abs().max() > 1e-3


@torch.no_grad()
def test_channel_order_and_averaging() -> None:
    torch.manual_seed(2)
    plain = control()
    x, t, cond, (image, _) = asked((lively(UNet(TINY)), [], 3, 8))
    expected = plain(x, t, cond, image)
    turned, averaged = (control(ControlNetConfig(TINY, **how)) for how in ({"channel_order": "bgr"}, {"global_pool": True}))
    for net in (turned, averaged):
        net.load_state_dict(plain.state_dict())
    for one, other in zip(turned(x, t, cond, image.flip(1)), expected, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(averaged(x, t, cond, image), expected, strict=True):
        torch.testing.assert_close(one, other.flatten(2).mean(2)[..., None, None])
    network = lively(UNet(TINY))
    spread = [r.mean((2, 3), keepdim=True).expand_as(r) for r in expected]
    shuffled = Controlled(network)(x, t, shown(cond, hint(averaged, image, guess="power")))  # nothing that could grow
    torch.testing.assert_close(shuffled, network(x, t, cond, residuals=spread), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_channels_that_join_x_are_the_networks_own() -> None:
    """An inpainting U-Net has five channels more; its ControlNets do not see them."""
    wide = lively(UNet(UNetConfig(**{**vars(TINY), "in_channels": 9})))
    net = control()
    x, t, cond, (image, _) = asked((wide, [net], 3, 8))
    joined = Cond(cond.tokens, cond.pooled, concat=torch.randn(3, 5, 8, 8), hints=(hint(net, image),))
    expected = wide(x, t, Cond(cond.tokens, cond.pooled, concat=joined.concat), residuals=net(x, t, cond, image))
    assert torch.equal(Controlled(wide)(x, t, joined), expected)


@torch.no_grad()
def test_zero_pooled_text_is_not_heard() -> None:
    network = lively(MMDiT(SMALL))
    for form in ("joint", "8b"):
        net = transformer(form, zero_pooled=True)
        x, t, cond, (image, _) = asked((network, [net], 4, 1))
        other = Cond(cond.tokens, torch.zeros(3, 6))
        assert torch.equal(net(x, t, cond, image, network)[-1], net(x, t, other, image, network)[-1])


@pytest.mark.parametrize(
    ("depth", "form", "expected"), [(4, "8b", [0, 0, 1, 1]), (5, "2b", [0, 0, 0, 1, 1]), (4, "joint", [0, 0, 1, None])]
)
def test_residuals_are_spread_over_the_blocks(depth: int, form: str, expected: list[int | None]) -> None:
    assert transformer(form).config.places(MMDiTConfig(**{**vars(SMALL), "depth": depth})) == expected


@torch.no_grad()
def test_a_skipped_block_takes_its_residual_along() -> None:
    network, net = lively(MMDiT(SMALL)), transformer("8b")
    assert isinstance(network, MMDiT)
    x, t, cond, (image, _) = asked((network, [net], 4, 1))
    weak = Controlled(network)(x, t, skipping(shown(cond, hint(net, image)), [1, 3], 4))
    r0, r1 = net(x, t, cond, image, network)
    assert torch.equal(weak, network(x, t, skipping(cond, [1, 3], 4), residuals=[r0, None, r1, None]))


SCHEDULES = {"vp": schedules.vp("scaled_linear"), "flow": schedules.flow(shift=3.0)}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [1, 7, 20, 50])
def test_windows_hold_the_steps_that_diffusers_keeps(schedule: schedules.Schedule, spacing: str, steps: int) -> None:
    times = grid(schedule, spacing, steps)
    told, net = schedule.timestep(times[:-1]).float(), control()
    steps = len(told)
    for start, end in ((0.0, 1.0), (0.0, 0.5), (0.2, 0.8), (0.5, 1.0), (0.3, 0.3), (1.0, 1.0)):
        kept = [not (i / steps < start or (i + 1) / steps > end) for i in range(steps)]
        acts = hint(net, torch.zeros(steps, 3, 8, 8), acts=window(schedule, times, start, end)).acts(told)
        assert acts.tolist() == kept, (start, end)


@pytest.mark.parametrize("shares", [(-0.1, 1.0), (0.0, 1.1), (0.6, 0.5), (float("nan"), 1.0)])
def test_shares_that_are_none_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(ArgumentError, match="expected shares of the steps, 0 <= start <= end <= 1"):
        window(SCHEDULES["flow"], [1.0, 0.5, 0.0], *shares)


def test_nets_that_do_not_fit_are_refused(family: Family) -> None:
    _, nets, _, _ = family
    if isinstance(nets[0], ControlNet):
        others: list[tuple[object, str]] = [(SMALL, "a ControlNet of U-Nets for a network of kind 'mmdit'")]
        for name, value in (("widths", (16, 64)), ("blocks", 2), ("context_width", 20), ("pooled_width", 0)):
            others.append((UNetConfig(**{**vars(TINY), name: value}), f"a ControlNet of {name} .* for a U-Net of"))
    else:
        others = [
            (TINY, "a ControlNet of MMDiTs for a network of kind 'unet'"),
            (MMDiTConfig(**{**vars(SMALL), "depth": 1}), "at most one a block"),
        ]
        others.append((MMDiTConfig(**{**vars(SMALL), "width": 64}), "of width 32 for an MMDiT of 64"))
    for other, message in others:
        with pytest.raises(ArgumentError, match=message):
            own_config(nets[0]).places(other)


def test_hints_that_do_not_fit_are_refused(family: Family) -> None:
    network, nets, channels, times = family
    x, t, cond, (image, _) = asked(family)
    controlled = Controlled(network)
    half, whole = 4 * times, 8 * times
    with pytest.raises(ArgumentError, match=rf"got a hint of \({channels}, {half}, {half}\), expected .*\({channels}, {whole}, {whole}\)"):
        controlled(x, t, shown(cond, hint(nets[0], image[..., :half, :half])))
    with pytest.raises(ArgumentError, match="got 1 scales for a ControlNet of"):
        controlled(x, t, shown(cond, Hint(image, torch.ones(3, 1), torch.tensor([[0.0, 1000.0]] * 3), nets[0])))
    with pytest.raises(ArgumentError, match=r"got guess 'half': expected one of power, logspace, or None"):
        hint(nets[0], image, guess="half")  # pyright: ignore[reportArgumentType]


def test_rows_of_hints() -> None:
    net, image = control(), torch.rand(4, 3, 16, 16)
    cond = Cond(labels=torch.arange(4), hints=(hint(net, image), hint(net, image.flip(0), 0.5)))
    some = cond.pick(torch.tensor([3, 1]))
    assert some.hints is not None and len(some) == len(some.hints[0]) == 2 and len(Cond(hints=cond.hints)) == 4
    assert torch.equal(some.hints[1].image, image.flip(0)[[3, 1]]) and torch.equal(cond.rows(1, 3).hints[0].image, image[1:3])
    stacked = Cond.stack([Cond(labels=torch.arange(2)), cond])
    assert stacked.hints is not None and len(stacked) == 6
    assert stacked.hints[1].acts(torch.full((6,), 500.0)).tolist() == [False, False, True, True, True, True]
    assert Cond.stack([Cond(labels=torch.arange(2))]).hints is None
