"""Exhausted memory as one exception, however PyTorch says it."""

import contextlib
from collections.abc import Iterator

import torch

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
