"""Teaching: a student learns to answer as a teacher does, on inputs that need no labels.

    lessons = ask(teacher, x, y=None)                     # the teacher answers once, in chunks that survive a kill
    report = teach(student, lessons, settings=DistilSettings(), seed=0, record=DualRecord(path))

Downwards the teacher is a large model of the cluster and the student is what devices run. Upwards the teacher is an
`Ensemble` of the fleet's students and the student is the global model, or its head alone. Both are the same loop.

Rules kept here:

* The objective is CE of the labels that are there, plus T^2 KL(teacher || student) of both softened by T, plus, where
  the teacher shows features, how far the likeness of two samples differs between teacher and student.
* Only the shared answer is taught, `generic(features(x))`: a private head is the owner's and stays as it is.
* Same student, lessons, settings and seed: same bytes, also when the work was killed and went on from `record`.
* What cannot be taught is refused by name before a weight moves; a loss that is not finite puts the weights back.

Source: Hinton et al., arXiv:1503.02531 (softened answers); Tung and Mori, arXiv:1907.09682 (likeness of features, which
needs no projection where widths differ); Lin et al., Ensemble Distillation for Robust Model Fusion, arXiv:2006.07242
(FedDF: the mean of the students' logits teaches the fused model).

Shape legend: N samples, B batch, M members, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

from nfl_core.learning.distil.errors import (
    ClassCountError,
    DistilError,
    EmptyProxyError,
    InputShapeError,
    OtherRunError,
    TeacherAnswerError,
)
from nfl_core.learning.distil.lessons import CHUNK, UNLABELLED, Lessons, ask
from nfl_core.learning.distil.objective import DistilObjective, DistilSettings, likeness_loss, soft_loss
from nfl_core.learning.distil.teach import DistilReport, EpochReport, Part, teach
from nfl_core.learning.distil.teacher import Answer, Ensemble, ModelTeacher, Teacher

__all__ = [
    "CHUNK",
    "UNLABELLED",
    "Answer",
    "ClassCountError",
    "DistilError",
    "DistilObjective",
    "DistilReport",
    "DistilSettings",
    "EmptyProxyError",
    "Ensemble",
    "EpochReport",
    "InputShapeError",
    "Lessons",
    "ModelTeacher",
    "OtherRunError",
    "Part",
    "Teacher",
    "TeacherAnswerError",
    "ask",
    "likeness_loss",
    "soft_loss",
    "teach",
]
