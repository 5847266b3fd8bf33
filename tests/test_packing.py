"""Packing against an oracle that writes bits one by one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofqctl.packing import pack, packed_size, unpack

WIDTHS = st.integers(1, 8)


def bit_by_bit(codes: list[int], bits: int) -> bytes:
    stream = 0
    for index, code in enumerate(codes):
        stream |= code << (index * bits)
    return stream.to_bytes((len(codes) * bits + 7) // 8, "little")


@given(WIDTHS, st.data())
def test_packing_writes_the_bits_the_format_describes_and_unpacking_reads_them_back(bits, data):
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))
    packed = pack(torch.tensor(codes, dtype=torch.int64), bits)
    assert packed.dtype == torch.uint8
    assert bytes(packed.tolist()) == bit_by_bit(codes, bits)
    assert unpack(packed, bits, len(codes)).tolist() == codes


@given(WIDTHS, st.integers(0, 10_000))
def test_packed_size_is_the_smallest_whole_number_of_bytes(bits, count):
    assert (packed_size(count, bits) - 1) * 8 < count * bits <= packed_size(count, bits) * 8


def test_tensors_of_any_shape_are_read_in_row_major_order():
    codes = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4) % 8
    assert torch.equal(pack(codes, 3), pack(codes.flatten(), 3))
    assert torch.equal(pack(codes.transpose(0, 2), 3), pack(codes.transpose(0, 2).contiguous(), 3))


@pytest.mark.parametrize("code", [-1, 4])
def test_a_code_that_does_not_fit_is_refused(code):
    with pytest.raises(ValueError, match="do not fit 2 bits"):
        pack(torch.tensor([0, code]), 2)


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_other_widths_than_1_to_8_are_refused(bits):
    with pytest.raises(ValueError, match="allowed are 1-8"):
        pack(torch.tensor([0]), bits)
    with pytest.raises(ValueError, match="allowed are 1-8"):
        unpack(torch.zeros(1, dtype=torch.uint8), bits, 1)


def test_a_stream_of_another_length_is_refused():
    with pytest.raises(ValueError, match="3 codes of 5 bits take 2"):
        unpack(torch.zeros(3, dtype=torch.uint8), 5, 3)
