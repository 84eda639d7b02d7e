"""Independent random streams that belong to items, not to the order of calls.

Every random draw is keyed by ``(seed, purpose, item…)``, so a result does not depend on batch
order, on the number of processes or on where a killed run was resumed.
"""

import hashlib

import torch
from torch import Tensor

_MASK_63 = (1 << 63) - 1
# splitmix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014).
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def derive(seed: int, *item: str | int) -> int:
    """The item's own seed: a fixed hash of ``(seed, *item)`` in ``[0, 2**63)``."""
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in item)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & _MASK_63


def of_synthesis(seed: int, number: int) -> int:
    """Seed of a set's synthesis ``number`` and of all that follows from it: 0 has ``seed`` itself,
    and others are whole repeats, labels and students included.
    """
    return derive(seed, "repeat", number) if number else seed


def rng(seed: int, *item: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """The item's own random numbers, e.g. ``rng(seed, "noise", class_id, index)``."""
    return torch.Generator(device).manual_seed(derive(seed, *item))


def permutation(count: int, seed: int, *item: str | int) -> Tensor:
    """Random order of ``count`` things, int64 ``(count,)`` on the CPU."""
    return torch.randperm(count, generator=rng(seed, *item))


def uniforms(key: int, counters: Tensor, num: int) -> Tensor:
    """Counter-based uniform numbers: row ``i`` depends on ``key`` and ``counters[i]`` alone.

    The same bits come out on every device and for any batch that a counter appears in, which is
    what lets augmented views be regenerated instead of stored.

    Args:
        key: seed of the draw, from :func:`derive`.
        counters: int64 ``(N,)``, non-negative; an image's index, say.
        num: numbers wanted per counter.

    Returns:
        float32 ``(N, num)`` in ``[0, 1)`` on the device of ``counters``, multiples of 2⁻²⁴.

    Source: splitmix64 finaliser on ``key + golden · (counter · num + slot + 1)``.
    """
    slots = torch.arange(num, device=counters.device)
    z = key + _GOLDEN * (counters[:, None] * num + slots + 1)
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    z = z ^ _shift_right(z, 31)
    return _shift_right(z, 40).to(torch.float32) * 2.0**-24


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's ``>>`` keeps the sign)."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
