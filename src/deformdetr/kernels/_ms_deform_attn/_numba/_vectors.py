"""What the CPU kernels do with memory: numbers, and vectors of channels, at addresses.

Vectors are LLVM's own: it makes of them what the processor has, whatever their length, and reads a whole one before
anything is written. Loops over arrays would be several times as slow: LLVM unrolls one whose length it knows before it
looks for vectors, and then finds none, since the arrays might overlap.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_FLOAT, _BITS, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
# Channels in one vector: longer ones take long to compile.
MOST_CHANNELS = 64
FLOAT_BYTES = 4
_FUSED, _IN_ANY_ORDER = ("contract",), ("contract", "reassoc")


class Vectors(NamedTuple):
    """Operations on vectors of so many channels, for use in kernels.

    Attributes:
        clear: `clear(target)` sets a float32 vector to zero.
        add_float: `add_float(target, weight, source)` adds `weight` times a float32 vector to a float32 vector.
        add_stored: The same with a source as `value` is stored.
        dot: `dot(floats, stored)` gives the inner product of a float32 vector and one as `value` is stored.
    """

    clear: Any
    add_float: Any
    add_stored: Any
    dot: Any


@intrinsic
def read_float(typing: Any, address: types.Type) -> tuple[Any, Callable[..., Any]]:
    """Read a float32."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.load(builder.inttoptr(arguments[0], _FLOAT.as_pointer()), align=FLOAT_BYTES)

    return types.float32(types.int64), generate


@intrinsic
def write_float(typing: Any, address: types.Type, number: types.Type) -> tuple[Any, Callable[..., Any]]:
    """Write a float32."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        builder.store(arguments[1], builder.inttoptr(arguments[0], _FLOAT.as_pointer()), align=FLOAT_BYTES)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate


@intrinsic
def read_long(typing: Any, address: types.Type) -> tuple[Any, Callable[..., Any]]:
    """Read an int64."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.load(builder.inttoptr(arguments[0], _LONG.as_pointer()))

    return types.int64(types.int64), generate


@intrinsic
def take_number(typing: Any, address: types.Type) -> tuple[Any, Callable[..., Any]]:
    """Read an int64 and increase it by one, as if no other thread did so at once."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        counter = builder.inttoptr(arguments[0], _LONG.as_pointer())
        return builder.atomic_rmw("add", counter, _LONG(1), "monotonic")

    return types.int64(types.int64), generate


def make_vectors(channels: int, dtype: torch.dtype) -> Vectors:
    """Make the operations for a value of that dtype: float32, bfloat16 or float16."""

    @intrinsic
    def clear(typing: Any, target: types.Type) -> tuple[Any, Callable[..., Any]]:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
            for start, count in _pieces(channels):
                zeros = ir.VectorType(_FLOAT, count)([0.0] * count)
                _store(builder, zeros, arguments[0], start)
            return context.get_dummy_value()

        return types.void(types.int64), generate

    @intrinsic
    def dot(typing: Any, floats: types.Type, stored: types.Type) -> tuple[Any, Callable[..., Any]]:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
            total = _FLOAT(0.0)
            for start, count in _pieces(channels):
                one = _load(builder, arguments[0], start, count, torch.float32)
                other = _load(builder, arguments[1], start, count, dtype)
                products = builder.fmul(one, other, flags=_IN_ANY_ORDER)
                name = f"llvm.vector.reduce.fadd.v{count}f32"
                add_up = builder.module.globals.get(name) or ir.Function(
                    builder.module, ir.FunctionType(_FLOAT, [_FLOAT, products.type]), name
                )
                total = builder.call(add_up, [total, products], fastmath=_IN_ANY_ORDER)
            return total

        return types.float32(types.int64, types.int64), generate

    return Vectors(clear, _make_add(channels, torch.float32), _make_add(channels, dtype), dot)


def _make_add(channels: int, dtype: torch.dtype) -> Any:
    @intrinsic
    def add(typing: Any, target: types.Type, weight: types.Type, source: types.Type) -> tuple[Any, Callable[..., Any]]:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
            target, weight, source = arguments
            for start, count in _pieces(channels):
                weights = _repeat(builder, weight, count)
                product = builder.fmul(weights, _load(builder, source, start, count, dtype), flags=_FUSED)
                total = builder.fadd(_load(builder, target, start, count, torch.float32), product, flags=_FUSED)
                _store(builder, total, target, start)
            return context.get_dummy_value()

        return types.void(types.int64, types.float32, types.int64), generate

    return add


def _pieces(channels: int) -> Iterator[tuple[int, int]]:
    """Cut into parts of one vector: where each begins, and how many channels it has."""
    for start in range(0, channels, MOST_CHANNELS):
        yield start, min(MOST_CHANNELS, channels - start)


def _load(builder: ir.IRBuilder, address: ir.Value, start: int, count: int, dtype: torch.dtype) -> ir.Value:
    """Read some channels as float32."""
    element = _FLOAT if dtype == torch.float32 else ir.IntType(16)
    pointer = _point(builder, address, start * dtype.itemsize, ir.VectorType(element, count))
    stored = builder.load(pointer, align=dtype.itemsize)
    if dtype == torch.float32:
        return stored
    bits, floats = ir.VectorType(_BITS, count), ir.VectorType(_FLOAT, count)
    wide = builder.zext(stored, bits)
    if dtype == torch.bfloat16:
        return builder.bitcast(builder.shl(wide, bits([16] * count)), floats)
    # By integers, because not every processor has an instruction. As part of a float32, the exponent is 112 too low.
    magnitude = builder.shl(builder.and_(wide, bits([0x7FFF] * count)), bits([13] * count))
    finite = builder.fmul(builder.bitcast(magnitude, floats), floats([2.0**112] * count))
    is_finite = builder.icmp_unsigned("<", magnitude, bits([0x7C00 << 13] * count))
    other = builder.bitcast(builder.or_(magnitude, bits([0x7F800000] * count)), floats)
    sign = builder.shl(builder.and_(wide, bits([0x8000] * count)), bits([16] * count))
    unsigned = builder.bitcast(builder.select(is_finite, finite, other), bits)
    return builder.bitcast(builder.or_(unsigned, sign), floats)


def _store(builder: ir.IRBuilder, vector: ir.Value, address: ir.Value, start: int) -> None:
    builder.store(vector, _point(builder, address, start * FLOAT_BYTES, vector.type), align=FLOAT_BYTES)


def _point(builder: ir.IRBuilder, address: ir.Value, offset: int, kind: ir.Type) -> ir.Value:
    return builder.inttoptr(builder.add(address, _LONG(offset)), kind.as_pointer())


def _repeat(builder: ir.IRBuilder, number: ir.Value, count: int) -> ir.Value:
    """Make a vector of one number."""
    nothing = ir.Constant(ir.VectorType(_FLOAT, count), ir.Undefined)
    first = builder.insert_element(nothing, number, _BITS(0))
    return builder.shuffle_vector(first, nothing, ir.VectorType(_BITS, count)([0] * count))
