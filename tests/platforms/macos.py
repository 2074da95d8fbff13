"""Makes Linux behave like a Mac with Apple silicon: the device `mps`, a build without oneDNN, spawned workers.

A tensor on `mps` is an `MPSTensor`, which holds its values in a tensor of the CPU. It refuses what Metal refuses,
and what MPS computes wrongly without an error. The numbers are torch's issues:

- float64 (79019), and operations that mix devices,
- copies to the device that do not wait (139550, 189690),
- gradients of batch norm in channels_last (175189),
- `grid_sample` with the border repeated (125098, until torch 2.13),
- adaptive average pooling to sizes that do not divide (143864, in torch 2.10).

`sched_getaffinity`, `posix_fallocate`, /dev/shm and mallopt are missing too.
"""

import contextlib
import multiprocessing
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from flowers_torch.files import system

MPS = torch.device("mps", 0)
FLOAT64 = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
plain_to = torch.Tensor.to


class MPSTensor(torch.Tensor):
    """A tensor whose `device` is `mps`. To torch's own code, such as autograd, it is one of the CPU."""

    values: torch.Tensor
    device = property(lambda self: MPS)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "MPSTensor":
        if values.dtype == torch.float64:
            raise TypeError(FLOAT64)
        made: Any = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype
        )
        made.values = values
        return made  # type: ignore[no-any-return]

    # torch swaps the parameters of a module for such tensors only if these exist.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, torch.Tensor], meta: None, size: Any, stride: Any) -> "MPSTensor":
        return MPSTensor(inner["values"])

    def cpu(self, *arguments: Any, **options: Any) -> torch.Tensor:
        return self.detach().values  # type: ignore[attr-defined, no-any-return]

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        refuse(operation._schema.name.removeprefix("aten::"), args, kwargs or {})
        given = {id(each.values): each for each in tree_leaves((args, kwargs)) if isinstance(each, MPSTensor)}
        args, kwargs = tree_map_only(MPSTensor, lambda each: each.values, (args, kwargs or {}))
        kwargs = kwargs | {"device": torch.device("cpu")} if "device" in kwargs else kwargs

        def wrapped(values: torch.Tensor) -> torch.Tensor:  # what is changed in place stays the same object
            return given[id(values)] if id(values) in given else MPSTensor(values)

        made = operation(*args, **kwargs)
        return (
            made
            if operation is torch.ops.aten._local_scalar_dense.default
            else tree_map_only(torch.Tensor, wrapped, made)
        )


def refuse(name: str, args: Any, kwargs: Any) -> None:
    """Raises for an operation that MPS lacks or gets wrong."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    # Numbers, indices and the source of a copy may be on the CPU.
    if not name.startswith(("index", "copy")) and any(not isinstance(t, MPSTensor) and t.ndim for t in tensors):
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found mps:0 and cpu!")
    if name == "grid_sampler_2d" and args[3] == 1:
        raise RuntimeError("MPS: Unsupported Border padding mode")
    if name == "_adaptive_avg_pool2d" and any(a % b for a, b in zip(args[0].shape[-2:], args[1], strict=True)):
        raise RuntimeError("Adaptive pool MPS: input sizes must be divisible by output sizes.")
    if name == "native_batch_norm_backward" and not all(each.is_contiguous() for each in args[:2]):
        raise AssertionError("MPS computes wrong gradients of batch norm in channels_last")


def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`torch.Tensor.to`, which also takes the device `mps`."""
    copy = kwargs.pop("copy", False)
    if args and isinstance(args[0], torch.Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)  # type: ignore[attr-defined]
    here = isinstance(self, MPSTensor)
    there = here if device is None else device.type == "mps"
    if not here and not there:
        return plain_to(self, *args, copy=copy, **kwargs)
    if here and not there:
        self = self.cpu()
    made = plain_to(self, dtype=dtype or self.dtype, copy=copy, memory_format=layout or torch.preserve_format)
    if there and not here:
        assert not non_blocking, "MPS may read this memory after it was freed"
        return MPSTensor(made.detach().clone())
    return made


def empty(size: Any, dtype: Any = None, *_: Any, **__: Any) -> torch.Tensor:
    return MPSTensor(torch.empty(size, dtype=dtype))


def empty_strided(size: Any, stride: Any, dtype: Any = None, *_: Any, **__: Any) -> torch.Tensor:
    return MPSTensor(torch.empty_strided(size, stride, dtype=dtype))


class WithoutOneDNN(types.ModuleType):
    """`torch.ops.mkldnn` of a build without oneDNN."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"'_OpNamespace' 'mkldnn' object has no attribute '{name}'")


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """This process is one on a Mac inside."""
    method = multiprocessing.get_start_method(allow_none=True)
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", empty, "MPS")  # torch makes all other new tensors from these
    library.impl("empty_strided", empty_strided, "MPS")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "to", to)
        patch.setattr(torch.backends.mps, "is_available", lambda: True)
        patch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        patch.setattr(torch.ops, "mkldnn", WithoutOneDNN("mkldnn"))
        patch.setattr(system, "keep_freed_memory", lambda: False)
        patch.setattr(system, "shared_memory", lambda: None)
        for name in ("sched_getaffinity", "posix_fallocate"):
            patch.delattr(os, name)
        multiprocessing.set_start_method("spawn", force=True)
        patch.setattr(sys, "platform", "darwin")
        try:
            yield
        finally:
            patch.undo()
            multiprocessing.set_start_method(method, force=True)
            library._destroy()
