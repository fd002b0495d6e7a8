"""Memory access of the CPU kernels: numbers, and vectors of channels, at addresses.

Vectors are LLVM's own. LLVM maps them to the vector registers of the processor, whatever their length, and reads a
whole vector before it writes. Loops over arrays are several times as slow: LLVM unrolls a loop of known length before
it looks for vectors, and then finds none, because the arrays might overlap.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

_FLOAT, _BITS, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
# Channels in one chunk of a vector: longer chunks take long to compile.
MOST_CHANNELS = 64
FLOAT_BYTES = 4
_FUSED, _IN_ANY_ORDER = ("contract",), ("contract", "reassoc")


class _Vector(types.Type):
    """The type of float32 vectors, split into power-of-two chunks, because LLVM scalarizes other lengths.

    It includes the dtype of `value`, so that a kernel names both once, where it makes its first vector.
    """

    def __init__(self, channels: int, dtype: torch.dtype) -> None:
        rest = channels % MOST_CHANNELS
        powers = [1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1]
        self.counts = (MOST_CHANNELS,) * (channels // MOST_CHANNELS) + tuple(powers)
        self.channels, self.dtype = channels, dtype
        super().__init__(name=f"Vector({channels}, {dtype})")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _Vector) -> None:
        pieces = [ir.VectorType(_FLOAT, count) for count in kind.counts]
        super().__init__(manager, kind, ir.LiteralStructType(pieces))  # type: ignore[no-untyped-call]


@intrinsic
def read_float32(typing: Any, address: types.Type) -> tuple[Any, Callable[..., Any]]:
    """Read a float32."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.load(builder.inttoptr(arguments[0], _FLOAT.as_pointer()), align=FLOAT_BYTES)

    return types.float32(types.int64), generate


@intrinsic
def write_float32(typing: Any, address: types.Type, number: types.Type) -> tuple[Any, Callable[..., Any]]:
    """Write a float32."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        builder.store(arguments[1], builder.inttoptr(arguments[0], _FLOAT.as_pointer()), align=FLOAT_BYTES)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate


@intrinsic
def read_int64(typing: Any, address: types.Type) -> tuple[Any, Callable[..., Any]]:
    """Read an int64."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.load(builder.inttoptr(arguments[0], _LONG.as_pointer()))

    return types.int64(types.int64), generate


@intrinsic
def fetch_and_increment(typing: Any, address: types.Type) -> tuple[Any, Callable[..., Any]]:
    """Read an int64 and increment it in memory, atomically."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        counter = builder.inttoptr(arguments[0], _LONG.as_pointer())
        return builder.atomic_rmw("add", counter, _LONG(1), "monotonic")

    return types.int64(types.int64), generate


@intrinsic(prefer_literal=True)
def zeros(typing: Any, channels: Any, dtype: Any) -> tuple[Any, Callable[..., Any]]:
    """Return a vector of zeros, for a `value` of the dtype of that name: float32, bfloat16 or float16."""
    kind = _Vector(channels.literal_value, getattr(torch, dtype.literal_value))

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _join(builder, [ir.VectorType(_FLOAT, count)([0.0] * count) for count in kind.counts])

    return kind(channels, dtype), generate


@intrinsic
def float_bytes(typing: Any, vector: _Vector) -> tuple[Any, Callable[..., Any]]:
    """Return the bytes of a vector stored as float32."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _LONG(vector.channels * FLOAT_BYTES)

    return types.int64(vector), generate


@intrinsic
def stored_bytes(typing: Any, vector: _Vector) -> tuple[Any, Callable[..., Any]]:
    """Return the bytes of a vector stored in the dtype of `value`."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _LONG(vector.channels * vector.dtype.itemsize)

    return types.int64(vector), generate


@intrinsic
def load(typing: Any, source: types.Type, like: _Vector) -> tuple[Any, Callable[..., Any]]:
    """Read a float32 vector of the type of `like`."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _join(builder, _load(builder, arguments[0], like, torch.float32))

    return like(types.int64, like), generate


@intrinsic
def store(typing: Any, target: types.Type, vector: _Vector) -> tuple[Any, Callable[..., Any]]:
    """Write a vector as float32."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        _store(builder, arguments[0], _split(builder, arguments[1]))
        return context.get_dummy_value()

    return types.void(types.int64, vector), generate


@intrinsic
def add(typing: Any, vector: _Vector, other: _Vector) -> tuple[Any, Callable[..., Any]]:
    """Add two vectors."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        pairs = zip(*(_split(builder, argument) for argument in arguments), strict=True)
        return _join(builder, [builder.fadd(*pair) for pair in pairs])

    return vector(vector, vector), generate


@intrinsic
def add_to(typing: Any, target: types.Type, weight: types.Type, vector: _Vector) -> tuple[Any, Callable[..., Any]]:
    """Add `weight` times a vector to a float32 vector in memory."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        target, weight, pieces = arguments[0], arguments[1], _split(builder, arguments[2])
        totals = _load(builder, target, vector, torch.float32)
        _store(builder, target, _add_product(builder, totals, weight, pieces))
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, vector), generate


@intrinsic
def add_stored(typing: Any, vector: _Vector, weight: types.Type, source: types.Type) -> tuple[Any, Callable[..., Any]]:
    """Return a vector plus `weight` times a stored one, in the dtype of `value`."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        pieces, weight, source = _split(builder, arguments[0]), arguments[1], arguments[2]
        stored = _load(builder, source, vector, vector.dtype)
        return _join(builder, _add_product(builder, pieces, weight, stored))

    return vector(vector, types.float32, types.int64), generate


@intrinsic
def dot_stored(typing: Any, vector: _Vector, source: types.Type) -> tuple[Any, Callable[..., Any]]:
    """Return the inner product of a vector and a stored one, in the dtype of `value`."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        total = _FLOAT(0.0)
        stored = _load(builder, arguments[1], vector, vector.dtype)
        for one, other in zip(_split(builder, arguments[0]), stored, strict=True):
            products = builder.fmul(one, other, flags=_IN_ANY_ORDER)
            name = f"llvm.vector.reduce.fadd.v{products.type.count}f32"
            add_up = builder.module.globals.get(name) or ir.Function(
                builder.module, ir.FunctionType(_FLOAT, [_FLOAT, products.type]), name
            )
            total = builder.call(add_up, [total, products], fastmath=_IN_ANY_ORDER)
        return total

    return types.float32(vector, types.int64), generate


def _join(builder: ir.IRBuilder, pieces: Sequence[ir.Value]) -> ir.Value:
    vector = ir.Constant(ir.LiteralStructType([piece.type for piece in pieces]), ir.Undefined)
    for index, piece in enumerate(pieces):
        vector = builder.insert_value(vector, piece, index)
    return vector


def _split(builder: ir.IRBuilder, vector: ir.Value) -> list[ir.Value]:
    return [builder.extract_value(vector, index) for index in range(len(vector.type))]


def _add_product(
    builder: ir.IRBuilder, totals: Sequence[ir.Value], weight: ir.Value, pieces: Sequence[ir.Value]
) -> list[ir.Value]:
    return [
        builder.fadd(total, builder.fmul(_repeat(builder, weight, piece.type.count), piece, flags=_FUSED), flags=_FUSED)
        for total, piece in zip(totals, pieces, strict=True)
    ]


def _load(builder: ir.IRBuilder, address: ir.Value, kind: _Vector, dtype: torch.dtype) -> list[ir.Value]:
    """Read a vector as float32."""
    element = _FLOAT if dtype == torch.float32 else ir.IntType(16)
    pieces = []
    for count in kind.counts:
        pointer = builder.inttoptr(address, ir.VectorType(element, count).as_pointer())
        stored = builder.load(pointer, align=dtype.itemsize)
        pieces.append(stored if dtype == torch.float32 else _widen(builder, stored, dtype))
        address = builder.add(address, _LONG(count * dtype.itemsize))
    return pieces


def _store(builder: ir.IRBuilder, address: ir.Value, pieces: Sequence[ir.Value]) -> None:
    for piece in pieces:
        builder.store(piece, builder.inttoptr(address, piece.type.as_pointer()), align=FLOAT_BYTES)
        address = builder.add(address, _LONG(piece.type.count * FLOAT_BYTES))


def _widen(builder: ir.IRBuilder, stored: ir.Value, dtype: torch.dtype) -> ir.Value:
    """Convert bfloat16 or float16 to float32."""
    count = stored.type.count
    bits, floats = ir.VectorType(_BITS, count), ir.VectorType(_FLOAT, count)
    wide = builder.zext(stored, bits)
    if dtype == torch.bfloat16:
        return builder.bitcast(builder.shl(wide, bits([16] * count)), floats)
    # With integers, because not every processor has an instruction. Read as float32, the exponent is 112 too low.
    magnitude = builder.shl(builder.and_(wide, bits([0x7FFF] * count)), bits([13] * count))
    finite = builder.fmul(builder.bitcast(magnitude, floats), floats([2.0**112] * count))
    is_finite = builder.icmp_unsigned("<", magnitude, bits([0x7C00 << 13] * count))
    other = builder.bitcast(builder.or_(magnitude, bits([0x7F800000] * count)), floats)
    sign = builder.shl(builder.and_(wide, bits([0x8000] * count)), bits([16] * count))
    unsigned = builder.bitcast(builder.select(is_finite, finite, other), bits)
    return builder.bitcast(builder.or_(unsigned, sign), floats)


def _repeat(builder: ir.IRBuilder, number: ir.Value, count: int) -> ir.Value:
    """Return a vector that repeats one number."""
    nothing = ir.Constant(ir.VectorType(_FLOAT, count), ir.Undefined)
    first = builder.insert_element(nothing, number, _BITS(0))
    return builder.shuffle_vector(first, nothing, ir.VectorType(_BITS, count)([0] * count))
