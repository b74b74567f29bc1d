"""How well scores tell pictures of none of the ten classes from CIFAR-10's: `python benchmarks/familiarity.py MODEL`.

MODEL is named as for `cifar-resnet predict`, for example pretrained. Needs data/prepared, and scikit-image
(pip install scikit-image) for its sample photos. Prints for every score the AUROC on each kind of picture and, after
the slash, the share of these pictures below the threshold: the 5 % quantile of the validation images. The column
`test` has the share of the test images below it: false alarms.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import skimage
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn import datasets
from sklearn.metrics import roc_auc_score

from cifar_resnet.data.dataset import Pixels, read_split
from cifar_resnet.device import select_device, select_dtype
from cifar_resnet.inference.familiarity import UNFAMILIAR_SHARE, familiarity
from cifar_resnet.inference.image_decoder import read_image, scale
from cifar_resnet.inference.logits import softmax
from cifar_resnet.inference.predictor import predict_logits
from cifar_resnet.models.resnet import ResNet
from cifar_resnet.models.saved_model import fitted_temperature, load_model
from cifar_resnet.registry.load import find_model

ROOT = Path(__file__).parents[1]
FOLDERS = (Path(skimage.__file__).parent / "data", Path(datasets.__file__).parent / "images",
           Path(matplotlib.get_data_path()) / "sample_data")  # fmt: skip
PHOTOS = ("astronaut.png", "camera.png", "cell.png", "clock_motion.png", "coffee.png", "coins.png", "color.png",
          "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg",
          "text.png", "china.jpg", "flower.jpg", "grace_hopper.jpg")  # fmt: skip
TEXTURES = ("brick.png", "grass.png", "gravel.png")
CROPS = 30  # of every photo, with a quarter to three quarters of its shorter side
COUNT = 200  # of noise and plain colors
TRAIN_IMAGES = 5000  # for the scores that compare features with those of the training images
NEIGHBOUR = 50  # the nearest training image counted
Score = NDArray[np.floating]


def crops(path: Path, random: np.random.Generator) -> list[Pixels]:
    photo = Image.open(path).convert("RGB")
    pieces = []
    for _ in range(CROPS):
        side = int(min(photo.size) * random.uniform(0.25, 0.75))
        left, top = random.integers(0, photo.width - side + 1), random.integers(0, photo.height - side + 1)
        pieces.append(scale(photo.crop((left, top, left + side, top + side))))
    return pieces


def other_pictures() -> dict[str, Pixels]:
    """Pictures that show none of the ten classes, by kind, each uint8 (N, 3, 32, 32)."""
    random = np.random.default_rng(0)
    files = {path.name: path for folder in FOLDERS for path in folder.iterdir()}
    faces = np.load(FOLDERS[0] / "lfw_subset.npy", allow_pickle=False)[:100]
    digits = datasets.load_digits().images[: 2 * COUNT] / 16
    plain = random.integers(0, 256, (COUNT, 3, 1, 1), np.uint8)
    return {
        "photos": np.stack([read_image(files[name].open("rb")) for name in PHOTOS if name in files]),
        "crops": np.stack([crop for name in PHOTOS if name in files for crop in crops(files[name], random)]),
        "textures": np.stack([crop for name in TEXTURES for crop in crops(files[name], random)]),
        "faces": np.stack([scale(Image.fromarray((255 * face).astype(np.uint8))) for face in faces]),
        "digits": np.stack([scale(Image.fromarray((255 * digit).astype(np.uint8))) for digit in digits]),
        "noise": random.integers(0, 256, (COUNT, 3, 32, 32), np.uint8),
        "plain": np.broadcast_to(plain, (COUNT, 3, 32, 32)).copy(),
    }


@torch.inference_mode()
def features(model: ResNet, pixels: Pixels) -> Score:
    """What the last layer gets, (N, D)."""
    inputs: list[torch.Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0].float().cpu()))
    predict_logits(model, pixels, batch_size=500, precision=torch.float32)
    hook.remove()
    return torch.cat(inputs).numpy()


def neighbour_similarity(values: Score, known: Score) -> Score:
    """Cosine with the NEIGHBOUR-th nearest training image. Source: Sun et al., 2022."""
    values, known = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (values, known))
    return np.asarray(np.sort(values @ known.T, axis=1)[:, -NEIGHBOUR])


def negative_mahalanobis(values: Score, known: Score, labels: NDArray[np.int64]) -> Score:
    """Minus the distance to the nearest class, with one covariance for all classes. Source: Lee et al., 2018."""
    means = np.stack([known[labels == label].mean(axis=0) for label in range(10)])
    inverse = np.linalg.pinv(np.cov((known - means[labels]).T) + 1e-3 * np.eye(known.shape[1]))
    distances = [np.einsum("nd,de,ne->n", values - mean, inverse, values - mean) for mean in means]
    return -np.min(distances, axis=0)


def scores(
    model: ResNet, config: dict[str, object], pixels: Pixels, known: Score, labels: NDArray[np.int64]
) -> dict[str, Score]:
    precision, _ = select_dtype("auto", select_device())
    logits = predict_logits(model, pixels, batch_size=500, precision=precision, augmented=True).numpy()
    values = features(model, pixels)
    return {
        "energy": familiarity(logits),
        "highest probability": softmax(logits, fitted_temperature(config, augmented=True)).max(axis=1),
        "highest logit": logits.max(axis=1),
        "nearest neighbours": neighbour_similarity(values, known),
        "Mahalanobis": negative_mahalanobis(values, known, labels),
    }


def main() -> None:
    with find_model(ROOT, sys.argv[1]) as found:
        model, config = load_model(found.folder, select_device())
    prepared = ROOT / "data/prepared"
    train = read_split(prepared, "train").take(np.arange(TRAIN_IMAGES))
    known = features(model, train.pixels)
    sets = {"validation": read_split(prepared, "validation").pixels, "test": read_split(prepared, "test").pixels}
    results = {
        name: scores(model, config, pixels, known, train.labels) for name, pixels in (sets | other_pictures()).items()
    }
    print("score".ljust(20), *(f"{name} ({len(values['energy'])})".rjust(15) for name, values in results.items()))
    for score, inside in results["validation"].items():
        threshold = np.quantile(inside, UNFAMILIAR_SHARE)
        cells = []
        for name, values in results.items():
            outside = values[score]
            labels = np.repeat([1, 0], [len(inside), len(outside)])
            area = "" if name in sets else f"{roc_auc_score(labels, np.concatenate([inside, outside])):.3f} / "
            cells.append(f"{area}{(outside < threshold).mean():.0%}".rjust(15))
        print(score.ljust(20), *cells)


if __name__ == "__main__":
    main()
