"""`make quick` ends with this program: the result of the experiment, where to look, and what to type next."""

import json
from pathlib import Path

import cifar_resnet.environment_variables  # noqa: F401
from cifar_resnet.errors import run
from cifar_resnet.evaluation.report import summary_lines
from cifar_resnet.versioning.revisions import read_revision_file

EXPERIMENT = "quick"
RESULT = """
quick: {accuracy}
quick: {parameters:,} parameters, trained in {seconds:.0f} s; {registration}
quick: params.yaml and the results in data/ have not changed; `dvc exp apply quick` replaces them by these

Look at it:
  make ui                                  curves, figures and the registered model, in MLflow
  dvc metrics diff HEAD quick              its metrics beside those of the committed result
  cifar-resnet compare quick pretrained    which images the pretrained network gains
{predict}
Next:
  cifar-resnet predict photo.jpg --model pretrained
  make repro                               train the default network, in half an hour (float32: three times as long)
  dvc exp run --temp -S train.seed=1       the default network with another value of params.yaml

`source .venv/bin/activate` puts these commands into PATH."""
PREDICT = "  cifar-resnet predict photo.jpg --model models:/{model_name}/{version}\n"


def print_result(root: Path) -> None:
    metrics, decision = (
        json.loads(read_revision_file(root, EXPERIMENT, f"data/{path}"))
        for path in ("evaluation/metrics.json", "registry/decision.json")
    )
    accuracy, _ = summary_lines(metrics)
    print(
        RESULT.format(
            accuracy=accuracy, parameters=metrics["parameters"], seconds=metrics["training_seconds"],
            registration="{model_name} version {version} in MLflow's registry".format_map(decision)
            if "version" in decision else decision["reason"],
            predict=PREDICT.format_map(decision) if "version" in decision else "",
        )
    )  # fmt: skip


if __name__ == "__main__":
    run(print_result, "quick")
