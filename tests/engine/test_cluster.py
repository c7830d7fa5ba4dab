"""Private sessions: on loopback, with a token that nobody else reads; errors of ours come back as themselves."""

import os
import pickle
import stat

import psutil
import pytest
import ray

from voxfleet.config.resources import ResourcesConfig
from voxfleet.engine.cluster import check_fits, ray_errors, session
from voxfleet.errors import UserError

pytestmark = pytest.mark.usefixtures("ray_session")


@ray.remote
def refuse():
    raise UserError("bad; mend it")


def test_every_server_listens_on_loopback():
    mine = psutil.Process()
    open_ports = [
        connection.laddr.ip
        for process in [mine, *mine.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(open_ports) > 3
    assert {ip.removeprefix("::ffff:") for ip in open_ports} == {"127.0.0.1"}


def test_the_token_is_private():
    mode = stat.S_IMODE(os.stat(os.path.dirname(os.environ["RAY_AUTH_TOKEN_PATH"])).st_mode)
    assert mode == 0o700


def test_an_error_of_ours_comes_back_from_a_task_without_rays_traceback():
    with pytest.raises(UserError) as caught, ray_errors():
        ray.get(refuse.remote())
    assert str(caught.value) == "bad; mend it"
    assert type(pickle.loads(pickle.dumps(caught.value))) is UserError


def test_another_error_is_left_alone():
    with pytest.raises(ZeroDivisionError), ray_errors():
        raise ZeroDivisionError


def test_workers_that_do_not_fit_are_refused_with_what_there_is():
    with pytest.raises(UserError, match=r"resources\.workers"):
        check_fits(ResourcesConfig(workers=900))


def test_a_session_within_a_session_is_the_same():
    with session(ResourcesConfig()):
        pass
    assert ray.is_initialized()
