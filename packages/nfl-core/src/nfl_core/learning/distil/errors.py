"""Why a student cannot be taught."""

from __future__ import annotations

from nfl_core.errors import ConflictError, LearningError


class DistilError(LearningError):
    """Teaching failed."""

    code = "distil.failed"
    hint = "look at teacher, proxy data and settings; the student is as it was"


class EmptyProxyError(DistilError):
    """There is nothing that a teacher could answer about."""

    code = "distil.empty-proxy"
    hint = "give proxy data with at least one sample"


class TeacherAnswerError(DistilError):
    """A teacher's answer is not finite or has the wrong shape."""

    code = "distil.teacher-answer"
    hint = "a teacher gives finite logits, one row a sample; check its weights and how its inputs are scaled"


class ClassCountError(DistilError):
    """Teacher, student or labels disagree about the number of classes."""

    code = "distil.class-count"
    hint = "choose a teacher and a student of the same task, with classes in the same order"


class InputShapeError(DistilError):
    """Teacher, student or proxy data disagree about the shape of one input."""

    code = "distil.input-shape"
    hint = "proxy data have the shape of the student's inputs; a teacher that needs another resizes inside its graph"


class OtherRunError(ConflictError):
    """What was kept belongs to a run with another teacher, student, proxy, seed or settings."""

    code = "distil.other-run"
    hint = "go on with what the kept run was started with, or remove what it kept to start afresh"
