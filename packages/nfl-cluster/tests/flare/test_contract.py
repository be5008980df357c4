"""What we use of nvflare must be as we know it; a failure here means: read this before raising the version."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.job_launcher_spec import JobProcessArgs
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.server_process_launcher import ServerProcessJobLauncher
from nvflare.fuel.flare_api import api_spec
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session
from nvflare.fuel.hci.proto import MetaStatusValue
from nvflare.fuel.utils.class_loader import load_class
from nvflare.lighter.constants import ProvFileName
from nvflare.lighter.ctx import ProvisionContext
from nvflare.lighter.entity import Participant, Project
from nvflare.lighter.spec import Builder
from nvflare.private.aux_runner import AuxRunner
from nvflare.private.fed.client.client_run_manager import ClientRunManager
from nvflare.private.fed.server.server_engine import ServerEngine

from nfl_cluster.flare import names
from nfl_cluster.flare.courier import RootCourier, SiteCourier
from nfl_cluster.flare.provision import _BUILDERS, _STORAGE, _client_policy, _server_policy


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_the_version_is_the_one_that_was_read() -> None:
    assert version("nvflare").startswith("2.9.")


@pytest.mark.parametrize("engine", [ClientRunManager, ServerEngine])
def test_engines_send_and_take_auxiliary_messages(engine: type[object]) -> None:
    send = parameters(engine.send_aux_request)  # type: ignore[attr-defined]
    assert send[1:7] == ["targets", "topic", "request", "timeout", "fl_ctx", "optional"]
    assert parameters(engine.register_aux_message_handler)[1:] == ["topic", "message_handle_func"]  # type: ignore[attr-defined]


def test_a_topic_takes_one_handler() -> None:
    runner = AuxRunner(engine=None)
    runner.register_aux_message_handler(names.TOPIC, lambda **_: None)
    with pytest.raises(ValueError, match="already registered"):
        runner.register_aux_message_handler(names.TOPIC, lambda **_: None)


def test_handlers_are_called_by_these_names() -> None:
    runner, seen = AuxRunner(engine=None), {}
    runner.register_aux_message_handler(names.TOPIC, lambda **given: seen.update(given) or make_reply(ReturnCode.OK))
    request = Shareable()
    request.set_peer_props({"__identity_name__": "leaf-1"})
    assert runner.dispatch(names.TOPIC, request, FLContext()).get_return_code() == ReturnCode.OK
    assert sorted(seen) == ["fl_ctx", "request", "topic"]


def test_components_have_the_methods_that_flare_calls() -> None:
    assert parameters(Controller.start_controller) == parameters(RootCourier.start_controller)
    assert parameters(Controller.control_flow) == parameters(RootCourier.control_flow)
    assert parameters(Controller.stop_controller) == parameters(RootCourier.stop_controller)
    assert parameters(Executor.execute) == parameters(SiteCourier.execute)
    assert not inspect.isabstract(RootCourier)
    assert not inspect.isabstract(SiteCourier)
    assert {EventType.START_RUN, EventType.END_RUN, ReturnCode.BAD_REQUEST_DATA, ReturnCode.TASK_UNKNOWN}


def test_the_administrators_session() -> None:
    assert parameters(new_secure_session)[:2] == ["username", "startup_kit_location"]
    assert "timeout" in parameters(new_secure_session)
    for name in ("get_system_info", "get_client_job_status", "submit_job", "abort_job", "close"):
        assert callable(getattr(Session, name))
    assert (MetaStatusValue.NO_REPLY, MetaStatusValue.ERROR) == ("no_reply", "error")
    assert "job_info" in parameters(api_spec.SystemInfo)
    assert "client_info" in parameters(api_spec.SystemInfo)
    for name in ("NoConnection", "InternalError", "JobNotFound", "JobNotDone", "AuthenticationError"):
        assert issubclass(getattr(api_spec, name), Exception)


@pytest.mark.parametrize("launcher", [ClientProcessJobLauncher, ServerProcessJobLauncher])
def test_launchers_make_one_command_line(launcher: type[object]) -> None:
    assert parameters(launcher.get_command) == ["self", "job_meta", "fl_ctx"]  # type: ignore[attr-defined]
    assert JobProcessArgs.WORKSPACE
    assert JobProcessArgs.STARTUP_DIR
    assert JobProcessArgs.APP_ROOT
    assert FLContextKey.JOB_PROCESS_ARGS


def test_builders_of_kits() -> None:
    assert parameters(Builder.build) == ["self", "project", "ctx"]
    assert callable(Project.get_server)
    assert callable(Participant.get_default_host)
    assert callable(ProvisionContext.get_kit_dir)
    assert ProvFileName.FED_SERVER_JSON == "fed_server.json"


def test_every_class_that_a_kit_names_exists() -> None:
    from pathlib import Path

    named = {path for path, _ in _BUILDERS} | {_STORAGE}
    for policy in (_server_policy(Path("/kit")), _client_policy()):
        named |= {one["path"] for one in policy["components"]}  # type: ignore[attr-defined]
    named |= {names.ROOT_COURIER, names.SITE_COURIER}
    for path in named:
        assert inspect.isclass(load_class(path)), path
