"""download -> data/raw: CIFAR-10's six official files, verified by checksum, or own pictures as arrays."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import cifar_resnet.environment_variables  # noqa: F401
from cifar_resnet.data import cifar10, raw_dataset
from cifar_resnet.data.cifar100 import is_cifar100, read_cifar100
from cifar_resnet.data.download import download_cifar10
from cifar_resnet.data.raw_dataset import write_raw_dataset
from cifar_resnet.errors import UserError, run
from cifar_resnet.inference.class_folder_reader import Skipped, read_class_folders
from cifar_resnet.params.file import load_params
from cifar_resnet.versioning.inputs import file_states, require_same_files

RAW = "data/raw"
OWN_FILES = {*cifar10.MD5, *raw_dataset.FILES}


def main(root: Path) -> None:
    params = load_params(root / "params.yaml").download
    delete_unfinished(root / RAW)
    require_own_files(root / RAW)
    if params.dataset == "folder":
        convert_folder(root, str(Path(params.folder)), strict=params.strict)
        return
    source = download_cifar10(params.sources, root / RAW, timeout_seconds=params.timeout_seconds)
    delete_files(root / RAW, raw_dataset.FILES)
    print(f"download: 60,000 images from {source} -> {RAW}, all checksums match")


def delete_unfinished(folder: Path) -> None:
    """Delete what a killed download has left: hidden folders with nothing but files that a download writes."""
    for hidden in folder.glob(".*/"):
        names = {path.name for path in hidden.iterdir()}
        if names and names <= OWN_FILES:
            shutil.rmtree(hidden)


def require_own_files(folder: Path) -> None:
    """
    Raises:
        UserError: if the folder has files that no download writes, for example an archive that the user put there.
    """
    others = sorted(path.name for path in folder.glob("[!.]*") if path.name not in OWN_FILES)
    if others:
        raise UserError(f"{RAW} has {others[0]}, which this stage did not write; move it to a folder outside of {RAW}")


def delete_files(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def convert_folder(root: Path, folder: str, *, strict: bool) -> None:
    skipped, states = Skipped(strict), file_states(root / folder)
    if is_cifar100(root / folder):
        dataset = read_cifar100(root / folder, folder)
    else:
        dataset = read_class_folders(root / folder, folder, skipped)
    require_same_files(root / folder, states)
    delete_files(root / RAW, OWN_FILES)  # of another dataset, or of splits that are no more
    write_raw_dataset(root / RAW, dataset)
    counts = {name: f"{len(images):,}" for name, images in dataset.splits.items()}
    parts = ", ".join(f"{count} {name}" for name, count in counts.items()) if len(counts) > 1 else counts["train"]
    print(f"download: {parts} pictures of {len(dataset.classes):,} classes from {folder} -> {RAW}{skipped.summary()}")


if __name__ == "__main__":
    run(main)
