"""One network of each of timm's families trains a step, predicts, gives features and a report, at three sizes.

    pytest -m slow tests/models/test_timm_families.py -k "vgg or vit"
    python tests/models/test_timm_families.py FILE...        # the table of the results

Each network writes a line of JSON to the file that FLOWERS_TORCH_FAMILIES names. All take about half an hour on one
core; the largest needs 4 GB and three minutes.
"""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
from timm.models import _registry

from flowers_torch.config import Config
from flowers_torch.config_file import load_config
from flowers_torch.deploy.features import image_features
from flowers_torch.deploy.predictor import Predictor
from flowers_torch.errors import UsageError
from flowers_torch.models.registry import find_entry
from flowers_torch.runs import recipe
from flowers_torch.training.device import choose_runtime

RATIOS = (0.75, 1, 1.25)
# The network of each family with the least work, by parameters and pixels.
SMALLEST = {
    "beit": "beitv2_base_patch16_224", "byoanet": "haloregnetz_b", "byobnet": "mobileone_s1", "cait":
    "cait_xxs24_224", "coat": "coat_tiny", "convit": "convit_tiny", "convmixer": "convmixer_768_32", "convnext":
    "convnext_zepto_rms", "cpubone": "cpubone_nano", "crossvit": "crossvit_tiny_240", "csatv2": "csatv2",
    "cspnet": "cs3darknet_focus_s", "cspnext": "cspnext_tiny", "davit": "davit_tiny", "deepseek_vit":
    "deepseek_vit_412m", "deit": "deit_tiny_patch16_224", "densenet": "densenet121", "dla": "dla46x_c", "dpn":
    "dpn48b", "edgenext": "edgenext_xx_small", "efficientformer": "efficientformer_l1", "efficientformer_v2":
    "efficientformerv2_s0", "efficientnet": "tinynet_e", "efficientvim": "efficientvim_m1", "efficientvit_mit":
    "efficientvit_b0", "efficientvit_msra": "efficientvit_m0", "eva": "eva02_tiny_patch14_224", "fasternet":
    "fasternet_t0", "fastvit": "fastvit_t8", "focalnet": "focalnet_tiny_srf", "gcvit": "gcvit_xxtiny",
    "gemma4_vit": "gemma4_vit_167m", "ghostnet": "ghostnet_050", "hardcorenas": "hardcorenas_b", "hgnet":
    "hgnetv2_b0", "hiera": "hiera_tiny_224", "hieradet_sam2": "hieradet_small", "hrnet": "hrnet_w18_small",
    "iformer": "iformer_t", "inception_next": "inception_next_atto", "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3", "inception_v4": "inception_v4", "lcnetv2": "lcnetv2_small", "levit":
    "levit_128s", "lowformer": "lowformer_b0", "mambaout": "mambaout_femto", "maxxvit": "coatnet_pico_rw_224",
    "metaformer": "poolformerv2_s12", "mlp_mixer": "gmlp_ti16_224", "mobilenetv3": "mobilenetv3_small_050",
    "mobilenetv5": "mobilenetv5_base", "mobilevit": "mobilevit_xxs", "mvitv2": "mvitv2_tiny", "naflexvit":
    "naflexvit_base_patch16_parfac_gap", "nasnet": "nasnetalarge", "nest": "nest_tiny_jx", "nextvit":
    "nextvit_small", "nfnet": "nf_regnet_b0", "pit": "pit_ti_224", "pnasnet": "pnasnet5large", "pvt_v2":
    "pvt_v2_b0", "qwen3_vit": "qwen3_vit_88m", "rdnet": "rdnet_tiny", "regnet": "regnetx_002", "repghost":
    "repghostnet_050", "repvit": "repvit_m1", "res2net": "res2next50", "resnest": "resnest14d", "resnet":
    "resnet10t", "resnetv2": "resnetv2_18", "rexnet": "rexnet_100", "selecsls": "selecsls42", "senet":
    "legacy_seresnet18", "sequencer": "sequencer2d_s", "shvit": "shvit_s1", "sknet": "skresnet18", "starnet":
    "starnet_s050", "swiftformer": "swiftformer_xs", "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window16_256", "swin_transformer_v2_cr": "swinv2_cr_tiny_224", "tiny_vit":
    "tiny_vit_5m_224", "tnt": "tnt_s_legacy_patch16_224", "tresnet": "tresnet_m", "twins": "twins_svt_small",
    "vgg": "vgg11", "visformer": "visformer_tiny", "vision_transformer": "vit_tiny_patch16_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224", "vision_transformer_relpos":
    "vit_srelpos_small_patch16_224", "vision_transformer_sam": "samvit_base_patch16_224", "vitamin":
    "vitamin_small_224", "volo": "volo_d1_224", "vovnet": "ese_vovnet19b_slim_dw", "xception": "legacy_xception",
    "xception_aligned": "xception41p", "xcit": "xcit_nano_12_p8_224"
}  # fmt: skip
# Fewer blocks, or narrower ones, where the network is slow: the same kinds of layers in less time.
FEWER_BLOCKS: dict[str, dict[str, Any]] = {
    "beit": {"depth": 2},
    "cait": {"depth": 2},
    "convit": {"depth": 2, "local_up_to_layer": 1},
    "davit": {"depths": [1, 1, 1, 1]},
    "deepseek_vit": {"depth": 2, "embed_dim": 256, "num_heads": 4},
    "densenet": {"block_config": [2, 2, 2, 2]},
    "eva": {"depth": 2},
    "gemma4_vit": {"depth": 1, "embed_dim": 192, "num_heads": 3, "intermediate_size": 384},
    "nasnet": {"num_features": 192},
    "pit": {"depth": [1, 1, 1]},
    "qwen3_vit": {"depth": 1, "embed_dim": 192, "num_heads": 3},
    "sequencer": {"layers": [1, 1, 1, 1]},
    "swin_transformer": {"depths": [2, 2, 2, 2]},
    "swin_transformer_v2": {"depths": [2, 2, 2, 2]},
    "swin_transformer_v2_cr": {"depths": [2, 2, 2, 2]},
    "tnt": {"depth": 2},
    "twins": {"depths": [2, 2, 2, 2]},
    "vision_transformer": {"depth": 2},
    "vision_transformer_relpos": {"depth": 2},
    "vision_transformer_sam": {"depth": 2, "global_attn_indexes": [1]},
    "xcit": {"depth": 2},
}


def test_every_family_of_timm_is_here() -> None:
    assert set(SMALLEST) == {_registry._model_to_module[name] for name in timm.list_models()}


def config_of(name: str, size: int, photos: Path, options: dict[str, Any]) -> Config:
    """A step for the head and one for all of the network, in float32 on one core."""
    changes: dict[str, Any] = {"epochs": [1, 1], "batch_size": 4, "threads": 1, "workers": 0, "groups": "none"}
    changes |= {"precision": "fp32", "weights": "none", "size": size, "split": "50/25/25", "device": "cpu"}
    return load_config(name, str(photos), overrides=changes | {f"model_options.{k}": v for k, v in options.items()})


@pytest.fixture(scope="module")
def few_photos(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of four photos."""
    root = tmp_path_factory.mktemp("few")
    for path in sorted(photo_folder.glob("*/*.png")):
        if path.parent.name != "red" and int(path.stem) < 4:
            (root / path.parent.name).mkdir(exist_ok=True)
            (root / path.parent.name / path.name).write_bytes(path.read_bytes())
    return root


@pytest.mark.slow
@pytest.mark.parametrize("family", SMALLEST)
def test_a_network_of_the_family(
    family: str, few_photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, started = f"timm:{SMALLEST[family]}", time.monotonic()
    usual, options = find_entry(name).preprocessing.size, FEWER_BLOCKS.get(family, {})
    row: dict[str, Any] = {"family": family, "network": SMALLEST[family], "size": usual}
    row |= {"options": options, "results": {}}
    try:
        for ratio in RATIOS:
            size = round(ratio * usual)
            row["results"][str(ratio)] = whole_run(name, size, few_photos, tmp_path / str(size), options)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:300]
        raise
    finally:
        row["seconds"] = round(time.monotonic() - started)
        if file := os.environ.get("FLOWERS_TORCH_FAMILIES"):
            with open(file, "a", encoding="utf-8") as table:
                table.write(json.dumps(row) + "\n")
    assert row["results"]["1"] == "works"
    assert "left out" not in caplog.text


def whole_run(name: str, size: int, photos: Path, folder: Path, options: dict[str, Any]) -> str:
    """ "works", or the sizes that the network takes in place of this one."""
    try:
        recipe.train(config_of(name, size, photos, options), folder)
    except UsageError as error:
        assert re.search("does not take --size|too small", str(error)) and not folder.exists()
        return str(error).rpartition("fix: ")[2]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "left out" not in page
    images = sorted(photos.glob("*/*.png"))[:2]
    runtime = choose_runtime("cpu", "fp32")
    classifier = Predictor.load(folder, runtime)
    found = list(classifier.predict(images))
    assert all(abs(sum(one.probabilities) - 1) < 1e-4 for one in found)
    assert classifier.explain(images[0]).size == (size, size)
    features = image_features(classifier.network, classifier.info.preprocessing, images, runtime)
    assert len(features) == 2 and bool(features.isfinite().all())
    return "works"


def print_table(files: list[str]) -> None:
    """The results as a table in Markdown, the last one of each family."""
    lines = [line for file in files for line in Path(file).read_text(encoding="utf-8").splitlines()]
    rows = {row["family"]: row for row in map(json.loads, lines)}
    good = [family for family, row in rows.items() if row["results"].get("1") == "works" and "error" not in row]
    print(f"{len(good)} of {len(SMALLEST)} families\n")
    print("| family | network | size | at 0.75 | at 1 | at 1.25 |\n|---|---|---|---|---|---|")
    for family, row in sorted(rows.items()):
        cells = [row["results"].get(str(ratio), row.get("error", "-")) for ratio in RATIOS]
        cells = ["yes" if cell == "works" else cell.removeprefix("use --size ") for cell in cells]
        print("|", " | ".join([f"`{family}`", f"`{row['network']}`", str(row["size"]), *cells]), "|")


if __name__ == "__main__":
    print_table(sys.argv[1:])
