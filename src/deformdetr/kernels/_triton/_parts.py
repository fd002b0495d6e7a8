"""Functions that the forward and backward kernels share: geometry, attention, and rows of channels."""

import triton
import triton.language as tl

from deformdetr.kernels import _levels

MOST_PIXELS_IN_LINE = tl.constexpr(_levels.MOST_PIXELS_IN_LINE)

# Arguments that change from image to image: kernels are not specialized on their values.
SIZES = (
    "queries",
    "pixels",
    "first_image",
    "reference_stride_image",
    "reference_stride_query",
    "reference_stride_level",
)


@triton.jit
def split_axis(position, size):
    """Split one coordinate into two pixels and their weights.

    Positions outside [-1, size), NaN included, are not inside. Their pixels and weights are meaningless, but finite and
    in range.
    """
    inside = (position >= -1.0) & (position < size)
    position = tl.where(inside, position, 0.0)
    # Between -1 and 0 the pixel before the position lies outside, and only the first pixel counts.
    first = tl.maximum(tl.floor(position), 0.0)
    has_second = (position >= 0.0) & (position < size - 1.0)
    distance = position - first
    return inside, first.to(tl.int32), has_second, 1.0 - tl.abs(distance), tl.where(has_second, distance, 0.0)


@triton.jit
def slopes(position, has_second):
    """Return the derivatives of the two weights of an axis; at jumps, the derivatives from the right."""
    return tl.where(position < 0.0, 1.0, -1.0), tl.where(has_second, 1.0, 0.0)


@triton.jit
def halves(bits, DTYPE: tl.constexpr):
    """Return the low and the high 16 bits of every word as float32."""
    if DTYPE == tl.bfloat16:
        return (bits << 16).to(tl.float32, bitcast=True), (bits & -65536).to(tl.float32, bitcast=True)
    else:
        low = bits.to(tl.int16).to(tl.float16, bitcast=True)
        high = (bits >> 16).to(tl.int16).to(tl.float16, bitcast=True)
        return low.to(tl.float32), high.to(tl.float32)


@triton.jit
def join(low, high, DTYPE: tl.constexpr):
    """Return words of two numbers each, rounded to DTYPE: the inverse of `halves`."""
    low = low.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    high = high.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) << 16
    return low | high


@triton.jit
def words_below(WORDS: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """Return which of WIDTH words, from the FIRST one on, are below WORDS, as one row.

    If all are, it is a constant that vanishes from masks, which makes compiling faster.
    """
    if FIRST + WIDTH <= WORDS:
        return tl.full((1, WIDTH), True, tl.int1)
    else:
        return (tl.arange(0, WIDTH) + FIRST < WORDS)[None, :]


@triton.jit
def load_row(pointer, mask, PREDICATED: tl.constexpr, PAIRED: tl.constexpr, DTYPE: tl.constexpr):
    """Load channels as float32: even and odd ones separately if PAIRED, else all of them, twice.

    If not PREDICATED, addresses must be in range: masked loads on AMD's GPUs take several times the registers.
    """
    if PREDICATED:
        bits = tl.load(pointer, mask=mask, other=0)
    else:
        bits = tl.load(pointer)
        bits = tl.where(mask, bits, 0)
    if PAIRED:
        return halves(bits, DTYPE)
    else:
        return bits.to(tl.float32), bits.to(tl.float32)


@triton.jit
def multiply_rows(even, odd, other_even, other_odd, PAIRED: tl.constexpr):
    """Return products whose sum is the inner product of two rows."""
    products = even * other_even
    if PAIRED:
        products += odd * other_odd
    return products


@triton.jit
def load_xy(pointer, index):
    """Load the pair at `index` of an array of pairs in one instruction."""
    DTYPE: tl.constexpr = pointer.dtype.element_ty
    if DTYPE == tl.float32:
        bits = tl.load(pointer.to(tl.pointer_type(tl.int64)) + index)
        return (bits & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True), (bits >> 32).to(tl.int32).to(
            tl.float32, bitcast=True
        )
    else:
        return halves(tl.load(pointer.to(tl.pointer_type(tl.int32)) + index), DTYPE)


@triton.jit
def load_level(shapes, level, start, pixels, GROUPED: tl.constexpr, CHECKED: tl.constexpr):
    """Load height, width and first pixel of a level, and the first pixel of the next level.

    If CHECKED, levels that are empty or do not fit into the value, as in `fit_levels`, have height and width -1: no
    position is inside. If GROUPED, the table has a column of first pixels.
    """
    COLUMNS: tl.constexpr = 3 if GROUPED else 2
    height = tl.load(shapes + level * COLUMNS).to(tl.int64)
    width = tl.load(shapes + level * COLUMNS + 1).to(tl.int64)
    # True if both are from 1 to the maximum, a power of two: one less is below it, and not negative.
    is_level = ((height - 1) | (width - 1)).to(tl.uint64) < MOST_PIXELS_IN_LINE
    height, width = height.to(tl.int32), width.to(tl.int32)
    if GROUPED:
        start = tl.load(shapes + level * COLUMNS + 2).to(start.dtype)
    if CHECKED:
        # A product of 32 bits each is one instruction.
        area = tl.where(is_level, height.to(tl.int64) * width.to(tl.int64), 0)
        fits = is_level & (start <= pixels - area)
        return (
            tl.where(fits, height, -1),
            tl.where(fits, width, -1),
            tl.where(fits, start.to(tl.int32), 0),
            start + area,
        )
    else:
        return height, width, start, start + height * width


@triton.jit
def first_start(CHECKED: tl.constexpr):
    """Return the first pixel of the first level, in 64 bits if CHECKED, because sums of unknown sizes can be large."""
    return tl.zeros((), tl.int64 if CHECKED else tl.int32)


@triton.jit
def load_reference(references, query, level, stride_query, stride_level, COORDINATES: tl.constexpr):
    """Load reference points as float32: centers, and sizes if there are 4 COORDINATES."""
    pointer = references + query.to(tl.int64) * stride_query + level * stride_level
    x = tl.load(pointer).to(tl.float32)
    y = tl.load(pointer + 1).to(tl.float32)
    if COORDINATES == 4:
        return x, y, tl.load(pointer + 2).to(tl.float32), tl.load(pointer + 3).to(tl.float32)
    else:
        return x, y, x, y


@triton.jit
def sum_up_softmax(logits, first, TOTAL: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the largest logit of every row, and the inverse of the sum of exponentials relative to it."""
    column = tl.arange(0, COLUMNS)
    logit = tl.load(logits + first[:, None] + column[None, :], mask=(column < TOTAL)[None, :], other=float("-inf"))
    largest = tl.max(logit.to(tl.float32), axis=1)
    return largest, 1.0 / tl.sum(power(logit.to(tl.float32), largest[:, None]), axis=1)


@triton.jit
def power(logit, largest):
    return tl.exp2((logit - largest) * 1.4426950408889634)


@triton.jit
def find_position(
    x, y, reference_x, reference_y, reference_w, reference_h, width, height, COORDINATES: tl.constexpr, P: tl.constexpr
):
    """Convert a location (0 COORDINATES) or an offset from a reference point to a position in pixels."""
    if COORDINATES == 0:
        return x * width - 0.5, y * height - 0.5
    elif COORDINATES == 2:
        return reference_x * width - 0.5 + x, reference_y * height - 0.5 + y
    else:
        scale_x = reference_w * width * (0.5 / P)
        scale_y = reference_h * height * (0.5 / P)
        return reference_x * width - 0.5 + x * scale_x, reference_y * height - 0.5 + y * scale_y


@triton.jit
def find_corner(pixel, step_x, step_y, right: tl.constexpr, below: tl.constexpr, WIDE: tl.constexpr):
    """Return one of the four pixels around a position, in 64 bits if WIDE."""
    if right:
        pixel += step_x
    if below:
        pixel += step_y
    return pixel.to(tl.int64) if WIDE else pixel


@triton.jit
def is_visible(padding, pixel, mask, PADDED: tl.constexpr):
    """Return where a pixel counts: inside the level, and not padded."""
    if PADDED:
        return mask & (tl.load(padding + pixel) == 0)
    else:
        return mask
