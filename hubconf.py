"""Entry points for torch.hub; importing this file reads and writes nothing.

    import torch
    network = torch.hub.load("OWNER/REPOSITORY", "resnet50", trust_repo=True, num_classes=6)
    file = "model.safetensors"
    flowers = torch.hub.load("OWNER/REPOSITORY", "flowers_classifier", trust_repo=True, checkpoint=file)
    logits = flowers(flowers.transform(image)[None])    # image: what PIL.Image.open returns
    name = flowers.classes[logits.argmax()]

Without trust_repo=True torch asks for confirmation on the terminal. torch.hub.list and torch.hub.help show
the entry points and their arguments. All networks except `flowers_classifier` have random weights.
"""

# ruff: noqa: F401 - every imported function is an entry point

from typing import Any as _Any

from torch import nn as _nn

from flowers_torch.deploy.hub import flowers_classifier
from flowers_torch.models import inception_v3 as _inception_v3
from flowers_torch.models.classic import alexnet, lenet5, vgg16, vgg19
from flowers_torch.models.densenet import densenet121, densenet169, densenet201
from flowers_torch.models.inception import googlenet
from flowers_torch.models.mobilenet import mobilenet, mobilenet_v2
from flowers_torch.models.nasnet import nasnet_large, nasnet_mobile
from flowers_torch.models.resnet import resnet50, resnet101, resnet152, resnext50, resnext101
from flowers_torch.models.resnet_cifar import cifar_resnet
from flowers_torch.models.resnet_v2 import resnet50v2, resnet101v2, resnet152v2
from flowers_torch.models.small import cifar10_net, happy_blocks, happy_model, small_convnet
from flowers_torch.models.squeezenet import squeezenet
from flowers_torch.models.xception import xception

dependencies = ["torch", "torchvision", "timm", "PIL", "numpy", "safetensors"]  # guard: H03


def inception_v3(num_classes: int = 1000, **options: _Any) -> _nn.Module:
    """InceptionV3 with random weights; options as in `flowers_torch.models.inception_v3.InceptionV3`."""
    return _inception_v3.InceptionV3(num_classes, **options)
