"""A script's main in forked processes, which need not import torch, timm and what mains import again.

Threads do not survive a fork, so only a process in which torch has not computed anything may do this:
not the tests'.
"""

import importlib
import os
import socket
import sys
import traceback

for name in ("engine.run", "engine.loop", "engine.inference", "models.checkpoint", "models.losses",
             "models.catr", "datasets.scenes", "datasets.shapes", "datasets.transforms",
             "compare.statistics"):
    importlib.import_module(name)


def start(main, arguments, log, prepare=lambda: None):
    """Fork a process that calls `prepare()`, then `main(arguments)`, and appends what it prints to a file.

    Returns its number.
    """
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        prepare()
        code = main(list(map(str, arguments)))
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start_ranks(count, main, arguments, log, prepare=lambda rank: None):
    """As `start`, for `count` processes that work together as torchrun's do. Returns their numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def as_rank(rank):
        def prepare_rank():
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count),
                              LOCAL_WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            prepare(rank)
        return prepare_rank

    return [start(main, arguments, log, as_rank(rank)) for rank in range(count)]


def ended(process, wait=True):
    """How a process ended, a negative number for a signal; None if it has not and `wait` is not set."""
    number, status = os.waitpid(process, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if number else None
