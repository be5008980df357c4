"""Say what the agent asks of the trainer process, and what it gets back: one JSON object a line each way.

Every request names its inputs by path and digest and carries all settings, so it is a function of what is on the disk:
a request that was cut off by a kill is simply sent again and gives the same bytes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from nfl_core.config import LearningSection, ModelSection
from nfl_core.levels import Level


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Task(_Line):
    """What every request needs.

    Attributes:
        checkpoints: Folder of the device's checkpoints; results are written there.
        samples: Safetensors file of the device's samples.
        model: Which model.
        levels: Its levels, fastest first.
        learning: How it learns.
        seed: Makes the first private tensors and the first state of the generator; fixed for a device.
    """

    checkpoints: str
    samples: str
    model: ModelSection
    levels: tuple[Level, ...]
    learning: LearningSection
    seed: int


class InitRequest(_Line):
    """Make the first checkpoint from the shared tensors in the file `incoming`."""

    op: Literal["init"] = "init"
    task: Task
    incoming: str
    base_version: int
    base_digest: str


class MicroUpdateRequest(_Line):
    """Learn from the samples, starting at a checkpoint."""

    op: Literal["micro_update"] = "micro_update"
    task: Task
    checkpoint: str


class MergeRequest(_Line):
    """Merge the shared tensors in the file `incoming` into a checkpoint, the way the signed manifest says."""

    op: Literal["merge"] = "merge"
    task: Task
    checkpoint: str
    incoming: str
    base_version: int
    base_digest: str
    alphas: tuple[float, ...]
    tolerance: float
    max_drop: float
    refit_steps: int
    refit_learning_rate: float


class EvaluateRequest(_Line):
    """Score a checkpoint on a split of the samples."""

    op: Literal["evaluate"] = "evaluate"
    task: Task
    checkpoint: str
    split: Literal["train", "holdout", "test"] = "test"


AnyRequest = Annotated[InitRequest | MicroUpdateRequest | MergeRequest | EvaluateRequest, Field(discriminator="op")]


class Envelope(_Line):
    """A numbered request."""

    number: int
    request: AnyRequest


class Learnt(_Line):
    """Result of `init` and `micro_update`: the new checkpoint, and figures; `accuracy` is on the test split."""

    kind: Literal["learnt"] = "learnt"
    checkpoint: str
    num_steps: int = 0
    loss_before: float = 0.0
    loss_after: float = 0.0
    accuracy: float
    cpu_s: float


class MergeResult(_Line):
    """Result of `merge`.

    Attributes:
        checkpoint: The merged one; empty when the merge was refused.
        refusal: Which check refused, a value of `nfl_core.learning.Refusal`; empty when none did.
        seen: After a refusal by the holdout, the checkpoint as it was, with the version in its track; else empty.
    """

    kind: Literal["merge"] = "merge"
    checkpoint: str
    refusal: str = ""
    seen: str = ""
    alpha: float
    shock: float
    loss_before: float
    loss_after: float
    accuracy_before: float
    accuracy_after: float
    refit_steps: int
    accuracy: float
    cpu_s: float


class Evaluated(_Line):
    """Result of `evaluate`."""

    kind: Literal["evaluated"] = "evaluated"
    accuracy: float
    loss: float


class Failed(_Line):
    """The request cannot be done; `code` and `message` are those of the error."""

    kind: Literal["failed"] = "failed"
    code: str
    message: str


AnyResult = Annotated[Learnt | MergeResult | Evaluated | Failed, Field(discriminator="kind")]


class Reply(_Line):
    """A numbered result."""

    number: int
    result: AnyResult


class Hello(_Line):
    """First line of the trainer: its process id and what torch it has."""

    pid: int
    torch: str
