"""A contestant: Keras 3 as the tutorial has it, a network without top, average pooling, two dense layers.

The backend is what KERAS_BACKEND says. Photos are decoded once and kept; Keras's own layers augment them.
With --steps nothing is augmented.
"""

import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
from protocol import arguments, pair, print_progress, print_rate

parser = arguments(__doc__)
parser.add_argument("--xla", action="store_true", help="jit_compile")
args = parser.parse_args()
keras.utils.set_random_seed(args.seed)
if args.bf16:
    keras.mixed_precision.set_global_policy("mixed_bfloat16")


def network(classes):
    shape = (args.size, args.size, 3)
    make = {"inception_v3": keras.applications.InceptionV3, "resnet50": keras.applications.ResNet50}[args.arch]
    base = make(include_top=False, weights=None, input_shape=shape)
    if args.weights:
        base.load_weights(args.weights)
    views = [
        keras.layers.RandomFlip("horizontal"),
        keras.layers.RandomZoom(0.2),
        keras.layers.RandomRotation(0.08),
    ]
    inputs = keras.Input(shape)
    x = inputs if args.steps else keras.Sequential(views)(inputs)
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(x)
    x = keras.layers.GlobalAveragePooling2D()(base(x))
    x = keras.layers.Dense(1024, "relu")(x)
    outputs = keras.layers.Dense(classes, "softmax", dtype="float32")(x)
    return base, keras.Model(inputs, outputs)


def compiled(model, optimizer):
    loss = "sparse_categorical_crossentropy"
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=args.xla)


if args.steps:
    base, model = network(17)
    compiled(model, keras.optimizers.Adam(1e-4))
    images = np.random.default_rng(0).uniform(0, 255, (args.batch_size, args.size, args.size, 3)).astype("float32")
    labels = np.arange(args.batch_size) % 17
    step = (lambda: model.predict_on_batch(images)) if args.forward else (lambda: model.train_on_batch(images, labels))
    print_rate(step, args.batch_size, args.steps)
    raise SystemExit

splits = json.load(open(args.photos))


def arrays(split):
    images = np.stack(
        [
            keras.utils.img_to_array(keras.utils.load_img(path, target_size=(args.size, args.size)), dtype="uint8")
            for path, _ in splits[split]
        ]
    )
    return images, np.array([label for _, label in splits[split]])


train, val, test = (arrays(split) for split in ("train", "val", "test"))
base, model = network(len(splits["classes"]))


class PrintProgress(keras.callbacks.Callback):
    """Prints the progress of each epoch."""

    def on_epoch_end(self, epoch, logs=None):
        print_progress(epoch=epoch + 1, val_accuracy=logs["val_accuracy"])


frozen, free = pair(args.epochs, int)
rates = pair(args.lr)
stages = [(False, frozen, keras.optimizers.SGD(rates[0])), (True, free, keras.optimizers.Adam(rates[1]))]
for base.trainable, epochs, optimizer in stages:
    compiled(model, optimizer)
    model.fit(*train, args.batch_size, epochs, verbose=0, callbacks=[PrintProgress()], validation_data=val)
print_progress(test_accuracy=model.evaluate(*test, args.batch_size, verbose=0)[1])
