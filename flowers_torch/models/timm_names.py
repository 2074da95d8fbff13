"""What to write in place of a name that timm does not know: other libraries' spellings, old names, wrong tags."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence

# torchvision's names of networks that timm calls otherwise; RegNets follow a rule.
TORCHVISION_NAMES = {
    **{f"vit_{short}_{patch}": f"vit_{long}_patch{patch}_224" for short, long, patch in (
        ("b", "base", 16), ("b", "base", 32), ("l", "large", 16), ("l", "large", 32), ("h", "huge", 14),
    )},
    **{f"swin_{long[0]}": f"swin_{long}_patch4_window7_224" for long in ("tiny", "small", "base")},
    **{f"swin_v2_{long[0]}": f"swinv2_{long}_window8_256" for long in ("tiny", "small", "base")},
    **{f"efficientnet_v2_{size}": f"tf_efficientnetv2_{size}" for size in "sml"},
    **{f"mobilenet_v3_{size}": f"mobilenetv3_{size}_100" for size in ("large", "small")},
    **{"mnasnet0_5": "mnasnet_050", "mnasnet0_75": "mnasnet_075", "mnasnet1_0": "mnasnet_100"},
    **{"mnasnet1_3": "mnasnet_140", "maxvit_t": "maxvit_tiny_tf_224"},
}  # fmt: skip
TORCHVISION_ONLY = re.compile("(shufflenet_v2|squeezenet)[0-9_x]+")
HUB = re.compile(r"(hf[-_]hub:|https?://(www\.)?(huggingface\.co|hf\.co)/|local-dir:)?(([\w.-]+)/)?([^/]+)/?")


def what_to_write(
    name: str, timm_name: str, list_models: Callable[[], Sequence[str]], keras_names: Mapping[str, str]
) -> str:
    """The fix for a network's name that cannot be used; empty for one that timm knows.

    Args:
        name: What the user typed.
        timm_name: The same without the prefix that selects timm's network.
        list_models: Returns every name that may be used.
        keras_names: This package's names by those of keras.applications.
    """
    import timm
    import timm.models

    architecture, _, tag = timm_name.partition(".")
    renamed = timm.models.get_deprecated_models()
    if architecture in renamed:
        now = renamed[architecture]
        return f"timm calls it {now} now: use --arch {now}" if now else "timm has removed it: choose another network"
    if timm.is_model(timm_name):
        return _fix_of_tag(architecture, tag) if tag else ""
    hub = HUB.fullmatch(timm_name)
    if hub and (hub[1] or hub[4]):
        if hub[5] == "timm" and timm.is_model(hub[6]):
            architecture, _, tag = hub[6].partition(".")
            return (_fix_of_tag(architecture, tag) if tag else "") or f"use --arch {hub[6]}"
        return "give the name of timm's network as --arch, and a downloaded file as --weights FILE"
    if now := keras_names.get(name) or TORCHVISION_NAMES.get(name.lower()) or _regnet(name.lower()):
        return f"use --arch {now}"
    if TORCHVISION_ONLY.fullmatch(name):
        return "timm has no such network: use --arch mobilenetv3_small_050, which is as small"
    names = list_models()
    plain = name.lower().replace("-", "_")
    known = [plain] if plain in names else difflib.get_close_matches(plain, names, n=3, cutoff=0.5)
    return f"use one of {', '.join(known)}" if known else "see flowers-torch models"


def _fix_of_tag(architecture: str, tag: str) -> str:
    import timm

    name = f"{architecture}.{tag}"
    tagged = [known for known in timm.list_models(architecture, include_tags=True) if "." in known]
    if name in tagged:
        return ""
    tagged.sort(key=lambda known: -difflib.SequenceMatcher(None, known, name).ratio())
    what = f"use one of {', '.join(tagged[:5])}" if tagged else f"use --arch {architecture}"
    return f"{architecture} has no weights {tag!r}: {what}"


def _regnet(name: str) -> str:
    """timm's name of torchvision's `regnet_y_1_6gf`, which is `regnety_016`."""
    found = re.fullmatch(r"regnet_([xy])_(\d+)(?:_(\d+))?(mf|gf)", name)
    if not found:
        return ""
    gigaflops = float(f"{found[2]}.{found[3] or 0}") / (1000 if found[4] == "mf" else 1)
    return f"regnet{found[1]}_{round(10 * gigaflops):03}"
