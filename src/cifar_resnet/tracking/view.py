"""Tags by which MLflow shows the experiment: its menu for training, and a saved view of the run table."""

import json

VIEW = "accuracy"  # key of the saved view of the run table, in addresses
WIDTHS = {  # in pixels, by MLflow's name of a column; together they fit in a window of 1,600 pixels
    "attributes.`Run Name`": 290,
    "runDateAndNestInfo": 130,  # "Created", with the status as an icon
    "metrics.`test_accuracy`": 125,
    "metrics.`test_accuracy_tta`": 135,
    "metrics.`test_mean_corruption_accuracy`": 150,
    "metrics.`test_parameters`": 130,
    "duration": 85,
    "params.`train.epochs`": 110,
    "attributes.`Models`": 110,
}
VIEW_STATE = {  # what MLflow 3.17 stores for "Save & share view"
    "orderByKey": "metrics.`test_accuracy`",
    "orderByAsc": False,
    "selectedColumns": [column for column in WIDTHS if "`" in column],  # the other two are always shown
    "columnOrder": list(WIDTHS),
    "columnWidths": WIDTHS,
}
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # MLflow shows its menu for training
    f"mlflow.sharedViewState.{VIEW}": json.dumps({"name": "Accuracy", "createdAt": 0, "state": json.dumps(VIEW_STATE)}),
}
