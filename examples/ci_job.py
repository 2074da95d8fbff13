"""A job of continuous integration: fails if a model has become worse, else exports it as ONNX.

pip install "flowers-torch[onnx]" && python examples/ci_job.py
"""

import sys

from flowers_torch import Classifier

classifier = Classifier.load("latest")
evaluation = classifier.evaluate("new_photos")
low, high = evaluation.interval
print(f"accuracy {evaluation.accuracy:.3f} ({low:.3f} .. {high:.3f})")
if high < 0.9:
    sys.exit("the model has become worse")
print(classifier.export("onnx", "model.onnx", with_preprocessing=True))
