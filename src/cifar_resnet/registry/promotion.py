"""The champion of the registry: the gate that a candidate must pass, the history of the alias, and the way back."""

import base64
import getpass
import json
import os
import socket
import uuid
import zlib
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from cifar_resnet.errors import UserError
from cifar_resnet.evaluation import significance
from cifar_resnet.evaluation.significance import Comparison, CorrectMask
from cifar_resnet.params.sections import RegisterParams

CHAMPION, CHALLENGER = "champion", "challenger"
HISTORY = "champion_history."


@dataclass(frozen=True)
class Decision:
    """What became of a version, and why."""

    model_name: str
    version: int
    run_id: str
    champion: bool
    reason: str
    accuracy: float
    parameters: int
    previous_champion: int | None
    previous_accuracy: float | None
    comparison: Comparison | None  # first: the candidate, second: the previous champion
    policy: dict[str, Any]


@dataclass(frozen=True)
class AliasChange:
    """One move of the alias; `before` is None for the first champion."""

    action: Literal["promote", "rollback"]
    before: int | None
    after: int
    why: str
    who: str
    when: str  # ISO 8601, UTC


def encode_mask(hits: CorrectMask) -> str:
    """Which images were classified rightly, bool (N,), as text that fits in a tag: 10,000 need about 1 kB."""
    return f"{len(hits)}:{base64.b64encode(zlib.compress(np.packbits(hits).tobytes(), 9)).decode()}"


def decode_mask(text: str) -> CorrectMask:
    count, packed = text.split(":")
    bits = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
    return np.unpackbits(bits, count=int(count)).astype(bool)


def get_champion(client: MlflowClient, name: str) -> ModelVersion | None:
    """The present champion."""
    version = client.get_registered_model(name).aliases.get(CHAMPION)
    return None if version is None else client.get_model_version(name, str(version))


def promote_if_better(client: MlflowClient, version: int, policy: RegisterParams) -> Decision:
    """Make `version` the champion if it passes the gate, else the challenger; to be called while `locked`.

    What a person rolled back, the gate does not bring back.

    The evidence lies in the tags of the versions: accuracy, parameters, test_data (hash of the images) and
    test_correct (of `pack`).
    """
    name = policy.model_name
    candidate, present = client.get_model_version(name, str(version)), get_champion(client, name)
    wins, reason, comparison = check_policy(candidate, present, policy)
    undone = [each for each in promotion_history(client, name) if each.action == "rollback" and each.before == version]
    if wins and undone and (present is None or int(present.version) != version):
        wins, reason = False, f"it was rolled back ({undone[-1].why}) and needs `promote {version}` by hand"
    if wins:
        set_champion(client, name, version, action="promote", why=reason)
        holder = get_champion(client, name)
        if holder is not None and int(holder.version) != version:
            wins, reason = False, f"version {holder.version} took the alias at the same time"
    else:
        client.set_registered_model_alias(name, CHALLENGER, str(version))
    found = {"champion": wins, "reason": reason} | (asdict(comparison) if comparison else {})
    for key, value in found.items():
        client.set_model_version_tag(name, str(version), f"decision_{key}", str(value))
    return Decision(
        model_name=name,
        version=version,
        run_id=candidate.run_id,
        champion=wins,
        reason=reason,
        accuracy=float(candidate.tags["accuracy"]),
        parameters=int(candidate.tags["parameters"]),
        previous_champion=int(present.version) if present else None,
        previous_accuracy=float(present.tags["accuracy"]) if present else None,
        comparison=comparison,
        policy=policy.model_dump(exclude={"model_name"}),
    )


def check_policy(
    candidate: ModelVersion, present: ModelVersion | None, policy: RegisterParams
) -> tuple[bool, str, Comparison | None]:
    """(whether the candidate is to be champion, why, the comparison if there was one)."""
    if present is not None and int(present.version) == int(candidate.version):
        return True, "it was so before", None
    accuracy, parameters = float(candidate.tags["accuracy"]), int(candidate.tags["parameters"])
    if accuracy < policy.min_accuracy:
        return False, f"accuracy {accuracy:.2%} is below register.min_accuracy {policy.min_accuracy:.2%}", None
    if parameters > policy.max_parameters:
        return False, f"{parameters:,} parameters, register.max_parameters allows {policy.max_parameters:,}", None
    if present is None:
        return True, "there was no champion", None
    if present.tags.get("test_data") != candidate.tags["test_data"]:
        return False, f"version {present.version} stays: it was measured on other test data", None
    if "test_correct" not in present.tags:
        return False, f"version {present.version} stays: what it had right is not recorded; register it again", None
    comparison = significance.mcnemar_test(
        decode_mask(candidate.tags["test_correct"]), decode_mask(present.tags["test_correct"])
    )
    against = f"accuracy {accuracy:.2%} against version {present.version}'s {float(present.tags['accuracy']):.2%}"
    if comparison.difference <= 0 or comparison.difference < policy.min_gain:
        return (
            False,
            f"{against} is too little gain, register.min_gain is {policy.min_gain:g}: {comparison}",
            comparison,
        )
    if comparison.p_value > policy.significance:
        return (
            False,
            f"{against} may be luck, register.significance is {policy.significance:g}: {comparison}",
            comparison,
        )
    return True, f"{against}: {comparison}", comparison


def set_champion(
    client: MlflowClient, name: str, version: int, *, action: Literal["promote", "rollback"], why: str
) -> None:
    """Give `version` the alias and record it; nothing is recorded where nothing changes.

    The alias is written first: a process that dies in between leaves a champion, unrecorded, and no false record.
    """
    aliases = {alias: int(holder) for alias, holder in client.get_registered_model(name).aliases.items()}
    before = aliases.get(CHAMPION)
    if before == version:
        return
    client.set_registered_model_alias(name, CHAMPION, str(version))
    if aliases.get(CHALLENGER) == version:
        client.delete_registered_model_alias(name, CHALLENGER)
    now = datetime.now(UTC)
    change = AliasChange(action, before, version, why, _user(), now.isoformat(timespec="seconds"))
    key = f"{HISTORY}{now:%Y%m%dT%H%M%S.%f}-{uuid.uuid4().hex[:4]}"  # a new key each: what is written stays
    client.set_registered_model_tag(name, key, json.dumps(asdict(change)))


def promotion_history(client: MlflowClient, name: str) -> list[AliasChange]:
    """All recorded moves of the alias, the oldest first."""
    tags = client.get_registered_model(name).tags
    return [AliasChange(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(HISTORY)]


def previous_champion(client: MlflowClient, name: str) -> int:
    """The version to roll back to: the champion before the present one, not counting those rolled back from.

    Raises:
        UserError: if there is none.
    """
    line: list[int] = []
    for change in promotion_history(client, name):
        while change.action == "rollback" and line and line.pop() != change.after:
            pass
        line.append(change.after)
    present = get_champion(client, name)
    existing = {int(each.version) for each in client.search_model_versions(f"name = '{name}'")}
    earlier = [version for version in line if version in existing]
    while earlier and present is not None and earlier[-1] == int(present.version):
        earlier.pop()
    if not earlier:
        raise UserError(f"{name}: no earlier champion is recorded; take `promote VERSION`")
    return earlier[-1]


def get_version(client: MlflowClient, name: str, version: int) -> ModelVersion:
    """
    Raises:
        UserError: if there is no such version.
    """
    try:
        return client.get_model_version(name, str(version))
    except MlflowException:
        raise UserError(f"{name} has no version {version}; `make models` lists them") from None


def _user() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a container may run as a number without a name
        return f"{os.getuid()}@{socket.gethostname()}"
