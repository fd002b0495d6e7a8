"""The forward kernel."""

import triton
import triton.language as tl

from deformdetr.kernels._triton._parts import (
    SIZES,
    find_corner,
    find_position,
    first_start,
    is_visible,
    join,
    load_level,
    load_reference,
    load_row,
    load_xy,
    power,
    split_axis,
    sum_up_softmax,
    words_below,
)


@triton.jit(do_not_specialize=SIZES)
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
    CHECKED: tl.constexpr,
    PAIRED: tl.constexpr,
    WIDE: tl.constexpr,
    PREDICATED: tl.constexpr,
    POINTS: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Sum bilinear samples, weighted: `out[q] = sum_{l, p} A[q, l, p] bilinear(value_l, position[q, l, p])`.

    If there are COORDINATES (of reference points), `locations` are offsets and `weights` are logits. Channels are
    counted in words: pairs of 16 bits if PAIRED. CHUNKS of WIDTH words cover the D channels.
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
    in_chunk = words_below(WORDS, 0, WIDTH)
    in_next = words_below(WORDS, WIDTH, WIDTH)

    zero = tl.zeros((ROWS,), tl.float32)
    largest, share = zero, zero
    if FUSED:
        largest, share = sum_up_softmax(weights, row * (L * P), L * P, POINTS)
    even = tl.zeros((ROWS, WIDTH), tl.float32)
    odd, next_even, next_odd = even, even, even
    reference_x, reference_y, reference_w, reference_h = zero, zero, zero, zero
    next_start = first_start(CHECKED)
    for level in range(L):
        height, width, start, next_start = load_level(shapes, level, next_start, pixels, GROUPED, CHECKED)
        if FUSED:
            reference_x, reference_y, reference_w, reference_h = load_reference(
                references, query, level, reference_stride_query, reference_stride_level, COORDINATES
            )
        for point in tl.static_range(P):
            index = row * (L * P) + (level * P + point)
            x, y = load_xy(locations, index)
            weight = tl.load(weights + index).to(tl.float32)
            if FUSED:
                weight = power(weight, largest) * share
            u, v = find_position(
                x, y, reference_x, reference_y, reference_w, reference_h,
                width.to(tl.float32), height.to(tl.float32), COORDINATES, P,
            )  # fmt: skip
            inside_x, left, has_right, left_weight, right_weight = split_axis(u, width.to(tl.float32))
            inside_y, top, has_bottom, top_weight, bottom_weight = split_axis(v, height.to(tl.float32))
            inside = inside_x & inside_y
            pixel = start + top * width + left
            # Products, not `where`: they show the compiler that steps are multiples of a pixel, so it loads 16 bytes.
            step_x = has_right.to(tl.int32)
            step_y = has_bottom.to(tl.int32) * width
            for corner in tl.static_range(4):
                corner_weight = weight * (bottom_weight if corner // 2 else top_weight)
                corner_weight = corner_weight * (right_weight if corner % 2 else left_weight)
                corner_pixel = find_corner(pixel, step_x, step_y, corner % 2, corner // 2, WIDE)
                visible = is_visible(padding, corner_pixel, inside, PADDED)[:, None]
                pointer = value + (corner_pixel * PIXEL)[:, None] + word[None, :]
                low, high = load_row(pointer, visible & in_chunk, PREDICATED, PAIRED, DTYPE)
                even += low * corner_weight[:, None]
                if PAIRED:
                    odd += high * corner_weight[:, None]
                if CHUNKS == 2:
                    low, high = load_row(pointer + WIDTH, visible & in_next, PREDICATED, PAIRED, DTYPE)
                    next_even += low * corner_weight[:, None]
                    if PAIRED:
                        next_odd += high * corner_weight[:, None]

    pointer = out + (row * WORDS)[:, None] + word[None, :]
    if PAIRED:
        tl.store(pointer, join(even, odd, DTYPE), mask=exists[:, None] & in_chunk)
        if CHUNKS == 2:
            tl.store(pointer + WIDTH, join(next_even, next_odd, DTYPE), mask=exists[:, None] & in_next)
    else:
        tl.store(pointer, even.to(DTYPE), mask=exists[:, None] & in_chunk)
        if CHUNKS == 2:
            tl.store(pointer + WIDTH, next_even.to(DTYPE), mask=exists[:, None] & in_next)
