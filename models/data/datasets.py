"""The known data sets and how to read and augment them."""

from dataclasses import dataclass
from typing import Literal

from models.errors import UserError

Augmentation = Literal["none", "crop_flip", "random_resized_crop"]
Statistics = tuple[float, float, float]

VALIDATION_IMAGES = 5000
"""The default number of training images that are used for validation."""


@dataclass(frozen=True)
class DatasetInfo:
    """A data set and how to read it.

    ``mean`` and ``std`` are those of its training pixels, scaled to 0..1, per channel. ``size`` is the side of its
    images in pixels. If the sides differ (not ``uniform``), it is the side of the network's input. ``classes`` replace
    the class names in the data, because local files may lack them and the hub misspells one.
    """

    name: str
    hub: str
    subset: str | None
    image_column: str
    label_column: str
    train_splits: tuple[str, ...]
    test_split: str
    size: int
    mean: Statistics
    std: Statistics
    augmentation: Augmentation
    classes: tuple[str, ...] = ()

    @property
    def uniform(self) -> bool:
        """Whether all images are ``size`` x ``size``."""
        return self.augmentation != "random_resized_crop"


CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

DATASETS = {
    dataset.name: dataset
    for dataset in (
        DatasetInfo(
            "cifar10", "uoft-cs/cifar10", None, "img", "label", ("train",), "test", 32,
            (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "crop_flip", CIFAR10_CLASSES,
        ),
        DatasetInfo(
            "cifar100", "uoft-cs/cifar100", None, "img", "fine_label", ("train",), "test", 32,
            (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "crop_flip", CIFAR100_CLASSES,
        ),
        # SkipNet, section 4: train and extra, 604,388 images, no augmentation.
        DatasetInfo(
            "svhn", "ufldl-stanford/svhn", "cropped_digits", "image", "label", ("train", "extra"), "test", 32,
            (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), "none",
        ),
        DatasetInfo(
            "imagenet", "ILSVRC/imagenet-1k", None, "image", "label", ("train",), "validation", 224,
            IMAGENET_MEAN, IMAGENET_STD, "random_resized_crop",
        ),
        # Any folder of images with a sub-folder for each class. It is not on the hub.
        DatasetInfo(
            "imagefolder", "", None, "image", "label", ("train",), "validation", 224,
            IMAGENET_MEAN, IMAGENET_STD, "random_resized_crop",
        ),
    )
}  # fmt: skip


def find_dataset(name: str) -> DatasetInfo:
    """Return the data set called ``name``.

    Raises UserError for an unknown name.
    """
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}; expected one of {', '.join(DATASETS)}")
    return DATASETS[name]
