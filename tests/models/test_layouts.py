"""Weights files as other programs write them: which part is taken, what the log says, and equal logits."""

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn

from flowers_torch.errors import ModelFileError
from flowers_torch.models.checkpoint import ModelInfo, build
from flowers_torch.models.factory import create_model
from flowers_torch.models.heads import classifier_names
from flowers_torch.models.layouts import whose
from flowers_torch.models.weights import load_weights, plan_weights

State = Mapping[str, Tensor]


def state_of(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Values that differ in each tensor, so that a missing or swapped one changes the logits."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        noise = torch.rand(tensor.shape, generator=generator)
        if tensor.is_floating_point():
            tensor.copy_(0.5 + noise if name.endswith("running_var") else tensor + 0.1 * (noise - 0.5))
    return network.state_dict()


def under(prefix: str, state: State) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def other(state: State) -> dict[str, Tensor]:
    """Raw weights beside averaged ones: the same names, other values."""
    return {name: tensor + 1 for name, tensor in state.items()}


def without_counters(state: State) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def renamed(state: State, *rules: tuple[str, str]) -> dict[str, Tensor]:
    found = {}
    for name, tensor in state.items():
        for pattern, template in rules:
            name = re.sub(pattern, template, name)
        found[name] = tensor
    return found


def logits(network: nn.Module, size: int, head: bool = True) -> Tensor:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return network.eval()(images) if head else network.eval().forward_features(images)  # type: ignore[operator]


ARGS = argparse.Namespace(lr=0.1, data=Path("photos"))
# What is written for the state of a network of timm's and torchvision's layout -> what the log says of it
CONTAINERS: dict[str, tuple[Callable[[State], Any], str]] = {
    "plain": (lambda s: s, "122 of 122 tensors loaded from w.pth, timm's names, head loaded"),
    "2017": (without_counters, "102 of 122 .*without the 20 counters of batch norm, as before 2018, head loaded"),
    "DDP": (lambda s: {"state_dict": under("module.", s)}, "raw weights of state_dict, wrapped by DataParallel or DDP"),
    "compiled": (
        lambda s: under("_orig_mod.module.", s),
        "wrapped by torch.compile and DataParallel or DDP|wrapped by",
    ),
    "nested": (lambda s: under("net.module.model._orig_mod.backbone.encoder.", s), "raw weights of net.model.backbone"),
    "Lightning": (
        lambda s: {"state_dict": under("model.", s), "pytorch-lightning_version": "2", "hyper_parameters": {"a": ARGS}},
        "a checkpoint of Lightning, raw weights of state_dict, model, timm's names",
    ),
    "timm's": (
        lambda s: {"epoch": 1, "arch": "x", "args": ARGS, "state_dict": other(s), "state_dict_ema": s, "optimizer": s},
        "a training checkpoint like timm's, EMA weights of state_dict_ema",
    ),
    "model and ema": (lambda s: {"model": other(s), "ema": s}, "EMA weights of ema"),
    "params": (lambda s: {"params": other(s), "params_ema": under("module.", s)}, "EMA weights of params_ema"),
    "net": (lambda s: {"net": s, "acc": 93.1, "epoch": 3}, "raw weights of net"),
    "Lightning's EMA": (
        lambda s: {
            "state_dict": under("model.", other(s)) | under("ema_model.module.", s),
            "callbacks": {"a": other(s)},
        },
        "EMA weights of state_dict, ema_model",
    ),
    "teacher": (
        lambda s: {"student": under("module.backbone.", other(s)), "teacher": under("backbone.", s), "args": ARGS},
        "teacher of teacher, backbone",
    ),
    "MoCo": (
        lambda s: {"state_dict": under("module.encoder_k.", other(s)) | under("module.encoder_q.", s)},
        "raw weights of state_dict, encoder_q",
    ),
    # Nobody listed these
    "a wider teacher": (
        lambda s: {"teacher": {n: torch.stack([t, t]) for n, t in s.items()}, "student": under("module.", s)},
        "raw weights of student",
    ),
    "optimizer first": (lambda s: {"optimizer": other(s), "opt_state": 1, "model": s}, "raw weights of model"),
    "averaged": (lambda s: under("module.", s) | {"n_averaged": torch.tensor(3)}, r"left out: n_averaged \(1\)"),
    "compiled in parts": (lambda s: renamed(s, (r"^(layer\d)\.", r"\1._orig_mod.")), "wrapped by torch.compile"),
    "checkpointed": (lambda s: renamed(s, (r"^(layer\d\.\d)\.", r"\1._checkpoint_wrapped_module.")), "checkpointing"),
    "FSDP": (lambda s: under("_fsdp_wrapped_module.", s), "wrapped by FSDP"),
    "halves": (lambda s: {n: t.half() if t.is_floating_point() else t for n, t in s.items()}, "head loaded"),
    "parameters": (lambda s: {n: nn.Parameter(t, False) for n, t in s.items()}, "122 of 122"),
    "a loss beside": (lambda s: under("model.", s) | {"criterion.weight": torch.ones(4)}, "raw weights of model"),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers_and_prefixes(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    source = torchvision.models.resnet18(num_classes=4)
    write, said = CONTAINERS[kind]
    torch.save(write(state_of(source)), tmp_path / "w.pth")
    with caplog.at_level("INFO", "flowers_torch"):
        ours = create_model("resnet18", 4, weights=str(tmp_path / "w.pth"))
    assert re.search(said, caplog.text), caplog.text
    limit = 1e-2 if kind == "halves" else 1e-6
    assert (logits(ours, 64) - logits(source, 64)).abs().max() <= limit * logits(source, 64).abs().max()


def test_prefixes_in_safetensors(tmp_path: Path) -> None:
    source = timm.create_model("test_vit", num_classes=3)
    safetensors.torch.save_file(under("module._orig_mod.model.", state_of(source)), tmp_path / "w.safetensors")
    ours = create_model("test_vit", 3, weights=str(tmp_path / "w.safetensors"))
    assert torch.equal(logits(ours, 160), logits(source, 160))


def test_a_whole_network_is_read_without_running_its_code(tmp_path: Path) -> None:
    source = torchvision.models.resnet18(num_classes=4)
    state_of(source)
    torch.save(nn.DataParallel(source), tmp_path / "w.pth")
    ours = create_model("resnet18", 4, weights=str(tmp_path / "w.pth"))
    assert torch.equal(logits(ours, 64), logits(source, 64))


def test_a_sequential_of_the_parts_of_a_network(tmp_path: Path) -> None:
    """`nn.Sequential(*list(resnet.children())[:-1])`, as many tutorials cut off the classifier."""
    source = torchvision.models.resnet18()
    state_of(source)
    torch.save(nn.Sequential(*list(source.children())[:-1]).state_dict(), tmp_path / "w.pth")
    plan = plan_weights("resnet18", str(tmp_path / "w.pth"))
    ours = create_model("resnet18", 4)
    text = load_weights(ours, "resnet18", plan)
    assert text.startswith("120 of 122 tensors") and "numbered layers" in text and text.endswith("newly initialized")
    source.fc = nn.Identity()
    ours.fc = nn.Identity()
    assert torch.equal(logits(ours, 64), logits(source, 64))


def test_a_backbone_and_a_head_in_dicts_of_their_own(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet", num_classes=3)
    state = state_of(source)
    parts = {
        part: {n: t for n, t in state.items() if n.startswith("fc.") == (part == "head")} for part in ("body", "head")
    }
    torch.save(parts, tmp_path / "w.pth")
    ours = create_model("test_resnet", 3, weights=str(tmp_path / "w.pth"))
    assert torch.equal(logits(ours, 64, head=False), logits(source, 64, head=False))


@pytest.mark.parametrize("arch", ["densenet121", "timm:densenet121"])
def test_densenet_files_of_2017(tmp_path: Path, arch: str) -> None:
    source = torchvision.models.densenet121(num_classes=4)
    old = renamed(without_counters(state_of(source)), (r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2"))
    torch.save(old, tmp_path / "w.pth")
    plan = plan_weights(arch, str(tmp_path / "w.pth"))
    ours = create_model(arch, 4, **plan.options)
    text = load_weights(ours, arch, plan)
    assert "torchvision's densenet layout, converted by timm" in text and text.endswith("head loaded")
    assert (logits(ours, 64) - logits(source, 64)).abs().max() <= 1e-5 * logits(source, 64).abs().max()


@pytest.mark.parametrize("arch", ["vgg16", pytest.param("timm:vgg16", marks=pytest.mark.slow), "timm:vgg11"])
@pytest.mark.parametrize("numbered", [False, True])
def test_vgg_without_dense_layers(tmp_path: Path, arch: str, numbered: bool) -> None:
    with torch.device("meta"):
        shell = torchvision.models.get_model(arch.removeprefix("timm:"))
    source = shell.features.to_empty(device="cpu")
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.05)
    torch.save(source.state_dict() if numbered else under("features.", source.state_dict()), tmp_path / "w.pth")
    plan = plan_weights(arch, str(tmp_path / "w.pth"))
    ours = create_model(arch, 4, size=32) if arch == "vgg16" else create_model(arch, 4)
    text = load_weights(ours, arch, plan)
    assert "without dense layers" in text and text.endswith("head newly initialized")
    expected, found = logits(source, 32), logits(ours, 32, head=False)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()


def swin_of_its_authors(state: State) -> dict[str, Tensor]:
    """Microsoft's names: a stage ends, not begins, with its downsampling."""
    state = {
        re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name): tensor
        for name, tensor in state.items()
    }
    state = renamed(state, (r"^head\.fc\.", "head."))
    return {"model": state | {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49)}}  # type: ignore[dict-item]


CONVNEXT = (
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d)\.downsample", r"downsample_layers.\1"),
    (r"stages\.(\d)\.blocks", r"stages.\1"),
    ("conv_dw", "dwconv"),
    (r"mlp\.fc", "pwconv"),
    (r"^head\.norm", "norm"),
    (r"^head\.fc", "head"),
)
PAPERS: dict[str, tuple[str, int, Callable[[State], Any]]] = {
    "swin": ("swin_tiny_patch4_window7_224", 224, swin_of_its_authors),
    "convnext": ("convnext_atto", 64, lambda s: {"model": renamed(s, *CONVNEXT)}),
    "deit3": ("deit3_small_patch16_224", 224, lambda s: {"model": renamed(s, (r"ls(\d)\.gamma", r"gamma_\1"))}),
    "MAE": (
        "vit_tiny_patch16_224",
        224,
        lambda s: {"model": s | {"mask_token": torch.ones(1, 1, 9), "decoder_embed.weight": torch.ones(9, 9)}},
    ),
}


@pytest.mark.parametrize("paper", PAPERS)
def test_layouts_of_papers(tmp_path: Path, paper: str) -> None:
    arch, size, write = PAPERS[paper]
    source = timm.create_model(arch, num_classes=4)
    torch.save(write(state_of(source)), tmp_path / "w.pth")
    plan = plan_weights(arch, str(tmp_path / "w.pth"))
    ours = timm.create_model(arch, num_classes=4)
    text = load_weights(ours, arch, plan)
    assert text.endswith("head loaded")
    assert ("left out: mask_token (1), decoder_embed (1)" if paper == "MAE" else "converted by timm") in text, text
    assert (logits(ours, size) - logits(source, size)).abs().max() <= 1e-6 * logits(source, size).abs().max()


def test_a_backbone_for_another_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = timm.create_model("test_vit", num_classes=0)
    torch.save({"teacher": under("backbone.", state_of(source)), "student": {}}, tmp_path / "w.pth")
    with caplog.at_level("INFO", "flowers_torch"):
        create_model("test_vit", 4, weights=str(tmp_path / "w.pth"), size=96)
    assert "position embeddings resampled" in caplog.text and "head newly initialized" in caplog.text


FOREIGN: dict[str, tuple[str, Callable[[], nn.Module], str]] = {
    "torchvision's efficientnet": (
        "efficientnet_b0",
        torchvision.models.efficientnet_b0,
        "does not fit efficientnet_b0: .* missing .conv_stem.weight.*looks like torchvision's efficientnet",
    ),
    "torchvision's vit": ("vit_base_patch32_224", torchvision.models.vit_b_32, "looks like torchvision's vit"),
    "a deeper network": (
        "resnet18",
        torchvision.models.resnet34,
        "80 unexpected .layer1.2.conv1.weight.*torchvision's or timm's resnet",
    ),
    "a shallower network": ("resnet34", torchvision.models.resnet18, "does not fit resnet34: .* missing"),
    "another family": ("test_vit", torchvision.models.mobilenet_v2, "looks like torchvision's mobilenet_v2"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_weights_of_other_networks_are_refused(tmp_path: Path, kind: str) -> None:
    arch, create, message = FOREIGN[kind]
    with torch.device("meta"):
        names = create().state_dict()
    torch.save({name: torch.zeros(tensor.shape) for name, tensor in names.items()}, tmp_path / "w.pth")
    with pytest.raises(ModelFileError, match=message):
        plan_weights(arch, str(tmp_path / "w.pth"))


def test_half_of_the_tensors_is_not_enough(tmp_path: Path) -> None:
    state = timm.create_model("resnet18").state_dict()
    half = {name: tensor for name, tensor in state.items() if not name.startswith(("layer3.", "layer4."))}
    torch.save({"state_dict": under("module.", half)}, tmp_path / "w.pth")
    with pytest.raises(ModelFileError, match=r"52 of the network's tensors found, 50 missing \(layer3.0.conv1.weight"):
        plan_weights("resnet18", str(tmp_path / "w.pth"))


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit"])
def test_a_strangers_head_of_equal_width_is_not_taken(tmp_path: Path, arch: str) -> None:
    source = timm.create_model(arch, num_classes=2)
    torch.save(source.state_dict(), tmp_path / "dog_cat.pth")
    plan = plan_weights(arch, str(tmp_path / "dog_cat.pth"))
    ours = build(ModelInfo(arch, ("happy", "sad"), plan.preprocessing))
    (head,) = classifier_names(ours)
    before = ours.get_submodule(head).weight.clone()  # type: ignore[operator, union-attr]
    text = load_weights(ours, arch, plan, ("happy", "sad"))
    assert text.endswith("head left out because it does not name your classes, head newly initialized")
    assert torch.equal(ours.get_submodule(head).weight, before)  # type: ignore[arg-type]
    assert torch.equal(logits(ours, 160, head=False), logits(source, 160, head=False))


def test_a_part_of_another_task_is_left_out_by_name(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet", num_classes=0)
    detector = under("backbone.", state_of(source)) | {"neck.a": torch.ones(1), "roi_heads.b": torch.ones(1)}
    torch.save({"model": detector}, tmp_path / "w.pth")
    text = load_weights(
        create_model("test_resnet", 3), "test_resnet", plan_weights("test_resnet", str(tmp_path / "w.pth"))
    )
    assert "raw weights of model, backbone" in text and "head newly initialized" in text


def test_a_dict_for_each_module(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet", num_classes=3)
    tree: dict[str, Any] = {}
    for name, tensor in state_of(source).items():
        *modules, last = name.split(".")
        at = tree
        for module in modules:
            at = at.setdefault(module, {})
        at[last] = tensor
    torch.save({"params": tree}, tmp_path / "w.pth")
    ours = create_model("test_resnet", 3, weights=str(tmp_path / "w.pth"))
    assert torch.equal(logits(ours, 64), logits(source, 64))


def test_a_patch_embedding_that_would_take_minutes_to_resample(tmp_path: Path) -> None:
    state = timm.create_model("test_vit").state_dict()
    state["patch_embed.proj.weight"] = torch.zeros(state["patch_embed.proj.weight"].shape[0], 3, 2, 2000)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ModelFileError, match="kernels of over 64 pixels"):
        create_model("test_vit", 3, weights=str(tmp_path / "w.pth"))


def test_names_tell_whose_layout_it_is() -> None:
    assert whose(["vit.embeddings.cls_token"]) == "Hugging Face's transformers"
    assert whose(["visual.transformer.resblocks.0.ln_1.weight"]) == "OpenAI's or open_clip's CLIP"
    assert whose(["a.weight"]) == "an unknown"
