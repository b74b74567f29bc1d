"""Tags by which MLflow shows the experiment: its menu for training, and a saved view of the run table."""

import json

VIEW = "accuracy"  # key of the saved view of the run table, in addresses
NAME_WIDTH, COLUMN_WIDTH = 340, 130  # pixels
COLUMNS = (
    *("attributes.`Run Name`", "attributes.`Created`", "attributes.`Duration`"),
    *(f"metrics.`test_{name}`" for name in ("accuracy", "accuracy_tta", "mean_corruption_accuracy", "parameters")),
    *("params.`train.epochs`", "params.`train.seed`", "attributes.`Models`"),
)
VIEW_STATE = {  # what MLflow 3.17 stores for "Save & share view"
    "orderByKey": "metrics.`test_accuracy`",
    "orderByAsc": False,
    "selectedColumns": COLUMNS,
    "columnOrder": COLUMNS,
    "columnWidths": dict.fromkeys(COLUMNS, COLUMN_WIDTH) | {COLUMNS[0]: NAME_WIDTH},
}
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # MLflow shows its menu for training
    f"mlflow.sharedViewState.{VIEW}": json.dumps({"name": "Accuracy", "createdAt": 0, "state": json.dumps(VIEW_STATE)}),
}
