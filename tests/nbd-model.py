#!/usr/bin/python3
"""Random requests of every size and alignment through libnbd, over several connections, against a plain array.

    tests/nbd-model.py URI SIZE SEED OPERATIONS CONNECTIONS

What each read, each block status and the whole export at the end say must be what the array says. Debian's python3-libnbd.
"""
import random
import sys

import nbd

uri, size, seed, operations, count = sys.argv[1], *map(int, sys.argv[2:6])
chance = random.Random(seed)
HOLE, ZERO = nbd.STATE_HOLE, nbd.STATE_ZERO


def connect():
    handle = nbd.NBD()
    handle.set_uri_allow_local_file(True)
    handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    handle.add_meta_context("x-dedup:sharing")
    handle.connect_uri(uri)
    assert handle.can_multi_conn() and handle.can_meta_context("x-dedup:sharing")
    return handle


handles = [connect() for _ in range(count)]
assert handles[0].get_size() == size
block = handles[0].get_block_size(nbd.SIZE_PREFERRED)
model = bytearray(size)
for start in range(0, size, 32 << 20):
    handles[0].zero(min(32 << 20, size - start), start)


def a_range(limit):
    """Short and long, aligned and not, also at the very end."""
    length = min(size, chance.choice([1, chance.randrange(1, 600), block, chance.randrange(1, limit), 3 * block]))
    start = chance.randrange(size - length + 1)
    shape = chance.randrange(4)
    if shape == 0:
        start -= start % block
    elif shape == 1:
        start = size - length
    return start, length


def check_status(handle, start, length, flags):
    told = []
    handle.block_status(length, start, lambda context, offset, entries, error: told.append((context, entries)), flags)
    assert {context for context, _ in told} == {"base:allocation", "x-dedup:sharing"}, told
    for context, entries in told:
        assert len(entries) == 2 or not flags, "one extent was asked for"
        at = start
        for extent, status in zip(entries[::2], entries[1::2]):
            assert extent > 0
            end = min(at + extent, size)
            zeros = model.count(0, at, end) == end - at
            if context == "base:allocation":
                assert status in (0, HOLE | ZERO), status
                hole = status == HOLE | ZERO
            else:
                hole = status == 0
            assert not hole or zeros, f"{context} tells of a hole at {at}+{extent}"
            # Exact: what holds a whole block of zeros is told as a hole.
            if not hole:
                first = -(-at // block) * block
                for inner in range(first, end - block + 1, block):
                    assert model.count(0, inner, inner + block) < block, f"{context}: zeros at {inner} are told as data"
            at = end


def read(handle, start, length):
    how = chance.randrange(3)
    if how == 0:
        return handle.pread(length, start)
    chunks = []

    def chunk(data, offset, status, error):
        assert status != nbd.READ_HOLE or not any(data)
        chunks.append((offset, bytes(data)))

    data = handle.pread_structured(length, start, chunk, nbd.CMD_FLAG_DF if how == 1 else 0)
    assert how != 1 or len(chunks) == 1, "it was not to be fragmented"
    at = start
    for offset, part in sorted(chunks):
        assert offset == at
        at += len(part)
    assert at == start + length
    return data


for step in range(operations):
    handle = chance.choice(handles)
    start, length = a_range(200_000)
    end = start + length
    fua = chance.choice([0, 0, 0, nbd.CMD_FLAG_FUA])
    what = chance.randrange(12)
    if what < 4:
        kind = chance.randrange(3)
        pattern = bytes([chance.randrange(256)])
        data = pattern * length if kind == 0 else bytes(length) if kind == 1 else chance.randbytes(length)
        handle.pwrite(data, start, fua)
        model[start:end] = data
    elif what == 4:
        handle.zero(length, start, fua | chance.choice([0, nbd.CMD_FLAG_NO_HOLE]))
        model[start:end] = bytes(length)
    elif what == 5:
        # Only whole blocks are sure to be trimmed: those are read back.
        first, last = -(-start // block) * block, end // block * block
        if first < last:
            handle.trim(last - first, first, fua)
            model[first:last] = bytes(last - first)
    elif what == 6:
        handle.flush()
    elif what == 7:
        handle.cache(length, start)
    elif what == 8:
        check_status(handle, start, length, chance.choice([0, nbd.CMD_FLAG_REQ_ONE]))
    else:
        assert read(handle, start, length) == model[start:end], f"step {step}: {start}+{length}"

for start in range(0, size, 4 << 20):
    chunk = handles[-1].pread(min(4 << 20, size - start), start)
    assert chunk == model[start : start + len(chunk)], f"at the end, in {start}+{len(chunk)}"
check_status(handles[0], 0, size, 0)
for handle in handles:
    handle.shutdown()
