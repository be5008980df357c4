"""The real trainer process: torch in it, none here; killed at the worst moments."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from nfl_core.config import LearningSection, ModelSection
from nfl_core.errors import ProcessDiedError
from nfl_core.tensors import write_tensors
from nfl_edge.errors import TrainerError
from nfl_edge.learn import TrainerProcess
from nfl_edge.requests import EvaluateRequest, InitRequest, MergeRequest, MicroUpdateRequest, Task
from nfl_edge.store import SUFFIX, load_checkpoint

from .world import SHAPE, default_spec, shared_tensors, write_samples

# A trainer that dies or misbehaves on purpose, in the place of the real one.
FAKE = """
import os, sys
print('{"pid": %d, "torch": "none"}' % os.getpid(), flush=True)
for line in sys.stdin:
    {action}
"""


def task(folder: Path, *, epochs: int = 1) -> Task:
    (folder / "checkpoints").mkdir(exist_ok=True)
    return Task(
        checkpoints=str(folder / "checkpoints"),
        samples=str(folder / "samples.safetensors"),
        model=ModelSection(input_shape=SHAPE),
        levels=default_spec().levels,
        learning=LearningSection(batch_size=16, epochs_per_update=epochs, refit_steps=5),
        seed=5,
    )


def init_request(folder: Path, *, samples: bool = True, **options: int) -> InitRequest:
    if samples:
        write_samples(folder / "samples.safetensors")
    (folder / "incoming").write_bytes(write_tensors(shared_tensors(1)))
    return InitRequest(
        task=task(folder, **options), incoming=str(folder / "incoming"), base_version=1, base_digest="1" * 64
    )


def merge_request(folder: Path, checkpoint: str) -> MergeRequest:
    (folder / "incoming").write_bytes(write_tensors(shared_tensors(2)))
    return MergeRequest(
        task=task(folder),
        checkpoint=checkpoint,
        incoming=str(folder / "incoming"),
        base_version=2,
        base_digest="2" * 64,
        alphas=(1.0, 0.5),
        tolerance=1e9,
        max_drop=1.0,
        refit_steps=5,
        refit_learning_rate=0.05,
    )


def fake(action: str) -> TrainerProcess:
    return TrainerProcess([sys.executable, "-c", FAKE.replace("{action}", action)], request_s=5.0)


async def test_killed_in_the_middle_the_trainer_comes_back_with_the_same_result(tmp_path: Path) -> None:
    trainer = TrainerProcess()
    try:
        first = await trainer.init(init_request(tmp_path, epochs=60))
        request = MicroUpdateRequest(task=task(tmp_path, epochs=60), checkpoint=first.checkpoint)
        undisturbed = await trainer.micro_update(request)
        made = tmp_path / "checkpoints" / f"{undisturbed.checkpoint}{SUFFIX}"
        bytes_of_first = made.read_bytes()
        made.unlink()
        pid, cpu = trainer.pid, psutil.Process(trainer.pid).cpu_times().user
        assert psutil.Process(pid).nice() == 19
        asking = asyncio.ensure_future(trainer.micro_update(request))
        while psutil.Process(pid).cpu_times().user < cpu + 0.05:  # it is at work
            await asyncio.sleep(0.005)
        assert not asking.done()
        os.kill(pid, signal.SIGKILL)
        again = await asking
        assert (trainer.num_starts, trainer.pid != pid) == (2, True)
        assert again.checkpoint == undisturbed.checkpoint
        assert made.read_bytes() == bytes_of_first
    finally:
        await trainer.stop()


async def test_init_learn_merge_evaluate(tmp_path: Path) -> None:
    trainer = TrainerProcess()
    try:
        first = await trainer.init(init_request(tmp_path))
        learnt = await trainer.micro_update(
            MicroUpdateRequest(task=task(tmp_path, epochs=4), checkpoint=first.checkpoint)
        )
        assert learnt.loss_after < learnt.loss_before
        assert learnt.num_steps == 16
        path = tmp_path / "checkpoints"
        checkpoint = load_checkpoint(path / f"{learnt.checkpoint}{SUFFIX}", learnt.checkpoint)
        assert checkpoint.meta.num_updates_here == 1
        start = shared_tensors(1)
        assert all((checkpoint.accepted[name] == start[name]).all() for name in start)
        merged = await trainer.merge(merge_request(tmp_path, learnt.checkpoint))
        after = load_checkpoint(path / f"{merged.checkpoint}{SUFFIX}", merged.checkpoint)
        assert (after.meta.base_version, after.meta.num_updates_here, after.meta.num_updates) == (2, 0, 1)
        # The accepted reference is what the merge made, alpha counted.
        assert all((after.accepted[name] == after.tensors[name]).all() for name in start)
        scored = await trainer.evaluate(EvaluateRequest(task=task(tmp_path), checkpoint=merged.checkpoint))
        assert scored.accuracy == merged.accuracy
        with pytest.raises(TrainerError, match=r"durable\.corrupt"):
            await trainer.micro_update(MicroUpdateRequest(task=task(tmp_path), checkpoint="0" * 64))
        assert trainer.num_starts == 1  # a refusal is an answer, not a crash
    finally:
        await trainer.stop()
    assert trainer.pid is None


async def test_a_device_without_samples_takes_versions_whole(tmp_path: Path) -> None:
    trainer = TrainerProcess()
    try:
        first = await trainer.init(init_request(tmp_path, samples=False))
        merged = await trainer.merge(merge_request(tmp_path, first.checkpoint))
        assert (merged.alpha, merged.refit_steps) == (1.0, 0)
        with pytest.raises(TrainerError, match="no samples"):
            await trainer.micro_update(MicroUpdateRequest(task=task(tmp_path), checkpoint=merged.checkpoint))
        write_samples(tmp_path / "samples.safetensors")
        wide = task(tmp_path).model_copy(update={"model": ModelSection(input_shape=SHAPE, num_classes=3)})
        with pytest.raises(TrainerError, match="labels below 3"):
            await trainer.init(init_request(tmp_path).model_copy(update={"task": wide}))
    finally:
        await trainer.stop()


@pytest.mark.parametrize(
    ("action", "why"),
    [
        ("os._exit(3)", "ended in the middle"),
        ("print('what?', flush=True)", "no reply"),
        ("print('x' * (2 << 20), flush=True)", "too long"),
        ('print(\'{"number": 99, "result": {"kind": "evaluated", "accuracy": 1, "loss": 1}}\', flush=True)', "99"),
    ],
)
async def test_a_trainer_that_always_fails_is_given_up_after_three_starts(
    tmp_path: Path, action: str, why: str
) -> None:
    trainer = fake(action)
    try:
        with pytest.raises(ProcessDiedError, match=why):
            await trainer.evaluate(EvaluateRequest(task=task(tmp_path), checkpoint="0" * 64))
        assert trainer.num_starts == 3
    finally:
        await trainer.stop()


async def test_a_trainer_that_hangs_is_killed(tmp_path: Path) -> None:
    trainer = TrainerProcess(
        [sys.executable, "-c", FAKE.replace("{action}", "import time; time.sleep(99)")], request_s=0.2
    )
    try:
        with pytest.raises(ProcessDiedError, match="did not answer"):
            await trainer.evaluate(EvaluateRequest(task=task(tmp_path), checkpoint="0" * 64))
    finally:
        await trainer.stop()


async def test_abort_ends_what_is_under_way_and_refuses_the_rest(tmp_path: Path) -> None:
    trainer = fake("import time; time.sleep(99)")
    await trainer.start()
    request = EvaluateRequest(task=task(tmp_path), checkpoint="0" * 64)
    asking = [asyncio.ensure_future(trainer.evaluate(request)) for _ in range(3)]
    await asyncio.sleep(0)
    trainer.abort()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(result, ProcessDiedError) for result in results)
    assert trainer.num_starts == 1
    await trainer.stop()
