"""What a function does in a child made by fork: it answers, raises, or hangs."""

import os
import select
import signal

SECONDS = 20


def in_a_fork(function) -> str:
    """Run a function in a forked child; return its result as text, or `KIND: message`.

    A child that does not answer is killed, and fails the test.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            try:
                told = str(function())
            except BaseException as error:
                told = f"{type(error).__name__}: {error}"
            os.write(writer, told.encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        assert select.select([reader], [], [], SECONDS)[0], "the child hangs"
        return os.read(reader, 1 << 16).decode()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
