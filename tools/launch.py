"""``python`` for the stages that :mod:`tools.repro` starts, in next to no time.

``python tools/launch.py -m MODULE …`` asks the server of :mod:`tools.server` for a process that has
imported PyTorch already and ends with its exit status; without a server it becomes
``python -m MODULE …``. Nothing but the standard library is imported here.
"""

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SOCKET = "TEDDY_SERVER"
"""Environment variable that names the server's socket."""
LENGTH = 8
"""Bytes that say how long a request is."""


class Process:
    """A process of the server.

    Args:
        module: what it runs, as ``python -m`` does.
        argv: its arguments.
        environment: its environment.
        files: its standard input, output and error.
        stays: whether it goes on when this process ends; otherwise it is killed.

    Raises:
        OSError: there is no server.
    """

    def __init__(
        self,
        module: str,
        argv: Sequence[str],
        environment: Mapping[str, str],
        files: tuple[int, int, int] = (0, 1, 2),
        *,
        stays: bool = False,
    ) -> None:
        request = {
            "module": module, "argv": list(argv), "environment": dict(environment),
            "folder": str(Path.cwd()), "stays": stays,
        }  # fmt: skip
        text = json.dumps(request).encode()
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._connection.connect(environment.get(SOCKET, ""))
            socket.send_fds(self._connection, [len(text).to_bytes(LENGTH)], files)
            self._connection.sendall(text)
        except OSError:
            self._connection.close()
            raise

    def close(self) -> None:
        """Have nothing more to do with it."""
        self._connection.close()

    def wait(self) -> int | None:
        """Its exit status, or None if the server has gone, and what it started with it."""
        with self._connection, self._connection.makefile() as answer:
            try:
                return int(answer.readline())
            except (OSError, ValueError):
                return None


def main() -> None:
    """Run the command."""
    module, argv = sys.argv[2], sys.argv[3:]
    sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
    from teddy.core.ancestors import end_with_dvc

    name = argv[0] if argv else module
    end_with_dvc(name)
    try:
        status = Process(module, argv, os.environ).wait()
    except OSError:
        status = None
    if status is None:
        end_with_dvc(name)  # at once if the server is not all that has gone, and not after imports
        os.execvp("python", ["python", "-m", module, *argv])
    os._exit(status)


if __name__ == "__main__":
    main()
