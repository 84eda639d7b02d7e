"""Memory: what cannot fit is refused before it is tried; exhausted memory is one exception."""

import contextlib
import os
from collections.abc import Iterator

import torch

from teddy.core.errors import TeddyError

_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""Of the CUDA driver, the C library's allocators, and cuBLAS and cuDNN."""


class OutOfMemory(Exception):
    """The device has no memory left for what was tried."""


@contextlib.contextmanager
def memory_watch() -> Iterator[None]:
    """Turn the ways in which PyTorch says that memory is exhausted into :class:`OutOfMemory`.

    Leave the block before trying anything else: the original error holds on to its tensors.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(str(error).splitlines()[0] if str(error) else "") from None
    except RuntimeError as error:
        text = str(error)
        if any(word in text for word in _WORDS):
            raise OutOfMemory(text.splitlines()[0]) from None
        raise


def check_fits(size: int, what: str) -> None:
    """Refuse what is larger than all memory of this machine.

    Args:
        size: bytes.
        what: file or keys, and what is so large.

    Raises:
        TeddyError: it does not fit.
    """
    most = machine_memory()
    if size > most:
        raise TeddyError(
            f"{what}: {size / 2**30:.1f} GiB of memory, but this machine has {most / 2**30:.1f} GiB"
        )


def machine_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
