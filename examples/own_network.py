"""Fine-tunes a module of one's own: a head first, then all of it, then prints the trained module.

python examples/own_network.py
"""

import timm
from torch import nn

from flowers_torch import Classifier, train

backbone = timm.create_model("test_resnet", num_classes=0)  # or any other module with pretrained weights
module = nn.Sequential(backbone, nn.Dropout(0.2), nn.Linear(backbone.num_features, 10))
result = train("my_photos", module, size=96, epochs=(1, 2))
print(result, Classifier.load(result.folder, network=module)("my_photos/red/3.png").label)
print(result.classifier.network.module())  # one's own module again, with a new last layer
