"""Data sources (``data=``): training and validation images with their ids.

from experiments.datasets import Digits, Split
train = Split(Digits(), "train")  # a node; its artifact is attribution.images.Images
"""

from experiments.datasets.arrays import Arrays
from experiments.datasets.cifar import CIFAR10
from experiments.datasets.cifar_mnist import CIFARMNIST
from experiments.datasets.digits import Digits
from experiments.datasets.errors import DataError
from experiments.datasets.folder import Folder
from experiments.datasets.huggingface import HuggingFace
from experiments.datasets.latents import Latents
from experiments.datasets.mnist import MNIST
from experiments.datasets.patches_digits import PatchesDigits
from experiments.datasets.source import Source, Split, Splits

__all__ = [
    "CIFAR10",
    "CIFARMNIST",
    "MNIST",
    "Arrays",
    "DataError",
    "Digits",
    "Folder",
    "HuggingFace",
    "Latents",
    "PatchesDigits",
    "Source",
    "Split",
    "Splits",
]
