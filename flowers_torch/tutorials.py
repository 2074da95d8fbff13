"""What the tutorials printed, row by row, and where our recipes differ from them on purpose.

Four documents, A to D, see `DOCUMENTS`; a row is named by the letter of its document and a number.
"""

import dataclasses

DOCUMENTS = {
    "A": "a tutorial on Flowers-17 with InceptionV3, trained in two stages",
    "B": "notes and notebooks of a course: case studies of networks, the Happy House, ResNet50 on SIGNS",
    "C": "Keras's own pages on `keras.applications` and on training with very little data",
    "D": "a blog on training with many classes and on bottleneck features",
}
LAST_EPOCH = "the epoch with the lowest calibrated validation loss is tested; there it was the last one"
NO_TEST = "tested on photos that decided nothing; the figure there is of the photos validated on"
VGG_INPUT = "photos as VGG16's weights want them (BGR, mean colour off); there RGB in 0..1"
VALIDATES = "a ninth of the training photos validates, so that fewer train"
FEWER = "the test is a ninth of the training photos, so that fewer train"
NESTEROV = "momentum is Nesterov's; there plain"


@dataclasses.dataclass(frozen=True)
class Tutorial:
    """What a recipe of `configs/` repeats.

    Attributes:
        rows: Numbers of the systems in the table of docs/reproduction.md.
        title: What it is.
        figure: What was printed, and of what; empty where nothing was.
        accuracy: Of it, for comparison.
        source: Document (see above) and place.
        data: Where the photos are.
        differs: What is done otherwise here on purpose.
    """

    rows: str
    title: str
    figure: str
    accuracy: float | None
    source: str
    data: str
    differs: tuple[str, ...] = ()


FLOWERS = "fetched by name from Oxford, or --data 17flowers.tgz"
COURSE = "the HDF5 pair comes with the course 'Convolutional Neural Networks' (deeplearning.ai)"
CATS_DOGS = "kaggle.com/c/dogs-vs-cats: the first 1000 of each to train on, the next 400 of each to validate"
ANIMALS = "500 photos, 100 each of bus, dinosaur, elephant, flower, horse; the blog's link is dead"
FLOWERS_FIGURE = "0.9688 on one batch of 64 augmented validation photos, some of them trained on"
FLOWERS_DIFFERS = (
    "parts are disjoint and stratified; there each was drawn anew, so that they overlap",
    "all test photos count, as they are; there one batch of 64, augmented",
    LAST_EPOCH,
)

TUTORIALS: dict[str, Tutorial] = {
    "flowers17_seed": Tutorial(
        "A1 A2 A5 A6 A7",
        "InceptionV3 on Flowers-17, the tutorial's own schedule",
        FLOWERS_FIGURE,
        0.9688,
        "F, output of the fine-tuning",
        FLOWERS,
        (
            *FLOWERS_DIFFERS,
            "classes are weighed; Keras 2 takes a dict for class_weight and ignores the 'auto' there",
            "an epoch is all 800 photos; there 12 batches of 64",
        ),
    ),
    "flowers17_inception_v3": Tutorial(
        "A6",
        "InceptionV3 on Flowers-17, best recipe",
        FLOWERS_FIGURE,
        0.9688,
        "F, output of the fine-tuning",
        FLOWERS,
        FLOWERS_DIFFERS,
    ),
    "flowers17_lite0_fast": Tutorial(
        "A6", "Flowers-17 in seconds, EfficientNet-Lite0", "", None, "A has no such recipe", FLOWERS
    ),
    "flowers17_best_lite0": Tutorial(
        "A6",
        "Flowers-17 as for a contest, EfficientNet-Lite0",
        "",
        None,
        "A has no such recipe",
        FLOWERS,
        ("three of nine runs, one for each of three splits; all nine came to 0.9856 on average",),
    ),
    "happy_house": Tutorial(
        "B8 B11",
        "HappyModel on the Happy House, 600 / 150",
        "0.8467 on 150 test photos after 39 epochs (0.95 said to be within reach); 25 s an epoch",
        0.8467,
        "B, output of evaluate",
        COURSE,
        (VALIDATES, LAST_EPOCH),
    ),
    "signs_resnet50": Tutorial(
        "B10 B11",
        "ResNet50 on SIGNS, 1080 / 120, 6 classes",
        "0.1667 on 120 test photos after 2 epochs, 0.33 on the training photos; 256 to 288 s an epoch",
        0.1667,
        "B, output of evaluate",
        COURSE,
        (
            VALIDATES,
            LAST_EPOCH,
            "batch norm's averages follow with 0.1 a step; there with 0.01, which 68 steps are too few for",
        ),
    ),
    "little_data_convnet": Tutorial(
        "C6",
        "small convnet on cats and dogs, 2000 / 800",
        "0.79 to 0.81 on 800 validation photos after 50 epochs",
        0.80,
        "C, text",
        CATS_DOGS,
        (NO_TEST, FEWER, LAST_EPOCH),
    ),
    "little_data_bottleneck_vgg16": Tutorial(
        "C7 D3",
        "head on VGG16's bottleneck, cats and dogs",
        "0.90 to 0.91 on 800 validation photos (last 0.9075); 1 s an epoch",
        0.9075,
        "C, output of fit",
        CATS_DOGS,
        (NO_TEST, FEWER, LAST_EPOCH, VGG_INPUT),
    ),
    "little_data_finetune_vgg16": Tutorial(
        "C8 D4",
        "VGG16's last block fine-tuned, cats and dogs",
        "0.94 on 800 validation photos after 50 epochs",
        0.94,
        "C, text",
        CATS_DOGS,
        (
            NO_TEST,
            FEWER,
            LAST_EPOCH,
            VGG_INPUT,
            NESTEROV,
            "the last block trains; there model.layers[:25] of 20 layers freezes everything",
        ),
    ),
    "five_animals_convnet": Tutorial(
        "D2",
        "small convnet, five classes, 400 / 100",
        "0.9599 on 100 validation photos after 50 epochs of 2000 photos; 38 s each",
        0.9599,
        "D, output of fit",
        ANIMALS,
        (NO_TEST, FEWER, LAST_EPOCH),
    ),
    "five_animals_bottleneck": Tutorial(
        "D3 D4",
        "head on VGG16's bottleneck, five classes",
        "0.5625 on validation photos, after 0.32 and 0.38 in the two epochs before",
        0.5625,
        "D, output of fit",
        ANIMALS,
        (
            NO_TEST,
            FEWER,
            LAST_EPOCH,
            VGG_INPUT,
            "features of the training photos; the code there overwrites their generator",
        ),
    ),
    "cifar10_cnn": Tutorial(
        "D1",
        "Keras's small network on CIFAR-10",
        "",
        None,
        "D prints no figure",
        "fetched by name",
        (
            VALIDATES,
            LAST_EPOCH,
            "the rate stays at 1e-4; there it decays by 1e-6 a step, to 76% of it",
        ),
    ),
    "finetune_inception_249": Tutorial(
        "C5",
        "InceptionV3, all but the first 249 layers",
        "",
        None,
        "C prints no figure",
        FLOWERS,
        (LAST_EPOCH, NESTEROV, "epochs are ours; the example leaves them open"),
    ),
}


@dataclasses.dataclass(frozen=True)
class Exact:
    """A row whose figure does not depend on training.

    Attributes:
        row: Number of the system.
        what: It is.
        figure: Printed or demanded.
        command: Shows ours.
        tests: Prove it, below tests/.
        slow: Whether they run with `-m slow` only.
    """

    row: str
    what: str
    figure: str
    command: str
    tests: tuple[str, ...]
    slow: bool = False


EXACT: tuple[Exact, ...] = (
    Exact(
        "A1",
        "Flowers-17 in class order, split",
        "800 / 260 / 260 there, overlapping; 800 / 280 / 280 here, disjoint",
        "python train.py --config flowers17_seed --dry-run",
        ("data/test_splits.py::test_exact_split_of_flowers17",),
    ),
    Exact(
        "A2",
        "ImageDataGenerator's augmentation",
        "Keras's pixels within a grey level",
        "flowers-torch preview flowers17 look/ --policy keras",
        ("data/test_keras_augment.py::test_affine_is_keras",),
    ),
    Exact(
        "A3 A4",
        "InceptionV3 with its head: table and totals",
        "23,918,385 parameters, 34,432 of them not trainable",
        "flowers-torch summary inception_v3 --classes 17 --hidden 1024 --keras",
        (
            "models/test_keras_layers.py::test_totals_of_the_seeds_tables",
            "models/test_keras_layers.py::test_layers_are_those_of_keras_in_its_order",
            "models/test_trace.py::test_plot",
        ),
    ),
    Exact(
        "B1",
        "LeNet-5",
        "about 60 thousand parameters",
        "flowers-torch summary lenet5 --classes 10",
        ("models/test_networks.py::test_published_counts_of_trainable_parameters",),
    ),
    Exact(
        "B2",
        "AlexNet",
        "about 60 million parameters",
        "flowers-torch summary alexnet",
        ("models/test_networks.py::test_published_counts_of_trainable_parameters",),
    ),
    Exact(
        "B3",
        "VGG16",
        "138 million parameters",
        "flowers-torch summary vgg16 --keras",
        ("models/test_keras_layers.py::test_parameters_as_keras_counts_them",),
    ),
    Exact(
        "B4",
        "deep plain networks train worse, residual ones do not",
        "see docs/networks.md",
        "python examples/plain_vs_residual.py",
        ("examples/test_examples.py::test_plain_networks_get_harder_to_train_and_residual_ones_do_not",),
        slow=True,
    ),
    Exact(
        "B5",
        "1x1 bottleneck of an Inception module",
        "120 million multiplications without, 12.4 million with it",
        "python examples/inception_multiplications.py",
        ("models/test_inception.py::test_the_two_figures_of_the_bottleneck",),
    ),
    Exact(
        "B6",
        "mirror, random crop, RGB shift, PCA colour",
        "each as described; colour with AlexNet's covariance",
        "flowers-torch preview flowers17 look/ --policy alexnet",
        (
            "data/test_batch_augment.py::test_mirror",
            "data/test_batch_augment.py::test_a_random_crop_is_a_square_of_the_photo",
            "data/test_batch_augment.py::test_rgb_shift_moves_each_channel_as_a_whole",
            "data/test_batch_augment.py::test_pca_colour_has_alexnets_covariance",
        ),
    ),
    Exact(
        "B7",
        "ten crops of a photo",
        "mean of the probabilities",
        "flowers-torch evaluate runs/photos-resnet50-1 --tta crop10",
        (
            "evaluation/test_views.py::test_the_answer_is_the_mean_probability",
            "evaluation/test_views.py::test_mirrors_are_mirrors",
        ),
    ),
    Exact(
        "B7",
        "several networks together",
        "mean of the probabilities, or of the weights",
        "flowers-torch combine runs/photos-resnet50-1 runs/photos-resnet50-2",
        (
            "evaluation/test_combine.py::test_the_mean_answer",
            "commands/test_run_verbs.py::test_combining_writes_a_model_that_predicts",
        ),
    ),
    Exact(
        "B8",
        "HappyModel",
        "37,633 parameters, 64 of them not trainable",
        "flowers-torch summary happy_model --classes 1 --keras",
        (
            "models/test_keras_layers.py::test_totals_of_the_seeds_tables",
            "models/test_heads.py::test_the_happy_model_keeps_keras_s_count",
        ),
    ),
    Exact(
        "B9",
        "identity and convolutional block",
        "the two printed vectors, to 2e-6",
        "pytest tests/models/test_blocks.py -k recorded_outputs",
        ("models/test_blocks.py::test_blocks_give_the_recorded_outputs",),
    ),
    Exact(
        "B10",
        "ResNet50 for 64x64, 6 classes",
        "23,600,006 parameters, 53,120 of them not trainable",
        "flowers-torch summary resnet50_course --classes 6 --keras",
        ("models/test_resnet.py::test_course_resnet50_table",),
    ),
    Exact(
        "B11",
        "HDF5 pair: train, test, predict an own photo",
        "keys train_set_x, train_set_y, test_set_x, test_set_y, list_classes",
        "python train.py --config happy_house --data train_happy.h5",
        ("test_recipes.py::test_the_happy_house_from_the_course_s_files_to_an_own_photo",),
    ),
    Exact(
        "C1",
        "20 architectures",
        "Keras's counts; its logits by hand, see docs/keras-parity.md",
        "flowers-torch models --keras",
        (
            "models/test_keras_layers.py::test_parameters_as_keras_counts_them",
            "models/test_keras_layers.py::test_all_twenty_are_there",
        ),
    ),
    Exact(
        "C2",
        "MobileNet's width, depth multiplier, dropout",
        "Keras's counts; the dropout asked for",
        "flowers-torch summary mobilenet --keras",
        (
            "models/test_keras_layers.py::test_mobilenet_widths",
            "models/test_keras_layers.py::test_mobilenet_dropout",
        ),
    ),
    Exact(
        "C3",
        "ImageNet's classes of a photo",
        "(wnid, name, probability)",
        "see docs/from-keras.md",
        ("models/test_trace.py::test_decode_predictions",),
    ),
    Exact(
        "C4",
        "features of any layer",
        "block4_pool of VGG19",
        "flowers-torch features vgg19 photos/ --weights imagenet --layer block4_pool --out features.npz",
        (
            "models/test_trace.py::test_vgg19_s_block4_pool",
            "models/test_trace.py::test_features_by_our_name_by_keras_name_and_of_the_last_map",
        ),
    ),
    Exact(
        "C5",
        "the first 249 layers",
        "mixed9 and mixed10 train",
        "flowers-torch layers inception_v3 --keras",
        ("models/test_keras_layers.py::test_first_249_layers_are_all_but_the_last_two_blocks",),
    ),
    Exact(
        "C9",
        "20 augmented pictures of a photo",
        "rotation 40, shift, shear, zoom 0.2, mirror",
        "flowers-torch preview rose.jpg look/ --policy tutorial",
        (
            "data/test_preview.py::test_the_command",
            "data/test_preview.py::test_the_tutorial_s_ranges",
        ),
    ),
    Exact(
        "C10",
        "k-fold cross-validation; L1 and L2",
        "every photo is tested once; penalties are their formulas",
        "flowers-torch crossval --folds 5 --data photos/ --set stages.finetune.l2=0.001",
        (
            "test_crossval.py::test_every_photo_is_tested_once",
            "training/test_regularize.py::test_the_penalty_is_its_formula_over_kernels",
        ),
    ),
    Exact(
        "D1",
        "centring, deviation, ZCA",
        "Keras's values",
        "see docs/from-keras.md",
        ("data/test_keras_augment.py::test_standardizing_is_keras",),
    ),
    Exact(
        "D4",
        "global average, L2 0.001, dropout 0.8",
        "each variant trains the head, alone and together",
        "python train.py --config five_animals_bottleneck --set model_options.global_pool=avg"
        " --set stages.bottleneck.l2=0.001 --set dropout=0.8",
        ("test_recipes.py::test_the_tutorial_s_variants_of_a_head_take_a_step",),
    ),
    Exact(
        "D5",
        "labels and shapes that cannot be meant",
        "one line that says what is wrong",
        "see docs/tutorial-bugs.md",
        (
            "data/test_arrays.py::test_labels_that_cannot_be_meant",
            "data/test_arrays.py::test_images_that_cannot_be_meant",
            "models/test_networks.py::test_a_flattening_head_refuses_other_image_sizes",
        ),
    ),
)
