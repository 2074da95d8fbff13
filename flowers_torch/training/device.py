"""The runtime of a run: device, numeric precision and threads, each chosen with a reason."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from flowers_torch.data.loading.gpu_cache import to_device
from flowers_torch.errors import UsageError, one_line
from flowers_torch.files.system import usable_cores

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Names of ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA: instruction sets without arithmetic in bf16.
NO_BF16_ATEN = {"DEFAULT", "NO AVX", "AVX2"}
NO_BF16_ONEDNN = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Device and precision of a run; the one code path for mixed precision."""

    device: torch.device
    precision: str  # fp32, bf16 or fp16: of the network's arithmetic; parameters stay fp32
    reason: str
    rate: float = 0.0  # images/s of the step that tuning has timed; 0: none
    fixed: bool = True  # False: tuning may still find a faster precision for the network at hand
    tuned: bool = False  # no precision was left out for lack of time or work, so that this holds for longer runs too

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's arithmetic."""
        return DTYPES[self.precision]

    @property
    def accumulation_dtype(self) -> torch.dtype:
        """The widest float of the device, for sums."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    @property
    def memory_format(self) -> torch.memory_format:
        """Of images and kernels. On MPS batch norm computes wrong gradients in channels_last (torch issue 175189)."""
        return torch.contiguous_format if self.device.type == "mps" else torch.channels_last

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Mixed precision inside, unless the precision is fp32."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.precision != "fp32"):
            yield

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling for fp16; it does nothing in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def images(self, batch: torch.Tensor) -> torch.Tensor:
        """Moves a batch to the device: images (N, C, H, W) in `memory_format`, features (N, D) as they are."""
        layout = self.memory_format if batch.ndim == 4 else torch.contiguous_format
        return to_device(batch, self.device).contiguous(memory_format=layout)

    def to_host(self, values: torch.Tensor) -> torch.Tensor:
        """Starts a copy to the CPU, in pinned memory. It must not be read before `wait`."""
        return values.to("cpu", non_blocking=self.device.type == "cuda")

    def wait(self) -> None:
        """Returns when the device has done all that it was given."""
        if self.device.type == "cuda":  # elsewhere no copy runs ahead
            torch.get_device_module(self.device).synchronize()

    def place(self, model: nn.Module) -> nn.Module:
        """Moves a network to the device in `memory_format`, in place; `breaks_in_channels_last` names exceptions."""
        placed: nn.Module = model.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        convolutions: list[Any] = [module for module in placed.modules() if breaks_in_channels_last(module)]
        for module in convolutions if self.device.type == "cpu" else ():
            # `contiguous` would change nothing: a 1x1 kernel in channels_last counts as contiguous.
            module.weight.data = module.weight.data.clone(memory_format=torch.contiguous_format)
            if not module._forward_pre_hooks:
                module.register_forward_pre_hook(_contiguous)
        return placed


def breaks_in_channels_last(module: nn.Module) -> bool:
    """Whether oneDNN may crash, or compute wrong gradients, in channels_last on CPUs without AVX-512.

    It does for 1x1 kernels with a stride over fewer than eight channels, often those of an image (oneDNN issue 6035).
    """
    if not isinstance(module, nn.Conv2d) or module.kernel_size != (1, 1):
        return False
    return max(module.stride) > 1 and module.in_channels // module.groups < 8


def _contiguous(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(maps.contiguous() for maps in inputs)


def choose_runtime(device: str = "auto", precision: str = "auto", threads: int = 0) -> Runtime:
    """The runtime for the options of the user on this machine.

    Args:
        device: auto, cpu, cuda, cuda:N or mps.
        threads: Of computation on the CPU; 0 leaves torch's choice, which does not know the quota of a container.

    Raises:
        UsageError: the device is not available, or cannot compute in that precision.
    """
    if threads or torch.get_num_threads() > usable_cores():
        torch.set_num_threads(threads or usable_cores())
    chosen = _choose_device(device)
    if precision == "fp16" and chosen.type != "cuda":  # guard: R18
        raise UsageError("--precision fp16 needs a CUDA device", "use --precision bf16 or fp32")
    if chosen.type == "cuda":
        if chosen.index is not None:  # streams and random numbers are those of the current device
            _set_current(chosen)
        # The older of torch's two names for it: setting the newer one breaks torch.compile (issue 166387).
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if precision != "auto":
        tf32 = ", TF32 inside" if chosen.type == "cuda" and precision == "fp32" else ""
        return Runtime(chosen, precision, f"set by the user{tf32}")
    if chosen.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return Runtime(chosen, "bf16", "this GPU computes bf16", fixed=False)
    if chosen.type == "cuda":
        return Runtime(chosen, "fp16", "this GPU has no bf16", fixed=False)
    if chosen.type == "cpu" and cpu_computes_bf16():
        return Runtime(chosen, "bf16", "this CPU computes bf16", fixed=False)
    return Runtime(chosen, "fp32", f"no fast half precision on this {chosen.type}")


def runtime_of_run(device: str, precision: str) -> Runtime:
    """The runtime for a finished run: in its own precision where this machine is fast in it, else in fp32.

    Args:
        device: auto, cpu, cuda, cuda:N or mps.
        precision: Of the training, perhaps on another machine.

    Raises:
        UsageError: the device is not available.
    """
    here = choose_runtime(device)
    fast = {here.precision, "fp32"} | ({"fp16"} if here.device.type == "cuda" else set())
    return choose_runtime(device, precision if precision in fast else "fp32")


@contextlib.contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Refuses operations whose results differ from run to run.

    On the CPU runs repeat bit by bit anyway; this is for CUDA. cuBLAS reads its setting when CUDA starts, so
    a process that has used CUDA before needs `CUBLAS_WORKSPACE_CONFIG=:4096:8` in its environment.

    Raises:
        UsageError: the network needs an operation that has no deterministic form.
    """
    if not enabled:
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
        what = f"deterministic = true: {operation} has no deterministic form"
        raise UsageError(what, "use deterministic = false, or another network") from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def release_memory(device: torch.device) -> None:
    """Gives the memory that torch keeps for later tensors back to a GPU, where cuBLAS and cuDNN need some too."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def search_kernels(device: torch.device, repeated: bool) -> None:
    """Lets cuDNN time its kernels for each new shape, if the shapes of the next inputs come again often.

    It builds and times several kernels for each convolution and for its gradients, and torch gives its unused memory
    back after each search. The first step may take as long as hundreds of later ones.
    """
    if device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
        torch.backends.cudnn.benchmark = repeated


def _choose_device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        message = f"--device {name} is not a valid device: expected auto, cpu, cuda, cuda:N or mps"
        raise UsageError(message, "use --device auto") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UsageError(f"--device {name}: torch sees {count} CUDA devices here", "use --device auto")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: not available here", "use --device auto")
    elif device.type not in ("cpu", "mps"):
        raise UsageError(f"--device {name} is not supported", "use auto, cpu, cuda, cuda:1 or mps")
    return device


def _set_current(device: torch.device) -> None:
    try:
        torch.cuda.set_device(device)
    except RuntimeError as error:  # as of a GPU that another process has for itself, or that has failed
        raise UsageError(f"{device} cannot be used: {one_line(error)}", "use another --device") from error


def cpu_computes_bf16() -> bool:
    """Whether bf16 is native (AVX-512 BF16 or AMX); emulated bf16 is several times as slow as fp32.

    The variables ATEN_CPU_CAPABILITY and ONEDNN_MAX_CPU_ISA can hide what the processor has.
    """
    if torch.backends.cpu.get_cpu_capability() in NO_BF16_ATEN:
        return False
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in NO_BF16_ONEDNN:
        return False
    with contextlib.suppress(AttributeError):  # names of a private module, stable since torch 2.3
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
