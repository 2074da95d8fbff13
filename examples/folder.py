"""Trains on a folder of class folders, prints the accuracy with its interval, and classifies another folder.

python examples/folder.py
"""

from flowers_torch import train

result = train("my_photos", "tf_efficientnet_lite0", "offline", head_only=True)
low, high = result.interval
print(f"accuracy {result.accuracy:.3f} ({low:.3f} .. {high:.3f}), report in {result.folder}")
for prediction in result.classifier("new_photos"):
    print(prediction.file, prediction.error or f"{prediction.label} {prediction.probability:.2f}")
