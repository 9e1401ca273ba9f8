"""Whether this is the process that loaded something. Backends, encoders and the service ask it.

A fork copies memory, but no threads: what waits for its own threads would wait for ever.
"""

import os
from typing import Any

from lumosx_rt.reference.errors import Unsupported


def check_process(pid: int, what: str) -> None:
    """Raise LumosXError unless `pid`, of the process that loaded `what`, is this process."""
    if os.getpid() != pid:
        raise Unsupported(
            f"{what} was loaded in another process ({pid}) and does not work in its fork "
            f"({os.getpid()}); load it again here, or start processes by 'spawn'"
        )


class OfItsProcess:
    """Something that a forked process has to load for itself; sent to a new process it is at home.

    Its users set `_pid` to their process.
    """

    _pid: int

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _pid=os.getpid())
