"""A CUDA device that is simulated: tensors on it lie in the memory of the CPU and know that they must not.

Everything is computed for real, forward and backward. An operation on tensors of two devices raises the error of
torch, and whatever would make the host wait for a GPU is counted. FakeTensorMode checks the same rules in a forward
pass, but torch runs no backward pass of its CUDA tensors without a driver.

The simulation does not know the time, the memory or the arithmetic of a GPU, streams, or kernels that CUDA lacks.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from flowers_torch.data.augment import per_batch

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
TO_HOST = (Tensor.tolist, Tensor.numpy, Tensor.__array__)
FROM_HOST = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
# Operations whose result, or its shape, the host needs before it can go on.
WAITS = ("_local_scalar_dense", "equal", "nonzero", "masked_select", "bincount")
WAITS += ("_unique", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave")
COPIES = ("copy_", "_to_copy", "_foreach_copy_")
INDEXING = ("index", "index_put_", "index_put", "_index_put_impl_")


class Waits(list[str]):
    """What would have waited for the GPU; in torch's mode "error" it also raises torch's error."""

    def __init__(self) -> None:
        super().__init__()
        self.mode, self.has_warned = "default", False

    def append(self, what: str) -> None:
        super().append(what)
        if self.mode == "error" and what != "synchronize":  # which torch allows
            raise RuntimeError("called a synchronizing CUDA operation")

    def set_mode(self, mode: str) -> None:
        """As `torch.cuda.set_sync_debug_mode`, which warns once and sets the mode even if the warning is an error."""
        warned, self.mode, self.has_warned = self.has_warned, mode, True
        if not warned:
            warnings.warn("Synchronization debug mode is a prototype feature", UserWarning, stacklevel=2)


class SimulatedGPU(TorchFunctionMode):
    """Inside, `cuda` is a device. `waits` lists what would have waited for it since it was last cleared."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = Waits()
        self.wanted: torch.device | None = None  # that a function was called with
        self.looks_at_its_input = False  # a function that does not on a GPU
        self.default = CPU  # of what a function makes inside without naming a device
        self._on_gpu: dict[int, StorageWeakRef] = {}  # which holds the address, so that no other tensor gets it
        self._pinned: dict[int, StorageWeakRef] = {}
        self._dispatch = Dispatch(self)

    def __enter__(self) -> "SimulatedGPU":
        self._dispatch.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._dispatch.__exit__(*exception)

    def device_of(self, tensor: Tensor) -> torch.device:
        return GPU if _key(tensor) in self._on_gpu else CPU

    def put(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Marks the memory of a tensor."""
        if device.type == "cuda":
            self._on_gpu[_key(tensor)] = _reference(tensor)
        else:
            self._on_gpu.pop(_key(tensor), None)
        return tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.device or func.__name__ == "_parse_to":  # of `Module.to`
            return func(*args, **kwargs)
        if func in TO_HOST and self.device_of(args[0]) == GPU:
            self.waits.append(func.__name__)
        if func is Tensor.pin_memory:
            copied = self.put(args[0].clone(), CPU)
            self._pinned[_key(copied)] = _reference(copied)
            return copied
        if func is Tensor.is_pinned:
            return _key(args[0]) in self._pinned
        if func is Tensor.__deepcopy__:
            return self.put(func(*args, **kwargs), self.device_of(args[0]))
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._to(func, args, kwargs)
        named = [torch.device(value) for value in (*args, *kwargs.values()) if _is_device(value)]
        if func is Tensor.new_tensor and not named:
            named = [self.device_of(args[0])]
        if func in FROM_HOST and named and named[0].type == "cuda":
            self.waits.append(func.__name__)
        args, kwargs = tree_map(lambda value: CPU if _is_device(value) else value, (args, kwargs))
        before = self.wanted, self.default, self.looks_at_its_input
        self.looks_at_its_input = func is torch.nn.functional.one_hot  # on a CPU only
        self.wanted = named[0] if named else None
        if func is not Tensor.backward:
            tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
            self.default = GPU if any(self.device_of(tensor) == GPU for tensor in tensors) else CPU
        try:
            found = func(*args, **kwargs)
            return self.put(found, named[0]) if func in FROM_HOST and named else found
        finally:
            self.wanted, self.default, self.looks_at_its_input = before

    def _to(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`Tensor.to` and its short forms; what they do besides moving, such as another dtype, is done first."""
        source, here = args[0], self.device_of(args[0])
        named = [torch.device(value) for value in (*args, *kwargs.values()) if _is_device(value)]
        there = {Tensor.cpu: CPU, Tensor.cuda: GPU}.get(func) or (named[0] if named else here)
        if isinstance(args[1] if len(args) > 1 else None, Tensor):
            there = self.device_of(args[1])
        args, kwargs = tree_map(lambda value: CPU if _is_device(value) else value, (args, kwargs))
        moved = source if func is not Tensor.to else func(*args, **kwargs)
        if there.type == here.type:
            return moved
        non_blocking = kwargs.get("non_blocking") or any(value is True for value in args[1:])
        to_host = there.type == "cpu"
        if not non_blocking or not (to_host or _key(source) in self._pinned):
            self.waits.append("to the host" if to_host else "to the device")
        return self.put(moved.clone() if moved is source else moved, there)


class Dispatch(TorchDispatchMode):
    """Checks the devices of each operation, also of those of a backward pass, and marks its results."""

    def __init__(self, gpu: SimulatedGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            name, gpu = func.overloadpacket.__name__, self.gpu
            tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
            devices = {gpu.device_of(tensor).type for tensor in tensors}
            self._check(name, tensors, devices, args, kwargs)
            found = func(*args, **kwargs)
            known = {id(tensor) for tensor in tensors}
            device = gpu.wanted or (GPU if "cuda" in devices else CPU if devices else gpu.default)
            for tensor in tree_leaves(found):
                if isinstance(tensor, Tensor) and id(tensor) not in known and name not in COPIES:
                    gpu.put(tensor, device)
                elif isinstance(tensor, Tensor) and name == "_to_copy":
                    gpu.put(tensor, device)
            return found

    def _check(self, name: str, tensors: list[Tensor], devices: set[str], args: Any, kwargs: Any) -> None:
        gpu = self.gpu
        if "cuda" not in devices:
            return
        if name in WAITS and not gpu.looks_at_its_input:
            gpu.waits.append(name)
        if name in COPIES:
            blocking = not (kwargs.get("non_blocking") or any(value is True for value in args[2:]))
            if devices == {"cpu", "cuda"} and blocking:
                gpu.waits.append(name)
            return
        if name in INDEXING:  # indices may lie on the CPU, but are copied
            if any(index is not None and index.dtype == torch.bool for index in args[1]):
                gpu.waits.append("a mask")
            on_cpu = [index for index in args[1] if index is not None and gpu.device_of(index) == CPU]
            for _ in on_cpu:
                gpu.waits.append("indices")
            tensors = [tensor for tensor in tensors if not any(tensor is index for index in on_cpu)]
        strict = name.startswith(("_fused", "_amp"))
        on_cpu = [tensor for tensor in tensors if gpu.device_of(tensor) == CPU and (strict or tensor.ndim)]
        if on_cpu and len(on_cpu) < len(tensors):
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got cuda:0 and cpu")


def _key(tensor: Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()._cdata


def _reference(tensor: Tensor) -> StorageWeakRef:
    with torch._C.DisableTorchFunction():
        return StorageWeakRef(tensor.untyped_storage())


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (isinstance(value, str) and value.partition(":")[0] in ("cpu", "cuda"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedGPU]:
    """A simulated GPU; inside the test torch says that it is there."""
    simulated = SimulatedGPU()
    group, autocast, scaler = torch._C._group_tensors_by_device_and_dtype, torch.autocast, torch.amp.GradScaler

    def grouped(*arguments: Any) -> dict[Any, Any]:
        found = {}
        for (_, dtype), (lists, indices) in group(*arguments).items():
            first = next(tensor for members in lists for tensor in members if tensor is not None)
            found[simulated.device_of(first), dtype] = lists, indices
        return found

    def synchronize(device: Any = None) -> None:
        simulated.waits.append("synchronize")

    answers = {
        "is_available": True,
        "device_count": 1,
        "is_bf16_supported": True,
        "mem_get_info": (1 << 30, 1 << 30),
        "get_device_name": "a simulated GPU",
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "set_device": None,
        "current_device": 0,
        "is_current_stream_capturing": False,
        "empty_cache": None,
    }
    for name, value in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *arguments, value=value, **options: value)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", simulated.waits.set_mode)
    monkeypatch.setattr(Tensor, "device", property(simulated.device_of))
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda tensor: simulated.device_of(tensor) == GPU))
    # A loader asks for it to pin memory. An optimizer, which would ask for its streams, checks whether it is there.
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available=False: None if check_available else GPU
    )
    monkeypatch.setattr(torch._C, "_group_tensors_by_device_and_dtype", grouped)
    monkeypatch.setattr(torch, "autocast", lambda device, *arguments, **options: autocast("cpu", *arguments, **options))
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, **options: scaler("cpu", **options))
    per_batch._constant.cache_clear()
    onednn = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # it has no fp16 on most CPUs
    with simulated:
        yield simulated
    torch._C._set_mkldnn_enabled(onednn)
    per_batch._constant.cache_clear()
