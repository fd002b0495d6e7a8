"""The kernels of multi-scale deformable attention for GPUs.

One program serves `ROWS` queries of one head of one image. A row of channels is read in pieces of 16 bytes by as many
lanes as it takes, all of which compute the same geometry; that is why the channels are read in `CHUNKS` passes where
instructions, and not latency, limit: half the lanes per row do half of the redundant arithmetic.

Letters: `u`, `v` are the position of a sample in pixels of its level, with pixel centres at integers. Every axis gives
up to two pixels: `first`, and the one after it where `has_second`.

Loops over levels are rolled (compiling all of them unrolled takes ten times as long and spills registers), loops over
points are not (their loads are in flight together). Sizes of images, queries and batches are arguments and never
compiled in.
"""

import triton
import triton.language as tl

# Arguments that change from image to image; a kernel compiled for one of their values serves all.
_SIZES = (
    "queries",
    "pixels",
    "first_image",
    "reference_stride_image",
    "reference_stride_query",
    "reference_stride_level",
)


@triton.jit
def _axis(position, size):
    """Split one coordinate into two pixels and their weights.

    Positions outside [-1, size), NaN included, are not inside; the rest is then meaningless but finite and in range.
    """
    inside = (position >= -1.0) & (position < size)
    position = tl.where(inside, position, 0.0)
    # Between -1 and 0 the pixel before the first lies outside, and the first one is the second of its cell.
    first = tl.maximum(tl.floor(position), 0.0)
    has_second = (position >= 0.0) & (position < size - 1.0)
    distance = position - first
    return inside, first.to(tl.int32), has_second, 1.0 - tl.abs(distance), tl.where(has_second, distance, 0.0)


@triton.jit
def _slopes(position, has_second):
    """Give the derivatives of the two weights of an axis: from the right, where they jump."""
    return tl.where(position < 0.0, 1.0, -1.0), tl.where(has_second, 1.0, 0.0)


@triton.jit
def _halves(bits, DTYPE: tl.constexpr):
    """Read two numbers of 16 bits from every 32 bits, the lower ones first."""
    if DTYPE == tl.bfloat16:
        return (bits << 16).to(tl.float32, bitcast=True), (bits & -65536).to(tl.float32, bitcast=True)
    else:
        low = (bits & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
        high = (bits >> 16).to(tl.int16).to(tl.float16, bitcast=True)
        return low.to(tl.float32), high.to(tl.float32)


@triton.jit
def _join(low, high, DTYPE: tl.constexpr):
    """Undo `_halves`, rounding to DTYPE."""
    low = low.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    high = high.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) << 16
    return low | high


@triton.jit
def _load_row(pointer, mask, PREDICATED: tl.constexpr, PAIRED: tl.constexpr, DTYPE: tl.constexpr):
    """Read channels in float32: even and odd ones apart where PAIRED, else all of them, twice.

    Without predicates (on AMD's GPUs masked loads take several times the registers), addresses must be in range.
    """
    if PREDICATED:
        bits = tl.load(pointer, mask=mask, other=0)
    else:
        bits = tl.load(pointer)
        bits = tl.where(mask, bits, 0)
    if PAIRED:
        return _halves(bits, DTYPE)
    else:
        return bits.to(tl.float32), bits.to(tl.float32)


@triton.jit
def _dot(even, odd, other_even, other_odd, PAIRED: tl.constexpr):
    products = even * other_even
    if PAIRED:
        products += odd * other_odd
    return tl.sum(products, axis=1)


@triton.jit
def _load_xy(pointer, index):
    """Read the pair at `index` of an array of pairs with one load."""
    DTYPE: tl.constexpr = pointer.dtype.element_ty
    if DTYPE == tl.float32:
        bits = tl.load(pointer.to(tl.pointer_type(tl.int64)) + index)
        return (bits & 0xFFFFFFFF).to(tl.int32).to(tl.float32, bitcast=True), (bits >> 32).to(tl.int32).to(
            tl.float32, bitcast=True
        )
    else:
        return _halves(tl.load(pointer.to(tl.pointer_type(tl.int32)) + index), DTYPE)


@triton.jit
def _level(shapes, level, start, GROUPED: tl.constexpr):
    """Read height, width and first pixel: a column of the table where levels repeat, else a running sum."""
    COLUMNS: tl.constexpr = 3 if GROUPED else 2
    height = tl.load(shapes + level * COLUMNS).to(tl.int32)
    width = tl.load(shapes + level * COLUMNS + 1).to(tl.int32)
    if GROUPED:
        start = tl.load(shapes + level * COLUMNS + 2).to(tl.int32)
    return height, width, start


@triton.jit
def _reference(references, query, level, stride_query, stride_level, COORDINATES: tl.constexpr):
    """Read reference points in float32: centres, and sizes where there are 4 COORDINATES."""
    pointer = references + query.to(tl.int64) * stride_query + level * stride_level
    x = tl.load(pointer).to(tl.float32)
    y = tl.load(pointer + 1).to(tl.float32)
    if COORDINATES == 4:
        return x, y, tl.load(pointer + 2).to(tl.float32), tl.load(pointer + 3).to(tl.float32)
    else:
        return x, y, x, y


@triton.jit
def _softmax(logits, first, TOTAL: tl.constexpr, COLUMNS: tl.constexpr):
    """Give the largest logit of every row, and the inverse of the sum of exponentials relative to it."""
    column = tl.arange(0, COLUMNS)
    logit = tl.load(logits + first[:, None] + column[None, :], mask=(column < TOTAL)[None, :], other=float("-inf"))
    largest = tl.max(logit.to(tl.float32), axis=1)
    return largest, 1.0 / tl.sum(_power(logit.to(tl.float32), largest[:, None]), axis=1)


@triton.jit
def _power(logit, largest):
    return tl.exp2((logit - largest) * 1.4426950408889634)


@triton.jit
def _position(
    x, y, reference_x, reference_y, reference_w, reference_h, width, height, COORDINATES: tl.constexpr, P: tl.constexpr
):
    """Turn a location (0 COORDINATES) or an offset from a reference into a position in pixels."""
    if COORDINATES == 0:
        return x * width - 0.5, y * height - 0.5
    elif COORDINATES == 2:
        return reference_x * width - 0.5 + x, reference_y * height - 0.5 + y
    else:
        scale_x = reference_w * width * (0.5 / P)
        scale_y = reference_h * height * (0.5 / P)
        return reference_x * width - 0.5 + x * scale_x, reference_y * height - 0.5 + y * scale_y


@triton.jit
def _visible(padding, pixel, mask, PADDED: tl.constexpr):
    """Tell where a pixel counts: where the mask says so, and the padding mask does not say otherwise."""
    if PADDED:
        return mask & (tl.load(padding + pixel) == 0)
    else:
        return mask


@triton.jit(do_not_specialize=_SIZES)
def ms_deform_attn_forward(
    value,
    shapes,
    references,
    locations,
    weights,
    padding,
    order,
    out,
    queries,
    pixels,
    first_image,
    reference_stride_image,
    reference_stride_query,
    reference_stride_level,
    M: tl.constexpr,
    D: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    COORDINATES: tl.constexpr,
    PADDED: tl.constexpr,
    ORDERED: tl.constexpr,
    GROUPED: tl.constexpr,
    PAIRED: tl.constexpr,
    WIDE: tl.constexpr,
    PREDICATED: tl.constexpr,
    POINTS: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Sum bilinear samples, weighted: `out[q] = sum_{l, p} A[q, l, p] bilinear(value_l, position[q, l, p])`.

    With COORDINATES (of references), `locations` are offsets and `weights` logits. Channels are counted in words: pairs
    of 16 bits where PAIRED. CHUNKS of WIDTH words cover the D channels.
    """
    FUSED: tl.constexpr = COORDINATES > 0
    DTYPE: tl.constexpr = value.dtype.element_ty
    WORDS: tl.constexpr = D // 2 if PAIRED else D
    PIXEL: tl.constexpr = M * WORDS
    if PAIRED:
        value = value.to(tl.pointer_type(tl.int32))
        out = out.to(tl.pointer_type(tl.int32))

    query = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    image = (first_image + tl.program_id(2)).to(tl.int64)
    exists = query < queries
    query = tl.minimum(query, queries - 1)
    if ORDERED:
        query = tl.load(order + query)
    if WIDE:
        query = query.to(tl.int64)

    value += image * pixels * PIXEL + head * WORDS
    locations += image * queries * (M * L * P * 2)
    weights += image * queries * (M * L * P)
    references += image * reference_stride_image
    padding += image * pixels
    out += image * queries * PIXEL
    row = query * M + head
    word = tl.arange(0, WIDTH)
    in_chunk = (word < WORDS)[None, :]
    in_next = (word + WIDTH < WORDS)[None, :]

    zero = tl.zeros((ROWS,), tl.float32)
    largest, share = zero, zero
    if FUSED:
        largest, share = _softmax(weights, row * (L * P), L * P, POINTS)
    even = tl.zeros((ROWS, WIDTH), tl.float32)
    odd, next_even, next_odd = even, even, even
    reference_x, reference_y, reference_w, reference_h = zero, zero, zero, zero
    start = 0
    for level in range(L):
        height, width, start = _level(shapes, level, start, GROUPED)
        if FUSED:
            reference_x, reference_y, reference_w, reference_h = _reference(
                references, query, level, reference_stride_query, reference_stride_level, COORDINATES
            )
        for point in tl.static_range(P):
            index = row * (L * P) + (level * P + point)
            x, y = _load_xy(locations, index)
            weight = tl.load(weights + index).to(tl.float32)
            if FUSED:
                weight = _power(weight, largest) * share
            u, v = _position(
                x, y, reference_x, reference_y, reference_w, reference_h,
                width.to(tl.float32), height.to(tl.float32), COORDINATES, P,
            )  # fmt: skip
            inside_x, left, has_right, left_weight, right_weight = _axis(u, width.to(tl.float32))
            inside_y, top, has_bottom, top_weight, bottom_weight = _axis(v, height.to(tl.float32))
            inside = inside_x & inside_y
            pixel = start + top * width + left
            # Products and not `where`: the compiler then knows that steps are multiples of a pixel, and loads 16 bytes.
            step_x = has_right.to(tl.int32)
            step_y = has_bottom.to(tl.int32) * width
            for corner in tl.static_range(4):
                corner_weight = weight * (bottom_weight if corner // 2 else top_weight)
                corner_weight = corner_weight * (right_weight if corner % 2 else left_weight)
                corner_pixel = pixel
                if corner % 2:
                    corner_pixel += step_x
                if corner // 2:
                    corner_pixel += step_y
                if WIDE:
                    corner_pixel = corner_pixel.to(tl.int64)
                visible = _visible(padding, corner_pixel, inside, PADDED)[:, None]
                pointer = value + (corner_pixel * PIXEL)[:, None] + word[None, :]
                low, high = _load_row(pointer, visible & in_chunk, PREDICATED, PAIRED, DTYPE)
                even += low * corner_weight[:, None]
                if PAIRED:
                    odd += high * corner_weight[:, None]
                if CHUNKS == 2:
                    low, high = _load_row(pointer + WIDTH, visible & in_next, PREDICATED, PAIRED, DTYPE)
                    next_even += low * corner_weight[:, None]
                    if PAIRED:
                        next_odd += high * corner_weight[:, None]
        start += height * width

    pointer = out + (row * WORDS)[:, None] + word[None, :]
    if PAIRED:
        tl.store(pointer, _join(even, odd, DTYPE), mask=exists[:, None] & in_chunk)
        if CHUNKS == 2:
            tl.store(pointer + WIDTH, _join(next_even, next_odd, DTYPE), mask=exists[:, None] & in_next)
    else:
        tl.store(pointer, even.to(DTYPE), mask=exists[:, None] & in_chunk)
        if CHUNKS == 2:
            tl.store(pointer + WIDTH, next_even.to(DTYPE), mask=exists[:, None] & in_next)


@triton.jit
def _add_row(pointer, even, odd, weight, mask, WORDS: tl.constexpr, PAIRED: tl.constexpr):
    """Add a weighted row to the gradient of the value: even channels, then odd ones, where PAIRED.

    No result and no order is asked for, so that the additions leave as vectors and nobody waits for them.
    """
    tl.atomic_add(pointer, even * weight[:, None], mask=mask, sem="relaxed")
    if PAIRED:
        tl.atomic_add(pointer + WORDS, odd * weight[:, None], mask=mask, sem="relaxed")


@triton.jit
def _subtract_weighted(
    grads, logits, first, amount, largest, share, exists, TOTAL: tl.constexpr, COLUMNS: tl.constexpr
):
    """Subtract from the gradient of every logit the amount of its row times its attention."""
    column = tl.arange(0, COLUMNS)
    mask = exists[:, None] & (column < TOTAL)[None, :]
    index = first[:, None] + column[None, :]
    logit = tl.load(logits + index, mask=mask, other=float("-inf")).to(tl.float32)
    weight = _power(logit, largest[:, None]) * share[:, None]
    # Other lanes have stored what this one reads.
    tl.debug_barrier()
    grad = tl.load(grads + index, mask=mask, other=0).to(tl.float32) - weight * amount[:, None]
    tl.store(grads + index, grad.to(grads.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def ms_deform_attn_backward(
    grad_output,
    output,
    value,
    shapes,
    references,
    locations,
    weights,
    padding,
    order,
    grad_value,
    grad_references,
    grad_locations,
    grad_weights,
    queries,
    pixels,
    first_image,
    reference_stride_image,
    reference_stride_query,
    reference_stride_level,
    M: tl.constexpr,
    D: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    COORDINATES: tl.constexpr,
    PADDED: tl.constexpr,
    ORDERED: tl.constexpr,
    GROUPED: tl.constexpr,
    PAIRED: tl.constexpr,
    WIDE: tl.constexpr,
    PREDICATED: tl.constexpr,
    POINTS: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr,
    NEEDS_VALUE: tl.constexpr,
    NEEDS_REFERENCES: tl.constexpr,
    NEEDS_LOCATIONS: tl.constexpr,
    NEEDS_WEIGHTS: tl.constexpr,
):
    """Differentiate the forward, whose positions and weights are computed again.

    With `g` the gradient of one output, `w_x w_y` a corner's weights and `d = g . v` for its pixel `v`:

    * value: `A w_x w_y g`, added atomically to the corner's pixel, in float32
    * position: `A sum d (w_x' w_y, w_x w_y')`; from there to locations, or to offsets and references
    * weight: `D = sum d w_x w_y`, and for its logit `A (D - mean)`; the mean of all `D` under the attention is
      `g . output`

    An output in half precision gives a mean that is a little off; it is corrected at the end, when all `D` are known.

    Gradients of references are written per head and level: (image, query, head, level, coordinate).
    """
    FUSED: tl.constexpr = COORDINATES > 0
    DTYPE: tl.constexpr = value.dtype.element_ty
    WORDS: tl.constexpr = D // 2 if PAIRED else D
    PIXEL: tl.constexpr = M * WORDS
    NEEDS_DOTS: tl.constexpr = NEEDS_LOCATIONS or NEEDS_WEIGHTS or NEEDS_REFERENCES
    if PAIRED:
        value = value.to(tl.pointer_type(tl.int32))
        grad_output = grad_output.to(tl.pointer_type(tl.int32))
        output = output.to(tl.pointer_type(tl.int32))

    query = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    image = (first_image + tl.program_id(2)).to(tl.int64)
    exists = query < queries
    query = tl.minimum(query, queries - 1)
    if ORDERED:
        query = tl.load(order + query)
    if WIDE:
        query = query.to(tl.int64)

    value += image * pixels * PIXEL + head * WORDS
    grad_value += image * pixels * (M * D) + head * D
    locations += image * queries * (M * L * P * 2)
    grad_locations += image * queries * (M * L * P * 2)
    weights += image * queries * (M * L * P)
    grad_weights += image * queries * (M * L * P)
    references += image * reference_stride_image
    grad_references += image * queries * (M * L * COORDINATES)
    padding += image * pixels
    grad_output += image * queries * PIXEL
    output += image * queries * PIXEL
    row = query * M + head
    word = tl.arange(0, WIDTH)
    in_chunk = (word < WORDS)[None, :]
    in_next = (word + WIDTH < WORDS)[None, :]
    grad_row = (row * WORDS)[:, None] + word[None, :]

    zero = tl.zeros((ROWS,), tl.float32)
    even, odd = _load_row(grad_output + grad_row, exists[:, None] & in_chunk, PREDICATED, PAIRED, DTYPE)
    next_even, next_odd = even, odd
    if CHUNKS == 2:
        next_even, next_odd = _load_row(
            grad_output + WIDTH + grad_row, exists[:, None] & in_next, PREDICATED, PAIRED, DTYPE
        )
    largest, share, mean, exact_mean = zero, zero, zero, zero
    if FUSED:
        largest, share = _softmax(weights, row * (L * P), L * P, POINTS)
        if NEEDS_WEIGHTS:
            # The mean of the samples' products with the gradient, under the attention, is that of their mean.
            low, high = _load_row(output + grad_row, exists[:, None] & in_chunk, PREDICATED, PAIRED, DTYPE)
            mean = _dot(low, high, even, odd, PAIRED)
            if CHUNKS == 2:
                low, high = _load_row(output + WIDTH + grad_row, exists[:, None] & in_next, PREDICATED, PAIRED, DTYPE)
                mean += _dot(low, high, next_even, next_odd, PAIRED)
    reference_x, reference_y, reference_w, reference_h = zero, zero, zero, zero
    start = 0
    for level in range(L):
        height, width, start = _level(shapes, level, start, GROUPED)
        if FUSED:
            reference_x, reference_y, reference_w, reference_h = _reference(
                references, query, level, reference_stride_query, reference_stride_level, COORDINATES
            )
        width_in_float, height_in_float = width.to(tl.float32), height.to(tl.float32)
        grad_x, grad_y, grad_w, grad_h = zero, zero, zero, zero
        for point in tl.static_range(P):
            index = row * (L * P) + (level * P + point)
            x, y = _load_xy(locations, index)
            weight = tl.load(weights + index).to(tl.float32)
            if FUSED:
                weight = _power(weight, largest) * share
            u, v = _position(
                x, y, reference_x, reference_y, reference_w, reference_h,
                width_in_float, height_in_float, COORDINATES, P,
            )  # fmt: skip
            inside_x, left, has_right, left_weight, right_weight = _axis(u, width_in_float)
            inside_y, top, has_bottom, top_weight, bottom_weight = _axis(v, height_in_float)
            inside = inside_x & inside_y & exists
            left_slope, right_slope = _slopes(u, has_right)
            top_slope, bottom_slope = _slopes(v, has_bottom)
            pixel = start + top * width + left
            step_x = has_right.to(tl.int32)
            step_y = has_bottom.to(tl.int32) * width
            by_weight, by_u, by_v = zero, zero, zero
            for corner in tl.static_range(4):
                weight_x = right_weight if corner % 2 else left_weight
                weight_y = bottom_weight if corner // 2 else top_weight
                slope_x = right_slope if corner % 2 else left_slope
                slope_y = bottom_slope if corner // 2 else top_slope
                corner_pixel = pixel
                if corner % 2:
                    corner_pixel += step_x
                if corner // 2:
                    corner_pixel += step_y
                if WIDE:
                    corner_pixel = corner_pixel.to(tl.int64)
                visible = _visible(padding, corner_pixel, inside, PADDED)
                if NEEDS_DOTS:
                    pointer = value + (corner_pixel * PIXEL)[:, None] + word[None, :]
                    low, high = _load_row(pointer, visible[:, None] & in_chunk, PREDICATED, PAIRED, DTYPE)
                    dot = _dot(low, high, even, odd, PAIRED)
                    if CHUNKS == 2:
                        low, high = _load_row(pointer + WIDTH, visible[:, None] & in_next, PREDICATED, PAIRED, DTYPE)
                        dot += _dot(low, high, next_even, next_odd, PAIRED)
                    by_weight += weight_x * weight_y * dot
                    by_u += slope_x * weight_y * dot
                    by_v += weight_x * slope_y * dot
                if NEEDS_VALUE:
                    pointer = grad_value + (corner_pixel * (M * D))[:, None] + word[None, :]
                    corner_weight = weight * weight_x * weight_y
                    adds = (visible & (corner_weight != 0))[:, None]
                    _add_row(pointer, even, odd, corner_weight, adds & in_chunk, WORDS, PAIRED)
                    if CHUNKS == 2:
                        _add_row(pointer + WIDTH, next_even, next_odd, corner_weight, adds & in_next, WORDS, PAIRED)

            if NEEDS_WEIGHTS:
                if FUSED:
                    exact_mean += weight * by_weight
                    by_weight = (by_weight - mean) * weight
                tl.store(grad_weights + index, by_weight.to(grad_weights.dtype.element_ty), mask=exists)
            if NEEDS_LOCATIONS or NEEDS_REFERENCES:
                by_u *= weight
                by_v *= weight
                if COORDINATES == 4:
                    grad_w += by_u * x * width_in_float * (0.5 / P)
                    grad_h += by_v * y * height_in_float * (0.5 / P)
                grad_x += by_u
                grad_y += by_v
            if NEEDS_LOCATIONS:
                if COORDINATES == 0:
                    by_u, by_v = by_u * width_in_float, by_v * height_in_float
                elif COORDINATES == 4:
                    by_u *= reference_w * width_in_float * (0.5 / P)
                    by_v *= reference_h * height_in_float * (0.5 / P)
                tl.store(grad_locations + index * 2, by_u.to(grad_locations.dtype.element_ty), mask=exists)
                tl.store(grad_locations + index * 2 + 1, by_v.to(grad_locations.dtype.element_ty), mask=exists)
        if NEEDS_REFERENCES:
            pointer = grad_references + (row * L + level) * COORDINATES
            tl.store(pointer, grad_x * width_in_float, mask=exists)
            tl.store(pointer + 1, grad_y * height_in_float, mask=exists)
            if COORDINATES == 4:
                tl.store(pointer + 2, grad_w, mask=exists)
                tl.store(pointer + 3, grad_h, mask=exists)
        start += height * width
    if FUSED and NEEDS_WEIGHTS and DTYPE != tl.float32:
        _subtract_weighted(
            grad_weights, weights, row * (L * P), exact_mean - mean, largest, share, exists, L * P, POINTS
        )


@triton.jit(do_not_specialize=("pixels", "first_image"))
def ms_deform_attn_backward_of_value(
    grad_output,
    shapes,
    locations,
    weights,
    order,
    first_of_cell,
    grad_value,
    pixels,
    first_image,
    M: tl.constexpr,
    D: tl.constexpr,
    L: tl.constexpr,
    P: tl.constexpr,
    GROUPED: tl.constexpr,
    SAMPLES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Sum up the gradient of one head's pixel by itself, in a fixed order.

    A pixel belongs to the four cells between it and its neighbours. `order` numbers all samples, sorted by cell, and
    `first_of_cell` says where each cell's begin; cells of one row follow each other, so that two stretches of `order`
    hold all samples that touch the pixel. Which cell has which number is said in `sort_by_cell`.
    """
    pixel = tl.program_id(0)
    head = tl.program_id(1)
    image = (first_image + tl.program_id(2)).to(tl.int64)
    height, width, level_start = 1, 1, 0
    start = 0
    for level in range(L):
        level_height, level_width, start = _level(shapes, level, start, GROUPED)
        if (pixel >= start) & (pixel < start + level_height * level_width):
            height, width, level_start = level_height, level_width, start
        start += level_height * level_width
    column = (pixel - level_start) % width
    line = (pixel - level_start) // width

    channel = tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), tl.float32)
    cell = ((image * M + head) * pixels + level_start) * 4 + line * (width + 1) + column
    for below in range(2):
        first = tl.load(first_of_cell + cell + below * (width + 1))
        end = tl.load(first_of_cell + cell + below * (width + 1) + 2)
        for begin in range(first, end, SAMPLES):
            position = begin + tl.arange(0, SAMPLES)
            counts = position < end
            sample = tl.load(order + position, mask=counts, other=0)
            x = tl.load(locations + sample * 2, mask=counts, other=0).to(tl.float32) * width - 0.5
            y = tl.load(locations + sample * 2 + 1, mask=counts, other=0).to(tl.float32) * height - 0.5
            weight = tl.load(weights + sample, mask=counts, other=0).to(tl.float32)
            weight *= tl.maximum(1.0 - tl.abs(x - column), 0.0) * tl.maximum(1.0 - tl.abs(y - line), 0.0)
            pointer = grad_output + (sample // (L * P) * D)[:, None] + channel[None, :]
            grad = tl.load(pointer, mask=counts[:, None] & (channel < D)[None, :], other=0).to(tl.float32)
            total += tl.sum(grad * weight[:, None], axis=0)
    pointer = grad_value + ((image * pixels + pixel) * M + head) * D + channel
    tl.store(pointer, total.to(grad_value.dtype.element_ty), mask=channel < D)
