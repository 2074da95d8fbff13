"""What precision autotuning costs on this CPU, and what its choice gives, for three runs.

    python benchmarks/tuning.py
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/tuning.py

A line for each run: seconds of tuning, the choice with its reason, the images that the run computes, and the seconds
that it saves over fp32, by the rate of the fastest of three steps in each. Images are random, networks untrained.
"""

import dataclasses
import os
import time

import torch

from flowers_torch.accelerate import AUTO
from flowers_torch.files.system import processor_name
from flowers_torch.models.factory import create_model
from flowers_torch.models.freeze import apply_rules, rules_for, set_train_mode
from flowers_torch.training.device import choose_runtime

# What trains, pixels, batch norm, and images ahead; the first two are Flowers-17 in the default stages.
RUNS = {
    "head only, EfficientNet-Lite0": ("tf_efficientnet_lite0", "head", 224, "trained", 816 + 2 * 272),
    "two stages, EfficientNet-Lite0": ("tf_efficientnet_lite0", "all", 224, "trained", 7 * 816 + 7 * 272),
    "the demo, InceptionV3": ("inception_v3", "all", 75, "trained", 8 * (540 + 180) + 180),
}


def main() -> None:
    runtime = choose_runtime("cpu")
    limits = {name: os.environ.get(name, "") for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")}
    print(f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {limits}")
    for name, (arch, trains, size, batch_norm, ahead) in RUNS.items():
        model = runtime.place(create_model(arch, 17))
        apply_rules(model, rules_for(model, trains))
        set_train_mode(model, batch_norm)
        network, backward = AUTO.training_network(model, runtime, size), trains != "head"
        started = time.perf_counter()
        chosen = AUTO.tuned(runtime, network, size, backward, ahead)
        seconds = time.perf_counter() - started
        rate = AUTO.tuned(chosen, network, size, backward).rate
        fp32 = rate
        if chosen.precision != "fp32":
            fp32 = AUTO.tuned(dataclasses.replace(chosen, precision="fp32"), network, size, backward).rate
        print(f"{name}: {seconds:.1f} s, {chosen.precision} ({chosen.reason})")
        print(f"    {ahead} images, {ahead / fp32:.0f} s in fp32, {ahead / fp32 - ahead / rate:.0f} s saved")


if __name__ == "__main__":
    main()
