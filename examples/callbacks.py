"""Sends each epoch to a logger, stops early, and trains a quiet sweep.

python examples/callbacks.py
"""

import logging

from flowers_torch import StopTraining, train


def stop_early(epoch: dict) -> None:
    if epoch["stage"] == "finetune" and epoch["val_accuracy"] > 0.95:
        raise StopTraining


logger = logging.getLogger("sweep")
logger.addHandler(logging.StreamHandler())
logger.setLevel(logging.INFO)
live = [lambda epoch: logger.info("%(stage)s %(epoch)d: loss %(val_loss).3f", epoch), stop_early]
for seed in (0, 1):
    options = {"seed": seed, "epochs": (1, 2), "quiet": True, "callbacks": live}
    print(seed, train("my_photos", "tf_efficientnet_lite0", "offline", **options))
