"""What an operator may ask of the root, as messages in its own inbox: durable, ordered, done once.

>>> send(Path(".nfl"), "halt", reason="odd readings in the north")            # doctest: +SKIP
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nfl_cluster.mailbox import Mailbox, Message
from nfl_cluster.service import SiteFolder
from nfl_core.errors import ConfigError
from nfl_core.ids import SiteId

OPERATOR = SiteId("operator")
Action: TypeAlias = Literal["override-publish", "propose", "halt", "rollback", "open-round", "pause", "resume"]
NEWEST, RUNNING = "newest", "running"


class Order(BaseModel):
    """One order of an operator.

    Attributes:
        action: What to do.
        reason: Why; recorded.
        candidate: For override-publish: a candidate's id, "newest", or "running" for the content that runs now. For
            propose: the digest of a proposal in the root's folder.
        graph: For override-publish: file with another inference graph.
        to: For rollback: version whose content comes back; None: the one before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    action: Action
    reason: str = Field(default="asked for by the operator", min_length=1, max_length=500)
    candidate: str = NEWEST
    graph: str | None = None
    to: int | None = None


def parse_order(payload: bytes) -> Order:
    """Read an order. Raises ConfigError when it is none."""
    try:
        return Order.model_validate_json(payload)
    except ValidationError as error:
        raise ConfigError(f"not an operator's order: {str(error)[:300]}") from error


def send(home: Path, action: Action, **fields: str | int | None) -> str:
    """Put an order into the root's inbox and return the message's id.

    Args:
        home: `NFL_HOME`.
        action: What to do.
        fields: Others of `Order`.

    Raises:
        ConfigError: The order is not valid.
        StorageFullError: It cannot be stored.
    """
    payload = json.dumps({"action": action, **{key: value for key, value in fields.items() if value is not None}})
    parse_order(payload.encode())
    message_id = f"order-{time.time_ns():020d}"
    message = Message(message_id=message_id, peer=OPERATOR, kind="operator", payload=payload.encode())
    Mailbox(SiteFolder.of_root(home).mailbox).deliver(message)
    return message_id
