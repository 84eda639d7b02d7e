"""A Python that has imported PyTorch and DVC, and forks itself for whoever asks.

:mod:`tools.repro` starts one, as many stages and their DVC spend as long on imports as on work. A
process that is asked for by :mod:`tools.launch` has the arguments, folder, environment and standard
files of the one that asks, and does what ``python -m`` does. It is killed when that one or the
server is gone, unless it is to stay. The server computes nothing, so that every process begins as a
fresh one does. It ends when its standard input does.
"""

import contextlib
import ctypes
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from tools.launch import LENGTH

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

Wanted = dict[str, Any]
"""A request, as :class:`tools.launch.Process` makes it."""


def serve(path: Path, modules: Sequence[str]) -> Wanted | None:
    """Serve until standard input ends.

    Args:
        path: of the socket, which begins to be there at once.
        modules: to import before anything is answered; one that is not installed is left out.

    Returns:
        None at the end; in a process that was forked, what it is to run.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen(64)
        for module in modules:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
        processes: dict[socket.socket, int] = {}
        with selectors.DefaultSelector() as events:
            events.register(0, selectors.EVENT_READ)
            events.register(server, selectors.EVENT_READ)
            while True:
                for key, _ in events.select():
                    if key.fileobj == 0:
                        return None
                    if key.fileobj is server:
                        connection, _ = server.accept()
                        files, wanted = _read(connection)
                        if wanted is None:
                            connection.close()
                            _close(files)
                        elif process := _fork(files):
                            processes[connection] = process
                            ended = os.pidfd_open(process)
                            events.register(ended, selectors.EVENT_READ, connection)
                            if not wanted["stays"]:
                                events.register(connection, selectors.EVENT_READ)
                        else:
                            for other in (connection, *processes):
                                other.close()  # or the server's end would not be seen
                            _become(files, wanted)
                            return wanted
                    elif key.fileobj in processes:  # who asked is gone
                        os.kill(processes[key.fileobj], signal.SIGKILL)
                        events.unregister(key.fileobj)
                    elif key.data is not None:  # a process has ended
                        connection = key.data
                        events.unregister(key.fileobj)
                        os.close(key.fd)
                        _, status = os.waitpid(processes.pop(connection), 0)
                        with contextlib.suppress(KeyError):
                            events.unregister(connection)
                        with contextlib.suppress(OSError), connection:
                            code = os.waitstatus_to_exitcode(status)
                            connection.sendall(b"%d\n" % (code if code >= 0 else 128 - code))


def _read(connection: socket.socket) -> tuple[list[int], Wanted | None]:
    """Standard files and request of who has connected; None if it is gone."""
    size, files, _, _ = socket.recv_fds(connection, LENGTH, 3)
    text = b""
    while len(text) < int.from_bytes(size):
        part = connection.recv(int.from_bytes(size) - len(text))
        if not part:
            return files, None
        text += part
    return files, json.loads(text) if text else None


def _fork(files: Sequence[int]) -> int:
    process = os.fork()
    if process:
        _close(files)
    return process


def _close(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)


def _become(files: Sequence[int], wanted: Wanted) -> None:
    """Make this process what was asked for."""
    if wanted["stays"]:
        os.setpgid(0, 0)
    else:
        server = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            os._exit(1)
    for place, file in enumerate(files):
        os.dup2(file, place)
        os.close(file)
    for stream in (sys.stdout, sys.stderr):
        cast("Any", stream).reconfigure(line_buffering=stream.isatty() or stream is sys.stderr)
    os.chdir(wanted["folder"])
    os.environ.clear()
    os.environ.update(wanted["environment"])


def main() -> None:
    """Serve at the socket that the command line names, with the modules that follow it; the socket
    and its folder are removed in the end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    path = Path(sys.argv[1])
    wanted = serve(path, sys.argv[2:])
    if wanted is None:
        with contextlib.suppress(OSError):
            path.unlink()
            path.parent.rmdir()
    if wanted is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv[1:] = wanted["argv"]
        runpy.run_module(wanted["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
