"""The installed command as a process: exit codes, messages, and what it imports."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import ROOT
from PIL import Image

from cifar_resnet import __version__

SCRIPT = [str(Path(sys.executable).with_name("cifar-resnet"))]
MODULE = [sys.executable, "-m", "cifar_resnet"]
HEAVY = {"torch", "mlflow", "optuna", "dvc", "numpy"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A picture and a file that is not a picture."""
    Image.fromarray(np.full((50, 60, 3), 90, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    return tmp_path


def run(folder: Path, command: list[str], *arguments: object, **environment: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_exit_codes_distinguish_all_some_and_no_images(model_path: Path, photos: Path) -> None:
    model = ("--model", model_path)
    assert run(photos, SCRIPT, "predict", "a.png", *model)[0] == 0
    assert run(photos, SCRIPT, "predict", ".", *model)[0] == 3
    code, _, stderr = run(photos, SCRIPT, "predict", "bad.png", *model)
    assert code == 1
    assert stderr.splitlines()[-1] == "cifar-resnet: there is no image to predict"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_file_name_is_printed_in_any_encoding(model_path: Path, photos: Path, encoding: str) -> None:
    for name in ("Käse.png", "日本.png", "\udcff.png"):
        shutil.copy(photos / "a.png", photos / name)
    for output_format in ("table", "csv", "json"):
        command = [*SCRIPT, "predict", ".", "--model", str(model_path), "--format", output_format]
        done = subprocess.run(
            command, cwd=photos, env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True, check=False
        )
        assert done.returncode == 3, done.stderr
        name = b"K\\u00e4se.png" if output_format == "json" else "Käse.png".encode(encoding, "backslashreplace")
        assert name in done.stdout


def test_script_and_module_behave_alike(tmp_path: Path) -> None:
    """Version, wrong usage and a user error."""
    assert run(tmp_path, SCRIPT, "--version") == run(tmp_path, MODULE, "--version") == (0, f"{__version__}\n", "")
    usage = run(tmp_path, SCRIPT, "registry")
    assert usage == run(tmp_path, MODULE, "registry")
    assert usage[0] == 2
    assert usage[2].endswith("cifar-resnet registry: error: the following arguments are required: action\n")
    arguments = ("predict", "a.png", "--model", "data/model")
    error = run(tmp_path, SCRIPT, *arguments)
    assert error == run(tmp_path, MODULE, *arguments)
    assert error[:2] == (1, "")
    assert error[2].startswith("cifar-resnet: ")
    assert "model data/model not found" in error[2]
    assert len(error[2].splitlines()) == 1


def test_a_full_disk_behind_stdout_is_an_error_of_one_line(tmp_path: Path) -> None:
    code = "from cifar_resnet.errors import run; run(lambda _: print('a' * 100_000), 'predict')"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "predict: the output cannot be written (No space left on device)\n")


def test_a_closed_stdout_or_stderr_changes_nothing_else(photos: Path, model_path: Path) -> None:
    command = f"{SCRIPT[0]} predict a.png --model {model_path}"
    assert run(photos, ["sh", "-c", f"{command} --output out.csv --format csv >&-"])[0] == 0
    assert (photos / "out.csv").stat().st_size > 0
    code, out, _ = run(photos, ["sh", "-c", f"{command} 2>&-"])
    assert (code, len(out.splitlines())) == (0, 1)


def test_an_output_that_is_a_source_or_a_picture_is_refused(photos: Path, model_path: Path) -> None:
    shutil.copy(photos / "a.png", photos / "b.png")
    np.save(photos / "images.npy", np.zeros((1, 32, 32, 3), np.uint8))
    for source, output, found in (("b.png", "a.png", "a picture"), ("images.npy", "images.npy", "one of the sources")):
        before = (photos / output).read_bytes()
        result = run(photos, SCRIPT, "predict", source, "--output", output, "--model", model_path)
        message = f"cifar-resnet: --output {output} is {found}, which it would replace; name another file\n"
        assert result == (1, "", message)
        assert (photos / output).read_bytes() == before


@pytest.mark.parametrize("arguments", [("",), ("a.png", "--model", "")])
def test_an_empty_argument_is_not_the_current_folder(photos: Path, arguments: tuple[str, ...]) -> None:
    code, out, err = run(photos, SCRIPT, "predict", *arguments)
    assert (code, out) == (2, "")
    assert "an empty text is no path or name; is a variable of the shell unset?" in err


def test_ctrl_c_during_a_command_says_what_to_do(tmp_path: Path) -> None:
    code = "import sys; sys.argv[0] = 'stages/preprocess.py'; from cifar_resnet.errors import run\n"
    code += "def main(root): raise KeyboardInterrupt\nrun(main)"
    expected = (1, "", "preprocess: interrupted; run the same command again\n")
    assert run(tmp_path, [sys.executable, "-c", code], PYTHONPATH=str(ROOT / "src")) == expected


def test_ctrl_c_while_a_command_starts_is_one_line(tmp_path: Path) -> None:
    code = "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"  # ignored in background
    code += "; sys.argv[0] = 'stages/train.py'; import cifar_resnet.environment_variables"
    command = [sys.executable, "-c", f"{code}; os.kill(os.getpid(), signal.SIGINT)"]
    expected = (-signal.SIGINT, "", "train: interrupted; run the same command again\n")
    assert run(tmp_path, command, PYTHONPATH=str(ROOT / "src")) == expected


def test_a_device_that_is_not_available_is_an_error_of_one_line(project: Path, photos: Path) -> None:
    arguments = ("predict", "a.png", "--model", project / "data/model", "--device", "cuda")
    code, stdout, stderr = run(photos, SCRIPT, *arguments, CUDA_VISIBLE_DEVICES="")
    assert (code, stdout) == (1, "")
    assert stderr.startswith("cifar-resnet: device cuda is not available, ")
    assert len(stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["--version"], ["registry"]])
def test_help_and_usage_import_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    code = "import atexit, sys; atexit.register(lambda: print(*sorted({name.split('.')[0] for name in sys.modules})))"
    code += "; from cifar_resnet.cli.main import run_cli; run_cli()"
    _, stdout, _ = run(tmp_path, [sys.executable, "-c", code], *arguments)
    imported = set(stdout.splitlines()[-1].split())
    assert "cifar_resnet" in imported
    assert imported & HEAVY == set()


@pytest.mark.parametrize("model", ["the file", "the folder"])
def test_an_exported_file_predicts_like_torch_without_loading_it(
    project: Path, exported: Path, photos: Path, model: str
) -> None:
    """The folder holds the weights too; the metadata of the file beside them says int8, which is faster than torch."""
    folder = photos / "model"
    shutil.copytree(project / "data/model", folder)
    graph = onnx.load(exported)
    metadata = {entry.key: entry.value for entry in graph.metadata_props} | {"precision": '"int8"'}
    onnx.helper.set_model_props(graph, metadata)
    onnx.save(graph, folder / "model.onnx")
    code = "import atexit, sys; atexit.register(lambda: print(*sorted({name.split('.')[0] for name in sys.modules})))"
    code += "; from cifar_resnet.cli.main import run_cli; run_cli()"
    requested = folder / "model.onnx" if model == "the file" else folder
    arguments = ("predict", "a.png", "--format", "json", "--top", "10", "--output", "out.json", "--device", "cpu")
    code_of_exit, stdout, stderr = run(photos, [sys.executable, "-c", code], *arguments, "--model", requested)
    assert code_of_exit == 0, stderr
    imported = set(stdout.splitlines()[-1].split())
    assert "onnxruntime" in imported
    assert imported & {"torch", "mlflow", "scipy", "pydantic", "ruamel", "onnx", "rich"} == set()
    [answer] = json.loads((photos / "out.json").read_text())
    (folder / "model.onnx").unlink()
    assert run(photos, SCRIPT, *arguments, "--model", folder)[0] == 0
    [expected] = json.loads((photos / "out.json").read_text())
    for ours, theirs in zip(answer["classes"], expected["classes"], strict=True):
        assert ours["label"] == theirs["label"]
        assert abs(ours["confidence"] - theirs["confidence"]) < 0.02  # torch may compute in bfloat16


def test_the_completion_script_names_the_commands(tmp_path: Path) -> None:
    code, stdout, _ = run(tmp_path, SCRIPT, "--print-completion", "bash")
    assert code == 0
    assert "_subparsers=(predict export demo compare search registry ui backfill)" in stdout
