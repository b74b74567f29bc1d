"""Environment variables of commands and stages. Import this module before torch and MLflow, which read them once.

OMP_WAIT_POLICY=passive: OpenMP threads sleep at barriers instead of spinning. Spinning threads block the cores for
other processes: beside one busy process, prediction takes five times as long. A value that the user has set stays.
"""

import os

for name, value in (
    ("OMP_WAIT_POLICY", "passive"),
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
    ("MLFLOW_LOGGING_LEVEL", "WARNING"),
):
    os.environ.setdefault(name, value)
