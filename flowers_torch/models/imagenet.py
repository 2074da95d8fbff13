"""The classes of ImageNet: what the 1000 logits of a pretrained network stand for."""

from functools import cache

from torch import Tensor

from flowers_torch.errors import UsageError


@cache
def imagenet_classes() -> tuple[tuple[str, str], ...]:
    """(WordNet id, name) of the 1000 classes in the order of the logits, from timm's tables."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return tuple((wnid, info.label_name_to_description(wnid)) for wnid in info.label_names())


def decode_predictions(logits: Tensor, top: int = 3) -> list[list[tuple[str, str, float]]]:
    """For each image `top` tuples (WordNet id, name, probability), most probable first, from logits N x 1000.

    Names are spelled as Keras's: the first synonym, with underscores.

    Raises:
        UsageError: these are not logits of 1000 classes, or `top` is out of range.
    """
    if logits.ndim != 2 or logits.shape[1] != 1000:
        what = f"ImageNet logits are N x 1000, these are {' x '.join(map(str, logits.shape))}"
        raise UsageError(what, "give the output of a network with its 1000-class head")
    if not 1 <= top <= 1000:
        raise UsageError(f"top={top} of 1000 classes", "give 1 to 1000")
    classes = [(wnid, name.partition(",")[0].replace(" ", "_")) for wnid, name in imagenet_classes()]
    best = logits.detach().float().softmax(1).topk(top)
    return [
        [(*classes[index], probability) for index, probability in zip(indices, probabilities, strict=True)]
        for indices, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
