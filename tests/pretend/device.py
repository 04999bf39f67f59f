"""A device that only pretends: its tensors say that they stand on `privateuseone:0`, and their numbers stay in memory of the CPU.

On a machine without a GPU it refuses what a GPU refuses, and writes down whatever would make the CPU wait for one:

    with PretendDevice() as device:
        network.to(WHERE)
        network(x.to(WHERE))
    device.reads        # every time the program looked at a number of the device, and which line did
    device.uploads      # every copy to the device that waits until it has arrived

It knows placement, nothing of speed or of kernels: each operation is done by the CPU's own kernel, so a result is the CPU's to the bit.
(The gradient of SiLU is not: for a device that it does not know torch has another formula.)

torch's Python back end is registered once a process, when this file is imported, and cannot be taken back. It keeps its name in torch, and
it says that it is not available unless a PretendDevice is open, so other tests of the process see the torch that they know. Later would be
too late: torch counts the devices that a backward pass may meet at the first one, and pytest imports all tests before it runs any.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

WHERE = torch.device("privateuseone", 0)
aten = torch.ops.aten

GATHERS = (aten.index.Tensor, aten._unsafe_index.Tensor)
SCATTERS = (aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default, aten._unsafe_index_put.default)
COPIES = (aten._to_copy.default, aten._pin_memory.default)
MASKS = (torch.bool, torch.uint8)
# What needs a number on the CPU, in torch's own words: to return it, or to know how large the result is.
LOOKS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class Refused(RuntimeError):
    """A GPU would not do this."""


class Wait(NamedTuple):
    """One time that the program waits for the device."""

    what: str  # the operation
    where: str  # "file:line function", the innermost line outside of torch


class PretendTensor(Tensor):
    """Stands on WHERE; `numbers` is the tensor of the CPU that holds its values."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> PretendTensor:
        made: PretendTensor = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            layout=numbers.layout,
            device=WHERE,
            requires_grad=numbers.requires_grad,
        )
        made.numbers = numbers
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"PretendTensor({self.numbers!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():  # else torch makes what was copied to the CPU a tensor of this class again
            return func(*args, **(kwargs or {}))

    def __setitem__(self, index: Any, value: Any) -> None:
        """A number is filled in through a mask without a look at the mask, as on a GPU: torch makes it a tensor of the device only here."""
        masked = any(isinstance(one, Tensor) and one.dtype in MASKS for one in (index if isinstance(index, tuple) else (index,)))
        super().__setitem__(index, torch.tensor(value, dtype=self.dtype) if masked and isinstance(value, int | float) else value)

    def tolist(self) -> Any:
        """torch has none for subclasses; a real device's tensor is copied to the CPU first."""
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Refused with the type of error that a real device raises; force copies to the CPU first."""
        if not force:
            raise TypeError(f"can't convert a tensor on {WHERE} to numpy: copy it to the CPU first")
        return self.cpu().numpy()

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["numbers"], None

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, Tensor], *_: Any) -> PretendTensor:
        return PretendTensor(inner["numbers"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return Call(None, func, tuple(args), dict(kwargs or {})).answer()  # outside of an open device: refused alike, not counted


class PretendDevice(TorchDispatchMode):
    """Open it with `with`; what is created, moved and computed inside is watched. float64: whether the device has it (Apple's have not)."""

    opened: ClassVar[int] = 0

    def __init__(self, *, float64: bool = True):
        super().__init__()
        self.float64 = float64
        self.reads: list[Wait] = []
        self.uploads: list[Wait] = []
        self._lifted: list[bool] = []

    def __enter__(self) -> PretendDevice:
        self._lifted.append(torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor([1.0], device=WHERE) is made on the CPU and copied where this mode sees it
        PretendDevice.opened += 1
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        PretendDevice.opened -= 1
        torch._C._set_only_lift_cpu_tensors(self._lifted.pop())
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if torch.is_inference_mode_enabled():  # there alone an operation that is made of others comes whole
            with self:
                made = func.decompose(*args, **(kwargs or {}))
            if made is not NotImplemented:
                return made
        return Call(self, func, tuple(args), dict(kwargs or {})).answer()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """What happens inside is not written down: the test's own looks."""
        before = len(self.reads), len(self.uploads)
        yield
        del self.reads[before[0] :], self.uploads[before[1] :]

    def report(self) -> str:
        """Every line that read a number back, the busiest first."""
        return "\n".join(f"{times} x {wait.what} at {wait.where}" for wait, times in Counter(self.reads).most_common())


class Call:
    """One operation of torch that may concern the device."""

    def __init__(self, device: PretendDevice | None, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.device, self.func, self.args, self.kwargs = device, func, args, kwargs
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.mine = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
        self.others = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor)]
        asked = kwargs.get("device")
        self.target = None if asked is None else torch.device(asked).type

    def answer(self) -> Any:
        if self.func in COPIES:
            return self._copied()
        if self.func is aten.copy_.default:
            return self._copied_into()
        if not self.mine:
            return self._created() if self.target == WHERE.type else self.func(*self.args, **self.kwargs)
        self._check()
        self._note_looks()
        return self._computed()

    def _copied(self) -> Tensor:
        source, arguments = self.args[0], {k: v for k, v in self.kwargs.items() if k not in ("device", "non_blocking", "pin_memory")}
        made = self.func(_numbers(source), **arguments)
        made = made.clone() if made is _numbers(source) else made
        arrives = isinstance(source, PretendTensor) if self.target is None else self.target == WHERE.type
        self._note_copy(isinstance(source, PretendTensor), arrives, self.kwargs.get("non_blocking"))
        return self._wrapped(made) if arrives else made

    def _copied_into(self) -> Tensor:
        into, source = self.args[:2]
        self._note_copy(
            isinstance(source, PretendTensor), isinstance(into, PretendTensor), (*self.args, *self.kwargs.values())[2:] == (True,)
        )
        self.func(*tree_map(_numbers, self.args), **self.kwargs)
        return into

    def _note_copy(self, leaves: bool, arrives: bool, non_blocking: object) -> None:
        if leaves and not arrives:
            self._note("reads", "a copy to the CPU")
        if arrives and not leaves and not non_blocking:
            self._note("uploads", "a copy from the CPU")

    def _created(self) -> Any:
        """torch.zeros(..., device=WHERE) and the like, of no tensor."""
        generator = self.kwargs.get("generator")
        if generator is not None:
            raise Refused(f"{self.func}: a generator on {generator.device} for a tensor on {WHERE}")
        return self._on_device(self.func(*self.args, **{**self.kwargs, "device": torch.device("cpu")}))

    def _computed(self) -> Any:
        arguments = tree_map(_numbers, self.kwargs)
        if self.target not in (None, WHERE.type):
            return self.func(*tree_map(_numbers, self.args), **arguments)  # x.new_zeros(3, device="cpu")
        arguments |= {} if self.target is None else {"device": torch.device("cpu")}
        made = self._on_device(self.func(*tree_map(_numbers, self.args), **arguments))
        return return_and_correct_aliasing(self.func, self.args, self.kwargs, made)

    def _check(self) -> None:
        """Devices may not mix, but for numbers (tensors of no dimensions) and for indices that come from the CPU."""
        if self.func in GATHERS or self.func in SCATTERS:
            return self._check_indexed()
        strange = [tensor for tensor in self.others if tensor.ndim > 0]
        if strange:
            raise Refused(f"{self.func}: expected all tensors on {WHERE}, found one on {strange[0].device} of {tuple(strange[0].shape)}")
        first = self.args[0] if self.args else None
        if self.func._schema.name.endswith("_") and isinstance(first, Tensor) and not isinstance(first, PretendTensor):
            raise Refused(f"{self.func}: a number of the CPU would be changed by a tensor on {WHERE}")

    def _check_indexed(self) -> None:
        if not isinstance(self.args[0], PretendTensor):
            raise Refused(f"{self.func}: a tensor on the CPU with something on {WHERE} as its index or value")
        value = self.args[2] if self.func in SCATTERS else None
        if isinstance(value, Tensor) and value.ndim > 0 and not isinstance(value, PretendTensor):
            raise Refused(f"{self.func}: values of the CPU for places of a tensor on {WHERE}")

    def _note_looks(self) -> None:
        """Masks as indices are counted first; an assignment of a plain number through a mask is not, nor a length that is already known."""
        if self.func in GATHERS or self.func in SCATTERS:
            indices = [index for index in self.args[1] if index is not None]
            filled = self.func in SCATTERS and not isinstance(self.args[2], PretendTensor)
            if not filled and any(isinstance(index, PretendTensor) and index.dtype in MASKS for index in indices):
                self._note("reads", f"{self.func} by a mask")
            if any(not isinstance(index, PretendTensor) for index in indices):
                self._note("uploads", f"{self.func} by an index of the CPU")
        elif LOOKS & set(self.func.tags) and self.kwargs.get("output_size") is None:
            self._note("reads", str(self.func))
        elif self.func is aten._linalg_check_errors.default:
            self._note("reads", str(self.func))

    def _note(self, kind: str, what: str) -> None:
        if self.device is not None:
            getattr(self.device, kind).append(Wait(what, _line()))

    def _on_device(self, made: Any) -> Any:
        return tree_map(lambda value: self._wrapped(value) if isinstance(value, Tensor) else value, made)

    def _wrapped(self, numbers: Tensor) -> PretendTensor:
        if numbers.dtype == torch.float64 and self.device is not None and not self.device.float64:
            raise Refused(f"{self.func}: this device has no float64")
        return PretendTensor(numbers)


def _numbers(value: Any) -> Any:
    return value.numbers if isinstance(value, PretendTensor) else value


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, **rest: Any):
    """The kernel that torch would choose for these tensors on the CPU: for a device that it does not know it takes the plain formula."""
    mask = rest.pop("attn_mask", mask)
    plain = [_numbers(one) for one in (q, k, v, mask)]
    choice = aten._fused_sdp_choice(*plain, dropout_p, is_causal, **rest)
    if choice != torch.nn.attention.SDPBackend.FLASH_ATTENTION.value:
        return aten._scaled_dot_product_attention_math(q, k, v, mask, dropout_p, is_causal, **rest)[0]
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, dropout_p, is_causal, attn_mask=mask, scale=rest.get("scale"))[0]


def _line() -> str:
    """The innermost frame that is neither torch's nor this file's."""
    frame: Any = sys._getframe()
    while frame is not None and (frame.f_code.co_filename == __file__ or "/torch/" in frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return "the backward pass"
    return f"{'/'.join(frame.f_code.co_filename.split('/')[-2:])}:{frame.f_lineno} {frame.f_code.co_name}"


class _Module:
    """What torch asks of a device's module."""

    is_initialized: Callable[[], bool] = staticmethod(lambda: PretendDevice.opened > 0)
    is_available: Callable[[], bool] = staticmethod(lambda: PretendDevice.opened > 0)
    _is_in_bad_fork: Callable[[], bool] = staticmethod(lambda: False)
    manual_seed_all: Callable[[int], None] = staticmethod(lambda seed: None)
    get_rng_state: Callable[..., torch.Tensor] = staticmethod(lambda device=0: torch.zeros(0, dtype=torch.uint8))  # `torch.random.fork_rng`
    set_rng_state: Callable[..., None] = staticmethod(lambda state, device=0: None)
    current_device: Callable[[], int] = staticmethod(lambda: 0)
    device_count: Callable[[], int] = staticmethod(lambda: 1)
    get_amp_supported_dtype: Callable[[], list[torch.dtype]] = staticmethod(lambda: [torch.bfloat16, torch.float16])


def _register() -> None:
    """The name stays torch's own, so that no name of a device is added that another test takes for a wrong one."""

    class Hook(torch._C._acc.PrivateUse1Hooks):  # pyright: ignore[reportAttributeAccessIssue]
        def is_available(self) -> bool:
            return PretendDevice.opened > 0

        def is_built(self) -> bool:
            return True

        def has_primary_context(self, index: int) -> bool:
            return PretendDevice.opened > 0

    class Guard(torch._C._acc.DeviceGuard):  # pyright: ignore[reportAttributeAccessIssue]
        def type_(self) -> Any:
            return torch._C._autograd.DeviceType.PrivateUse1  # pyright: ignore[reportAttributeAccessIssue]

    backend_registration.rename_privateuse1_backend(WHERE.type)  # without a name, torch's backward pass does not take it for a device
    torch._register_device_module(WHERE.type, _Module())
    torch._C._acc.register_python_privateuseone_hook(Hook())  # pyright: ignore[reportAttributeAccessIssue]
    torch._C._acc.register_python_privateuseone_device_guard(Guard())  # pyright: ignore[reportAttributeAccessIssue]


_register()
