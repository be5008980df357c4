"""What teaching is worth on real data: a large teacher to a small student, and a fleet's students to a larger model.

- `images`: a wide model teaches what devices run, with all labels and with few; `wide` is that model
- `pretrained`: EfficientNet-Lite0 teaches where labels are few
- `pitch`: CREPE teaches `pitch_net`, a thousandth of it, on sounds without a label
- `upwards`: the ensemble of a fleet's students teaches the next version and a larger model

    data = load_images(cache)
    split = Split.of(data, size=SMALL)
    taught = downwards(split, make_teacher(split, size=SMALL, seed=0), size=SMALL, seed=0)
    fused = upwards(data, split, size=SMALL, seed=0)
"""

from __future__ import annotations

from nfl_sim.teaching.images import (
    FULL,
    NUM_CLASSES,
    SHAPE,
    SMALL,
    STUDENT,
    Size,
    Split,
    downwards,
    make_teacher,
    mirrored,
)
from nfl_sim.teaching.pitch import PITCH_FULL, PITCH_SMALL, PitchSize, ask_crepe, teach_pitch
from nfl_sim.teaching.pretrained import (
    PRETRAINED_FULL,
    PRETRAINED_SMALL,
    PretrainedSize,
    embed_images,
    few_labels,
)
from nfl_sim.teaching.upwards import upwards
from nfl_sim.teaching.wide import WideCnn, wide_cnn

__all__ = [
    "FULL",
    "NUM_CLASSES",
    "PITCH_FULL",
    "PITCH_SMALL",
    "PRETRAINED_FULL",
    "PRETRAINED_SMALL",
    "SHAPE",
    "SMALL",
    "STUDENT",
    "PitchSize",
    "PretrainedSize",
    "Size",
    "Split",
    "WideCnn",
    "ask_crepe",
    "downwards",
    "embed_images",
    "few_labels",
    "make_teacher",
    "mirrored",
    "teach_pitch",
    "upwards",
    "wide_cnn",
]
