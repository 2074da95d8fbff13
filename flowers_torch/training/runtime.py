"""What the machine offers: device, numeric precision, threads. Each choice comes with its reason."""

import contextlib
import ctypes
import dataclasses
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from flowers_torch.accelerate.conv_bn import noise
from flowers_torch.accelerate.fused_step import fuse
from flowers_torch.errors import UsageError
from flowers_torch.models.heads import main_and_auxiliary

PROBE_SECONDS = 2.0
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
PROBE_PHOTOS, PROBE_STEPS = {"cuda": 16}, {"cuda": 4}  # at once, and in a row; else 4 and 1
GAIN = {"cuda": 1.05}  # that a choice must bring over one that is tried before it, where timings waver
MOST_DEVIATION = 0.1  # of a network's answers in half precision, relative to those in fp32 (L2)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Device and precision of a run; the one code path for mixed precision."""

    device: torch.device
    precision: str  # fp32, bf16 or fp16: of the network's arithmetic; parameters stay fp32
    reason: str
    channels_last: bool = True
    rate: float = 0.0  # images/s of the step that `autotune_precision` timed; 0: none
    fixed: bool = True  # False: `autotune_precision` may still find a faster one for the network at hand

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's arithmetic."""
        return DTYPES[self.precision]

    @property
    def wide(self) -> torch.dtype:
        """The widest floats of the device, to add up in."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Mixed precision inside, where the precision asks for it."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.precision != "fp32"):
            yield

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling, which fp16 needs and the others pass through."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def images(self, batch: torch.Tensor) -> torch.Tensor:
        """Moves a batch of images to the device in the network's memory layout."""
        maps = batch.ndim == 4  # and no pooled features
        layout = torch.channels_last if self.channels_last and maps else torch.contiguous_format
        return batch.to(self.device, non_blocking=True).contiguous(memory_format=layout)

    def place(self, model: nn.Module) -> nn.Module:
        """Moves a network to the device in the memory layout of the run, in place."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return model.to(self.device, memory_format=layout)  # type: ignore[call-overload]

    def fused(self, model: nn.Module, size: int) -> nn.Module:
        """A view of a network, in its modes, that is fast on this device (`fuse`); `size` of its images."""
        return fuse(model, self.images(noise(size)))


def choose_runtime(
    device: str = "auto", precision: str = "auto", channels_last: bool = True, threads: int = 0
) -> Runtime:
    """Resolves the user's wishes against this machine.

    Args:
        device: auto, cpu, cuda, cuda:N or mps.
        precision: auto, fp32, bf16 or fp16.
        channels_last: Memory layout of images and convolution weights.
        threads: Of computation on the CPU; 0 leaves torch's choice.

    Raises:
        UsageError: the device is not there, or cannot compute in that precision.
    """
    if threads:
        torch.set_num_threads(threads)
    place = _choose_device(device)
    if precision == "fp16" and place.type != "cuda":  # guard: R18
        raise UsageError("--precision fp16 needs a CUDA device", "use --precision bf16 or fp32")
    if place.type == "cuda":
        if place.index is not None:  # streams, graphs and random numbers are those of the current device
            torch.cuda.set_device(place)
        # By the older of torch's two names for it: setting the newer one breaks torch.compile (issue 166387).
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if precision != "auto":
        tf32 = ", TF32 inside" if place.type == "cuda" and precision == "fp32" else ""
        return Runtime(place, precision, f"as asked{tf32}", channels_last)
    if place.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Runtime(place, "bf16", "this GPU computes bf16", channels_last, fixed=False)
        return Runtime(place, "fp16", "this GPU has no bf16", channels_last, fixed=False)
    if place.type == "cpu" and _cpu_computes_bf16():
        return Runtime(place, "bf16", "this CPU computes bf16", channels_last, fixed=False)
    return Runtime(place, "fp32", f"no fast half precision on this {place.type}", channels_last)


def runtime_of_run(device: str, precision: str, channels_last: bool) -> Runtime:
    """The runtime for a finished run: as it was trained where this machine is as fast in it, else in fp32.

    Args:
        device: auto, cpu, cuda, cuda:N or mps.
        precision: That the run was trained in, perhaps on another machine.
        channels_last: Its memory layout, chosen for the same machine.

    Raises:
        UsageError: the device is not there.
    """
    here = choose_runtime(device)
    halves = {here.precision, "fp16"} if here.device.type == "cuda" else {here.precision}
    if precision in halves | {"fp32"}:
        return choose_runtime(device, precision, channels_last)
    return choose_runtime(device, "fp32")


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Refuses operations whose results differ from run to run, inside and where wanted.

    On the CPU runs repeat bit by bit anyway; this is for CUDA. cuBLAS reads its setting when CUDA starts, so
    a process that has used CUDA before needs `CUBLAS_WORKSPACE_CONFIG=:4096:8` in its environment.

    Raises:
        UsageError: the network needs an operation that has no deterministic form.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):  # guard: R19
            raise
        operation = str(error).split(" does not have", 1)[0]
        raise UsageError(
            f"deterministic = true: {operation} has no deterministic form",
            "use deterministic = false, or another network",
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def keep_freed_memory() -> bool:
    """Has the process keep large blocks that were freed, for the next ones; whether this system knows how.

    On a CPU each layer asks for megabytes and frees them again. The C library of Linux gives them back to the
    system, which hands them out anew page by page, filled with zeros: a quarter of a training step. What is
    kept above the last block in use is at most 2 GiB; between blocks it is used again.
    Source: mallopt(3), M_MMAP_MAX and M_TRIM_THRESHOLD.
    """
    try:
        mallopt: Any = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another system, or another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def search_kernels(device: torch.device, repeated: bool) -> None:
    """Lets cuDNN time its kernels for each new shape, which takes a while and pays where it comes again.

    Args:
        device: That computes.
        repeated: Whether the shapes of what comes next will come again.
    """
    if device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
        torch.backends.cudnn.benchmark = repeated


def autotune_precision(runtime: Runtime, model: nn.Module, size: int, backward: bool = True) -> Runtime:
    """Times a step in each precision and layout that is open, and takes the fastest that computes well.

    On CPUs neither fp32 nor bf16 is faster for all networks: dense convolutions gain from bf16, depthwise
    ones only where they are fused (`models/fuse.py`). On GPUs bf16, fp16 and fp32 (with TF32) are tried, with
    the channels last and, where time is left, first.

    Args:
        runtime: As chosen for the machine.
        model: The network, on the device, in the modes of its training. It takes the layout that is chosen;
            what else changes on the way is put back.
        size: Input side in pixels.
        backward: Time a training step; else the forward pass, of a backbone that stays frozen.
    """
    if runtime.fixed:
        return runtime
    deadline = time.perf_counter() + PROBE_SECONDS
    modes = {module: module.training for module in model.modules()}
    before = {name: value.clone() for name, value in model.named_buffers()}
    rates: dict[Runtime, float] = {}
    remarks: list[str] = []
    kind, placed = runtime.device.type, runtime
    with torch.random.fork_rng(devices=[runtime.device] if kind == "cuda" else []):
        photos = torch.randn(PROBE_PHOTOS.get(kind, 4), 3, size, size)
        in_fp32 = dataclasses.replace(runtime, precision="fp32")
        expected = _answer(in_fp32, model, in_fp32.images(photos))
        for candidate in _candidates(runtime):
            if len(rates) > 1 and time.perf_counter() > deadline:
                remarks.append(f"no time for {_name(candidate, runtime)}")
                continue
            if candidate.channels_last != placed.channels_last:
                placed = candidate
                placed.place(model)
            images = candidate.images(photos)
            answer = expected if candidate == in_fp32 else _answer(candidate, model, images)
            deviation = float((answer - expected).norm() / expected.norm().clamp(min=1e-12))
            if not deviation <= MOST_DEVIATION:
                remarks.append(f"{_name(candidate, runtime)} deviates by {deviation:.2g}")
                continue
            for module in modes if backward else ():
                module.training = modes[module]
            if kind == "cuda":
                _step_seconds(candidate, model, images, backward)  # loads and chooses kernels
            seconds = [_step_seconds(candidate, model, images, backward)]
            while len(seconds) < 3 and time.perf_counter() < deadline:
                seconds.append(_step_seconds(candidate, model, images, backward))
            rates[candidate] = len(photos) / min(seconds)
            model.zero_grad(set_to_none=True)
            for name, value in model.named_buffers():
                value.copy_(before[name])
    for module in modes:
        module.training = modes[module]
    best = next(iter(rates))
    for candidate, rate in rates.items():
        if rate > GAIN.get(kind, 1.0) * rates[best]:
            best = candidate
    if best.channels_last != placed.channels_last:
        best.place(model)
    figures = [f"{_name(candidate, runtime)} {rate:.1f} img/s" for candidate, rate in rates.items()]
    reason = f"fastest tried: {', '.join([*figures, *remarks])}"
    return dataclasses.replace(best, reason=reason, fixed=True, rate=rates[best])


def _candidates(runtime: Runtime) -> list[Runtime]:
    """Precisions and layouts to try, the likeliest first."""
    precisions, layouts = ["fp32", "bf16"], [runtime.channels_last]
    if runtime.device.type == "cuda":
        precisions = ["bf16", "fp16", "fp32"] if runtime.precision == "bf16" else ["fp16", "fp32"]
        layouts = [True, False] if runtime.channels_last else [False]
    return [
        dataclasses.replace(runtime, precision=precision, channels_last=layout)
        for layout in layouts
        for precision in precisions
    ]


def _name(candidate: Runtime, runtime: Runtime) -> str:
    tf32 = " (TF32)" if (candidate.device.type, candidate.precision) == ("cuda", "fp32") else ""
    layout = "" if candidate.channels_last == runtime.channels_last else " channels first"
    return f"{candidate.precision}{tf32}{layout}"


def _answer(runtime: Runtime, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.no_grad(), runtime.autocast():
        answer: torch.Tensor = model(images)
    return answer.float()


def _step_seconds(runtime: Runtime, model: nn.Module, images: torch.Tensor, backward: bool) -> float:
    """Of a step, on a GPU of one among several that are handed over in a row, as in training."""
    steps = PROBE_STEPS.get(runtime.device.type, 1)
    _finish(runtime.device)
    started = time.perf_counter()
    for _ in range(steps):
        with torch.set_grad_enabled(backward), runtime.autocast():
            logits, _ = main_and_auxiliary(model(images))
        if backward:
            logits.float().logsumexp(1).sum().backward()
    _finish(runtime.device)
    return (time.perf_counter() - started) / steps


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _choose_device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name} is no device", "use auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UsageError(f"--device {name}: torch sees {count} CUDA devices here", "use --device auto")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: not available here", "use --device auto")
    elif device.type not in ("cpu", "mps"):
        raise UsageError(f"--device {name} is not supported", "use auto, cpu, cuda, cuda:1 or mps")
    return device


def _cpu_computes_bf16() -> bool:
    """Whether bf16 is native (AVX-512 BF16 or AMX); emulated bf16 is slower than fp32."""
    capabilities = torch.backends.cpu.get_cpu_capability()
    with contextlib.suppress(AttributeError):  # names of a private module, stable since torch 2.3
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "BF16" in capabilities
