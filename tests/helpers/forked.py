"""Functions in processes that need not import torch, timm and what mains import again.

Threads do not survive a fork, so only a process in which torch has not computed anything may fork: the tests'
own has `fresh` instead, by way of a server that imports this module and computes nothing.
"""

import importlib
import multiprocessing
import os
import socket
import sys
import traceback
from functools import partial

for name in ("engine.run", "engine.loop", "engine.inference", "models.checkpoint", "models.losses",
             "models.catr", "datasets.scenes", "datasets.shapes", "datasets.transforms",
             "compare.statistics", "timm", "torch._dynamo"):
    importlib.import_module(name)

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__])


def fresh(function, *arguments, log=os.devnull, **environment):
    """Start `function(*arguments)` in a session of its own, with these variables in its environment.

    What it prints is appended to a file. Returns a multiprocessing.Process.
    """
    process = SERVER.Process(target=_call, args=(function, arguments, log, environment, os.setsid))
    process.start()
    return process


def _call(function, arguments, log, environment, prepare):
    code = 1
    try:
        os.environ.update(environment)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        prepare()
        code = function(*arguments)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def start(main, arguments, log, prepare=lambda: None, **environment):
    """Fork a process that calls `prepare()`, then `main(arguments)`, and appends what it prints to a file.

    Returns its number.
    """
    process = os.fork()
    if not process:
        _call(main, [list(map(str, arguments))], log, environment, prepare)
    return process


def ranks(count):
    """What torchrun sets for each of `count` processes that work together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
             "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            for rank in range(count)]


def start_ranks(count, main, arguments, log, prepare=lambda rank: None):
    """As `start`, for `count` processes that work together as torchrun's do. Returns their numbers."""
    return [start(main, arguments, log, partial(prepare, rank), **environment)
            for rank, environment in enumerate(ranks(count))]


def ended(process, wait=True):
    """How a process ended, a negative number for a signal; None if it has not and `wait` is not set."""
    number, status = os.waitpid(process, 0 if wait else os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if number else None
