"""Ways to break a file, and all that is done with a broken model.

`mutate_bytes` changes a file of any format. The others know a format and keep the rest of the file intact (lengths,
checksums, table offsets), so that a reader's later checks are reached, too. Each takes a file's bytes and a random
generator, and returns changed bytes.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import re
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

from balancer.cost.batch import SegmentBatch
from balancer.cost.hardware import load_hardware
from balancer.cost.segment import SegmentCosts
from balancer.ground.downsets import DownSets
from balancer.tflite import flatbuffer
from balancer.tflite.cut import Cutter
from balancer.tflite.flatbuffer import Table
from balancer.tflite.model import IDENTIFIER

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    Mutate = Callable[[bytes, random.Random], bytes]

_WORDS = [0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE, 0x10000000, 0x00FFFFFF]
_FRONT = 20_000  # most changes fall before it: that is where the tables of small models lie
_NUMBERS = ["0", "1", "-1", "2", "1e400", "-1e400", "NaN", "Infinity", "1e-320", "9007199254740993", "1" + "0" * 15,
            "9" * 19, "9" * 30, "9" * 5000, "0.5", "1e308", "4294967296"]  # fmt: skip
_JSON = [*_NUMBERS, "null", "true", "[]", "{}", '""', '"x"', '"../x"', '"\\ud800"', '"a\\u0000b"', '"0-99999999"',
         "[" * 2000 + "]" * 2000, '{"a":' * 2000 + "1" + "}" * 2000, "[[[]]]", "[1,2,3]"]  # fmt: skip
_FIELDS = [*_NUMBERS, "", " ", "nan", "inf", "-inf", "x", '"', "a\nb", "a,b", "\0", "²", "٣", "1_0", "0x10", "1-2-3", "3--1",
           "-", "64x64x3", "65536x65536x1", "x" * 200_000]  # fmt: skip
_PLACED = {"Buffer", "Operator"}
_PLACES = [0, 1, 2, 16, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1, (1 << 64) - 16]
_PADDING = 16  # fewer bytes behind a flatbuffer are its last string's end
_NUMBER = re.compile(rb"\d+(?:\.\d+)?")


def use_model(data: bytes) -> None:
    """Do all that balancer does with a model without running it. Raises what its readers raise."""
    cutter = Cutter(data)
    graph = cutter.graph
    costs = SegmentCosts(graph, load_hardware("pcie"))
    half = (1 << (len(graph.ops) + 1) // 2) - 1
    SegmentBatch(costs, DownSets.of([0, half, graph.all_ops], len(graph.ops)))([0, 0, 1], [1, 2, 2])
    for ops in (half, graph.all_ops & ~half):
        if ops & ~graph.folded:
            cutter.cut(ops)


def mutate_bytes(data: bytes, dice: random.Random) -> bytes:
    """Cut short; bits, words or runs of bytes changed."""
    kind = dice.randrange(6)
    if not data or kind == 0:
        return data[: dice.randrange(len(data) + 1)]
    changed = bytearray(data) + bytes(8)
    reach = min(len(data), _FRONT) if dice.random() < 0.7 else len(data)
    for _ in range(dice.choice([1, 1, 2, 8])):
        at = dice.randrange(reach)
        if kind == 1:
            changed[at] ^= 1 << dice.randrange(8)
        elif kind == 2:
            struct.pack_into("<I", changed, at & ~3, dice.choice(_WORDS))
        elif kind == 3:
            struct.pack_into("<H", changed, at & ~1, dice.randrange(1 << 16))
        elif kind == 4:
            changed[at] = dice.randrange(256)
        else:
            size, source = dice.randrange(1, 64), dice.randrange(reach)
            changed[at : at + size] = data[source : source + size]
    return bytes(changed[: len(data)])


def mutate_json(data: bytes, dice: random.Random) -> bytes:
    """Values replaced, exchanged, taken out or doubled, anywhere in the document."""
    document: Any = [json.loads(data)]
    texts: list[str] = []
    for _ in range(dice.choice([1, 1, 1, 2, 4])):
        places = list(_places(document))
        parent, key = dice.choice(places)
        kind = dice.randrange(6)
        if kind < 3:
            texts.append(dice.choice(_JSON))
            parent[key] = f"<{len(texts) - 1}>"
        elif kind == 3:
            other, its = dice.choice(places)
            parent[key] = copy.deepcopy(other[its])
        elif kind == 4 and parent is not document:
            del parent[key]
        elif isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        else:
            texts.append(f'{json.dumps(parent[key])}, "{key}": 1')  # the key stands twice
            parent[key] = f"<{len(texts) - 1}>"
    text = json.dumps(document[0])
    for k, raw in enumerate(texts):
        text = text.replace(f'"<{k}>"', raw)
    return text.encode()


def _places(value: Any) -> Any:
    """Each value of a document, as its parent and its key in the parent."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def mutate_csv(data: bytes, dice: random.Random) -> bytes:
    """Fields replaced, taken out or added; rows exchanged, doubled or cut short; columns renamed."""
    rows = list(csv.reader(io.StringIO(data.decode())))
    for _ in range(dice.choice([1, 1, 2, 4])):
        row = dice.choice(rows)
        kind = dice.randrange(6)
        if kind < 3 and row:
            row[dice.randrange(len(row))] = dice.choice(_FIELDS)
        elif kind == 3 and row:
            del row[dice.randrange(len(row))]
        elif kind == 4:
            row.insert(dice.randrange(len(row) + 1), dice.choice(_FIELDS))
        else:
            rows[dice.randrange(len(rows))] = list(dice.choice(rows))
    made = io.StringIO()
    if dice.random() < 0.5:
        csv.writer(made).writerows(rows)
    else:
        made.write("\n".join(",".join(row) for row in rows))
    return made.getvalue().encode()


def mutate_lines(data: bytes, dice: random.Random) -> bytes:
    """Lines taken out, doubled, exchanged, joined or split; numbers replaced."""
    lines = data.split(b"\n")
    for _ in range(dice.choice([1, 2, 8])):
        at, kind = dice.randrange(len(lines)), dice.randrange(5)
        if kind == 0:
            lines[at] = b""
        elif kind == 1:
            lines.insert(at, dice.choice(lines))
        elif kind == 2:
            lines[at] = lines[at][:200] * dice.choice([2, 3, 1000])
        elif kind == 3:
            lines[at] = _NUMBER.sub(lambda _: dice.choice(_NUMBERS).encode(), lines[at], count=9)
        else:
            lines[at] += dice.choice(lines)
    return b"\n".join(lines)


def mutate_npy(data: bytes, dice: random.Random) -> bytes:
    """Numbers and words of the header replaced; the header's length stays right."""
    end = data.find(b"\n") + 1
    if not data.startswith(b"\x93NUMPY") or not end:
        return mutate_bytes(data, dice)
    header = data[10:end].decode("latin-1")
    kind = dice.randrange(3)
    if kind == 0:
        header = re.sub(r"\d+", lambda number: dice.choice([number.group(), *_NUMBERS]), header)
    elif kind == 1:
        header = header.replace(*dice.choice([("False", "True"), ("'", '"'), ("(", "(" * 500), ("|i1", "|O"), ("|i1", ">f4"),
                                              ("}", ""), (",", "\0"), ("shape", "shape\\"), ("|i1", "V10")]))  # fmt: skip
    else:
        at = dice.randrange(len(header))
        header = header[:at] + chr(dice.randrange(256)) + header[at + 1 :]
    return data[:8] + struct.pack("<H", len(header) & 0xFFFF) + header.encode("latin-1") + data[end:]


def mutate_npz(data: bytes, dice: random.Random) -> bytes:
    """A member mutated and packed again, so that its checksum is right; rarely, a decompression bomb."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = dice.choice(list(members))
    members[name] = dice.choice([mutate_npy, mutate_bytes])(members[name], dice)
    if dice.random() < 0.02:
        members[name] = _bomb(members[name])
    made = io.BytesIO()
    packing = dice.choice(
        [zipfile.ZIP_DEFLATED] * 20 + [zipfile.ZIP_STORED] * 10 + [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    )
    with zipfile.ZipFile(made, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return made.getvalue()


def _bomb(member: bytes) -> bytes:
    """A header that claims far more data than follows, and megabytes of zeros."""
    return re.sub(rb"\(\d+,", b"(99999999,", member[:200]) + bytes(8 << 20)


def mutate_png(data: bytes, dice: random.Random) -> bytes:
    """Chunks changed, exchanged or added, with right checksums. Pictures other than PNG are changed as bytes."""
    if not data.startswith(b"\x89PNG"):
        return mutate_bytes(data, dice)
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = struct.unpack_from(">I", data, at)[0]
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    k, kind = dice.randrange(len(chunks)), dice.randrange(4)
    name, content = chunks[k]
    if kind == 0:
        chunks[k] = name, mutate_bytes(content, dice)
    elif kind == 1:
        chunks[k] = dice.choice([b"tEXt", b"zTXt", b"iTXt", b"tRNS", b"PLTE", b"eXIf", b"acTL", b"fcTL"]), content
    elif kind == 2:
        packed = zlib.compress(bytes(3 << 20)) if dice.random() < 0.05 else zlib.compress(b"text")
        chunks.insert(k, (dice.choice([b"zTXt", b"iCCP"]), b"key\0\0" + packed))
    else:
        sizes = [dice.choice([0, 1, 16, 20_000, 1 << 30, 0xFFFFFFFF]) for _ in range(2)]
        chunks[0] = chunks[0][0], struct.pack(">II", *sizes) + chunks[0][1][8:]
    return data[:8] + b"".join(
        struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks
    )


def mutate_tables(data: bytes, dice: random.Random) -> bytes:
    """Fields of a model's tables changed, taken out or exchanged, in a file that is well-formed otherwise."""
    decoded, end = flatbuffer.decode_measured(data, root="Model", where="seed")
    root = copy.deepcopy(decoded)
    for _ in range(dice.choice([1, 1, 2, 4])):
        table, name = dice.choice([(t, f) for t in _tables(root, set()) for f in t.fields])
        value, kind = table.fields[name], dice.randrange(4)
        if kind == 0:
            del table.fields[name]
        elif isinstance(value, (bool, int, float)):
            table.fields[name] = type(value)(dice.choice([0, 1, -1, 2, 7, 127, value + 1, -value]))
        elif isinstance(value, list) and value:
            value[dice.randrange(len(value))] = dice.choice(value)
            table.fields[name] = value[: dice.randrange(len(value) + 1)] if kind == 1 else value
        elif hasattr(value, "dtype") and len(value):
            changed = value.copy()
            changed[dice.randrange(len(changed))] = dice.choice([0, 1, changed[0], dice.randrange(100)])
            table.fields[name] = changed[: dice.randrange(len(changed) + 1)] if kind == 1 else changed
    return _with_tail(root, data, end, dice)


def mutate_places(data: bytes, dice: random.Random) -> bytes:
    """Offsets and sizes of bytes that stand behind the flatbuffer; the rest of the file stays as it is."""
    decoded, end = flatbuffer.decode_measured(data, root="Model", where="seed")
    root = copy.deepcopy(decoded)
    placed = [
        (t, f) for t in _tables(root, set()) for f in t.fields if f.endswith(("offset", "size")) and t.type in _PLACED
    ]
    for _ in range(dice.choice([1, 1, 2, 4])):
        if placed:
            table, name = dice.choice(placed)
            value, other = table.fields[name], dice.choice(placed)
            near = [value + dice.choice([-16, -1, 1, 16]), other[0].fields[other[1]], dice.randrange(len(data) + 1)]
            table.fields[name] = dice.choice([*near, *_PLACES]) % (1 << 64)
    return _with_tail(root, data, end, dice)


def _with_tail(root: Table, data: bytes, end: int, dice: random.Random) -> bytes:
    """The file of these tables, with what stands behind the flatbuffer of the sound file, at the same places.

    end: of that flatbuffer.
    """
    try:
        made = flatbuffer.encode(root, identifier=IDENTIFIER, size_hint=len(data))
    except (TypeError, ValueError, struct.error, OverflowError):  # a number that its field cannot hold
        return mutate_bytes(data, dice)
    return made.ljust(end, b"\0") + data[max(end, len(made)) :] if len(data) - end >= _PADDING else made


def _tables(table: Table, seen: set[int]) -> Any:
    """The table and all tables below it. seen: ids of tables that came before; filled in."""
    if id(table) in seen:
        return
    seen.add(id(table))
    yield table
    for value in table.fields.values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, Table):
                yield from _tables(part, seen)
