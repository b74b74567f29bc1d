"""CIFAR-10 with a residual network under five million parameters."""

import os

# MLflow reads these when it is first imported, by whichever module that is.
for name, value in (
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
    ("MLFLOW_LOGGING_LEVEL", "WARNING"),
):
    os.environ.setdefault(name, value)
