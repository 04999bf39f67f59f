"""The pretended device itself: every violation is planted, and what is allowed passes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretend.device import WHERE, PretendDevice, PretendTensor, Refused


@pytest.fixture
def device() -> Iterator[PretendDevice]:
    with PretendDevice() as opened:
        yield opened


@pytest.fixture
def x(device: PretendDevice) -> Tensor:
    return torch.arange(6.0, device=WHERE).view(2, 3)


MIXED: dict[str, Callable[[Tensor], object]] = {
    "a sum": lambda x: x + torch.ones(3),
    "the CPU's side first": lambda x: torch.ones(3) + x,
    "a product": lambda x: x @ torch.ones(3, 2),
    "rows joined": lambda x: torch.cat([x, torch.ones(1, 3)]),
    "a network of the CPU": lambda x: nn.Linear(3, 2)(x),
    "a condition of the CPU": lambda x: torch.where(torch.ones(3, dtype=torch.bool), x, x),
    "an index of the device for the CPU": lambda x: torch.ones(6)[x.long()],
    "a table of the CPU": lambda x: F.embedding(x.long(), torch.ones(9, 2)),
    "rows of the CPU's choice": lambda x: x.index_select(0, torch.tensor([0])),
    "values of the CPU for places of the device": lambda x: x.index_put((x[0].long()[:2],), torch.ones(2, 3)),
    "values of the device for places of the CPU": lambda x: torch.ones(2, 3).index_put((torch.tensor([0]),), x[:1]),
    "a number of the CPU changed": lambda x: torch.zeros(()).add_(x.sum()),
    "a generator of the CPU": lambda x: torch.randn(2, device=WHERE, generator=torch.Generator()),
}


@pytest.mark.parametrize("mix", MIXED.values(), ids=MIXED)
def test_devices_may_not_mix(x: Tensor, mix: Callable[[Tensor], object]):
    with pytest.raises((Refused, RuntimeError), match=r"privateuseone|CPU"):
        mix(x)


ALLOWED: dict[str, Callable[[Tensor], Tensor]] = {
    "a number of the CPU": lambda x: x * torch.tensor(2.0),
    "Python's number": lambda x: 1 - x,
    "an index of the CPU": lambda x: x[torch.tensor([1, 0])],
    "a number through a mask": lambda x: x.masked_fill(x > 2, 0.0),
    "a choice": lambda x: torch.where(x > 2, x, 0.0),
    "a slice": lambda x: x[:, 1:].clone(),
    "a view changed": lambda x: x.clone().view(-1).add_(1).view(2, 3),
    "something like it": lambda x: torch.ones_like(x) + x.new_zeros(3),
    "rows of its own choice": lambda x: x.index_select(0, torch.ones(1, dtype=torch.long, device=x.device)),
}


@pytest.mark.parametrize("use", ALLOWED.values(), ids=ALLOWED)
def test_what_a_gpu_does_gives_the_numbers_of_the_cpu_and_no_read(device: PretendDevice, x: Tensor, use: Callable[[Tensor], Tensor]):
    made = use(x)
    assert made.device == WHERE and device.reads == []
    with device.silent():
        assert torch.equal(made.cpu(), use(torch.arange(6.0).view(2, 3)))


READS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x[0, 0].item(),
    "float": lambda x: float(x[0, 0]),
    "int": lambda x: int(x[0, 0]),
    "bool": lambda x: bool(x[0, 0] > 0),
    "if": lambda x: 1 if (x > 0).any() else 0,
    "a slice's end": lambda x: x[: x[0, 1].long()],
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu", torch.float16),
    "to, not waiting": lambda x: x.to("cpu", non_blocking=True),
    "copied into one of the CPU": lambda x: torch.zeros(2, 3).copy_(x),
    "numpy by force": lambda x: x.numpy(force=True),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 1),
    "argwhere": lambda x: torch.argwhere(x > 1),
    "unique": lambda x: x.unique(),
    "masked_select": lambda x: x.masked_select(x > 1),
    "a mask as index": lambda x: x[x > 1],
    "values through a mask": lambda x: x.index_put((x > 1,), x.new_zeros(())),
    "repeats": lambda x: x[0].repeat_interleave(x[1].long()),
    "lengths from the device": lambda x: x[0].split(x[0].long().tolist()),
    "bincount": lambda x: torch.bincount(x.flatten().long()),
}


@pytest.mark.parametrize("look", READS.values(), ids=READS)
def test_every_look_at_a_number_is_written_down_with_its_line(device: PretendDevice, x: Tensor, look: Callable[[Tensor], object]):
    look(x)
    assert device.reads, "nothing was noticed"
    for wait in device.reads:
        assert wait.where.startswith(f"pretend/test_device.py:{look.__code__.co_firstlineno} <lambda>")
    assert device.reads[0].what in device.report()


def test_a_read_is_counted_once(device: PretendDevice, x: Tensor):
    for look in (READS["item"], READS["cpu"], READS["nonzero"], READS["a mask as index"]):
        look(x)
    assert len(device.reads) == 4


def test_numpy_is_refused(device: PretendDevice, x: Tensor):
    with pytest.raises(TypeError, match="copy it to the CPU first"):
        x.numpy()
    with pytest.raises(TypeError, match="copy it to the CPU first"):
        np.asarray(x)


def test_a_number_is_assigned_through_a_mask_without_a_look(device: PretendDevice, x: Tensor):
    x[x > 2] = 0.0
    assert device.reads == []
    with device.silent():
        assert x.tolist() == [[0, 1, 2], [0, 0, 0]]


UPLOADS: dict[str, Callable[[Tensor], object]] = {
    "to": lambda x: torch.ones(3).to(WHERE),
    "to another's": lambda x: torch.ones(3).to(x),
    "a list": lambda x: torch.tensor([1.0, 2.0], device=WHERE),
    "a list like another": lambda x: x.new_tensor([1.0, 2.0]),
    "copied in": lambda x: x.copy_(torch.ones(2, 3)),
    "an index of the CPU": lambda x: x[torch.tensor([0])],
}


@pytest.mark.parametrize("upload", UPLOADS.values(), ids=UPLOADS)
def test_a_copy_that_waits_is_written_down(device: PretendDevice, x: Tensor, upload: Callable[[Tensor], object]):
    upload(x)
    assert len(device.uploads) == 1 and device.reads == []


def test_a_copy_that_does_not_wait_is_not_written_down(device: PretendDevice, x: Tensor):
    there = torch.ones(2, 3).to(WHERE, non_blocking=True)
    x.copy_(torch.ones(2, 3), non_blocking=True)
    assert there.device == WHERE and device.uploads == [] and device.reads == []


def test_a_device_without_float64_refuses_it():
    with PretendDevice(float64=False):
        x = torch.ones(3, device=WHERE)
        for make in (
            x.double,
            lambda: torch.ones(3, dtype=torch.float64).to(WHERE),
            lambda: torch.ones(3, device=WHERE, dtype=torch.float64),
        ):
            with pytest.raises(Refused, match="no float64"):
                make()
        assert (x + 1).dtype == torch.float32


def test_a_network_is_moved_computes_learns_and_comes_back(device: PretendDevice):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 8), nn.GroupNorm(2, 8), nn.GELU(), nn.Linear(8, 2))
    twin, x = copy.deepcopy(net).to(WHERE), torch.randn(4, 3)
    for one, row in ((net, x), (twin, x.to(WHERE))):
        optimizer = torch.optim.AdamW(one.parameters(), foreach=False)
        for _ in range(2):
            optimizer.zero_grad()
            one(row).square().mean().backward()
            nn.utils.clip_grad_norm_(one.parameters(), 1.0)
            optimizer.step()
    assert device.reads == [] and all(p.device == WHERE and p.grad is not None and p.grad.device == WHERE for p in twin.parameters())
    for mine, theirs in zip(net.parameters(), twin.to("cpu").parameters(), strict=True):
        assert type(theirs) is nn.Parameter and torch.equal(mine, theirs)


@torch.inference_mode()
def test_inference_mode(device: PretendDevice):
    x = torch.ones(2, 3).to(WHERE)
    assert x.to(torch.ones(1, dtype=torch.float16, device=WHERE)).device == nn.Linear(3, 3).to(WHERE)(x).device == WHERE
    with pytest.raises(Refused):
        _ = x + torch.ones(3)
    assert device.reads == [] and bool(x.sum() > 0) and len(device.reads) == 1


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [None, torch.float32, torch.bool])
def test_attention_is_the_cpus_kernel(device: PretendDevice, causal: bool, masked: torch.dtype | None):
    q, k, v = torch.randn(3, 1, 2, 8, 4)
    mask = None if masked is None or causal else (torch.randn(8, 8) > 0).to(masked)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    mine = (None if one is None else one.to(WHERE) for one in (q, k, v, mask))
    out = F.scaled_dot_product_attention(*mine, is_causal=causal)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert out.device == WHERE and device.reads == []
    with device.silent():
        assert torch.equal(out.cpu(), expected)


def test_a_backward_pass_follows_one_of_the_cpu(device: PretendDevice):
    for where in ("cpu", WHERE, "cpu"):
        w = torch.ones(3, device=where, requires_grad=True)
        (2 * w).sum().backward()
        assert w.grad is not None and w.grad.device.type == torch.device(where).type
    assert device.reads == []


def test_outside_an_open_device_its_tensors_still_refuse_to_mix():
    with PretendDevice():
        x = torch.ones(3, device=WHERE)
    assert isinstance(x + 1, PretendTensor)
    with pytest.raises(Refused, match="all tensors on"):
        _ = x + torch.ones(3)


def test_nothing_is_left_for_other_tests():
    named = [name for name in dir(Tensor) if "privateuse" in name.lower()]
    with PretendDevice():
        assert torch.accelerator.is_available()
    assert not torch.accelerator.is_available() and not torch._C._only_lift_cpu_tensors()
    assert [name for name in dir(Tensor) if "privateuse" in name.lower()] == named
    assert torch.tensor([1.0]).device.type == "cpu" and type(torch.ones(2) + 1) is Tensor
    with pytest.raises(RuntimeError, match="gpu"):
        torch.device("gpu")
    loss = nn.Linear(2, 1)(torch.ones(1, 2)).sum()
    loss.backward()
