"""Codes <-> bytes at 1-8 bits: dense, least significant bits first.

Code ``i`` occupies bits ``i * bits`` to ``(i + 1) * bits - 1`` of the stream, and bit ``j`` of the stream is bit
``j % 8`` of byte ``j // 8``. Eight codes therefore fill exactly ``bits`` bytes, for every width.
"""

import numpy as np
import torch
from torch import Tensor

_GROUP = 8  # codes that fill whole bytes together at every bit-width


def packed_size(count: int, bits: int) -> int:
    """Number of bytes that ``count`` codes of ``bits`` bits take."""
    return (count * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack unsigned codes densely into bytes.

    Args:
        codes: Integers in 0..2**bits - 1, any shape and integer dtype; read in row-major order.
        bits: Width of one code, 1-8.

    Returns:
        uint8, (packed_size(codes.numel(), bits),). Unused bits of the last byte are 0.

    Raises:
        ValueError: ``bits`` is not in 1..8 or a code does not fit.
    """
    _check_bits(bits)
    flat = codes.detach().cpu().reshape(-1).numpy()
    if flat.size and (flat.min() < 0 or flat.max() >= 1 << bits):
        raise ValueError(f"codes: {flat.min()}..{flat.max()} do not fit {bits} bits (0..{(1 << bits) - 1})")
    each = np.unpackbits(flat.astype(np.uint8)[:, None], axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(each, bitorder="little"))


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Undo :func:`pack`.

    Args:
        packed: uint8, (packed_size(count, bits),).
        bits: Width of one code, 1-8.
        count: Number of codes.

    Returns:
        uint8, (count,).

    Raises:
        ValueError: ``bits`` is not in 1..8 or the number of bytes does not match ``count``.
    """
    _check_bits(bits)
    if packed.numel() != packed_size(count, bits):
        raise ValueError(
            f"packed codes: {packed.numel()} bytes, but {count} codes of {bits} bits take {packed_size(count, bits)}"
        )
    groups = -(-count // _GROUP)
    stream = np.zeros(groups * bits, dtype=np.uint8)
    stream[: packed.numel()] = packed.cpu().numpy()
    words = np.zeros((groups, 8), dtype=np.uint8)
    words[:, :bits] = stream.reshape(-1, bits)
    shifts = np.arange(_GROUP, dtype=np.uint64) * np.uint64(bits)
    codes = (words.view("<u8") >> shifts) & np.uint64((1 << bits) - 1)
    return torch.from_numpy(codes.astype(np.uint8).reshape(-1)[:count].copy())


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"bits: {bits}, allowed are 1-8")
