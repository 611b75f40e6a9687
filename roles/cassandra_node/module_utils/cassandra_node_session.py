"""A session with one node alone, over TLS. Imports Debian's driver where there is one."""

from __future__ import annotations

import ssl
from typing import Any

try:
    from cassandra import AuthenticationFailed, ConsistencyLevel, DriverException
    from cassandra.auth import PlainTextAuthProvider
    from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
    from cassandra.policies import WhiteListRoundRobinPolicy
    from cassandra.protocol import ErrorMessage

    DRIVER = True
    # What a node refuses is raised as the message itself where the driver has no name of its own for it.
    DRIVER_ERRORS: tuple[type[BaseException], ...] = (DriverException, ErrorMessage, NoHostAvailable, OSError)
except ImportError:
    DRIVER = False
    DRIVER_ERRORS = (OSError,)

    class NoHostAvailable(Exception):  # type: ignore[no-redef]  # noqa: N818
        """Stands in, so that an except clause can name it."""


class LoginRefusedError(Exception):
    """The node answered and does not accept name and password."""


def connect(
    *, address: str, port: int, ca: str, user: str, password: str, connect_seconds: float = 10
) -> tuple[Any, Any]:
    """(cluster, session) to this node alone, at LOCAL_QUORUM."""
    context = ssl.create_default_context(cafile=ca)
    cluster = Cluster(
        [address],
        port=port,
        auth_provider=PlainTextAuthProvider(user, password),
        ssl_context=context,
        ssl_options={"server_hostname": address},
        connect_timeout=connect_seconds,
        max_schema_agreement_wait=30,
        execution_profiles={
            EXEC_PROFILE_DEFAULT: ExecutionProfile(
                load_balancing_policy=WhiteListRoundRobinPolicy([address]),
                consistency_level=ConsistencyLevel.LOCAL_QUORUM,
                request_timeout=30,
            )
        },
    )
    try:
        return cluster, cluster.connect()
    except NoHostAvailable as error:
        cluster.shutdown()
        causes = list(error.errors.values()) if isinstance(error.errors, dict) else []
        if any(isinstance(cause, AuthenticationFailed) for cause in causes):
            raise LoginRefusedError(str(causes[0])) from error
        raise
