"""The backward kernels: one for all gradients, and one for the gradient of the value in a fixed order."""

import triton
import triton.language as tl

from deformdetr.kernels._triton._parts import (
    SIZES,
    find_corner,
    find_position,
    first_start,
    is_visible,
    load_level,
    load_reference,
    load_row,
    load_xy,
    multiply_rows,
    power,
    slopes,
    split_axis,
    sum_up_softmax,
    words_below,
)


@triton.jit
def _add_row(
    grads, offset, even, odd, weight, adds, FIRST: tl.constexpr, WIDTH: tl.constexpr, WORDS: tl.constexpr,
    PAIRED: tl.constexpr,
):  # fmt: skip
    """Add WIDTH words of a weighted row, from the FIRST one on, to the gradient of the value at `offset`.

    Sums in float32 have even channels before odd ones if PAIRED; sums in half precision have the channels in order.

    Relaxed atomics whose result is unused: they compile to vector reductions that the warp does not wait for.
    """
    if grads.dtype.element_ty == tl.float32:
        word = tl.arange(0, WIDTH)
        pointer = grads + offset[:, None] + word[None, :] + FIRST
        mask = adds[:, None] & words_below(WORDS, FIRST, WIDTH)
        tl.atomic_add(pointer, even * weight[:, None], mask=mask, sem="relaxed")
        if PAIRED:
            tl.atomic_add(pointer + WORDS, odd * weight[:, None], mask=mask, sem="relaxed")
    else:
        channel = tl.arange(0, 2 * WIDTH)
        pointer = grads + offset[:, None] + channel[None, :] + 2 * FIRST
        mask = adds[:, None] & words_below(2 * WORDS, 2 * FIRST, 2 * WIDTH)
        row = tl.join(even * weight[:, None], odd * weight[:, None]).reshape(even.shape[0], 2 * WIDTH)
        tl.atomic_add(pointer, row.to(grads.dtype.element_ty), mask=mask, sem="relaxed")


@triton.jit
def _subtract_weighted(
    grads, logits, first, amount, largest, share, exists, TOTAL: tl.constexpr, COLUMNS: tl.constexpr
):
    """Subtract `amount` of its row, times its attention, from the gradient of every logit."""
    column = tl.arange(0, COLUMNS)
    mask = exists[:, None] & (column < TOTAL)[None, :]
    index = first[:, None] + column[None, :]
    logit = tl.load(logits + index, mask=mask, other=float("-inf")).to(tl.float32)
    weight = power(logit, largest[:, None]) * share[:, None]
    # This lane reads what others have stored.
    tl.debug_barrier()
    grad = tl.load(grads + index, mask=mask, other=0).to(tl.float32) - weight * amount[:, None]
    tl.store(grads + index, grad.to(grads.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
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
    CHECKED: tl.constexpr,
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
    UNROLLED: tl.constexpr,
):
    """Differentiate the forward; positions and weights are computed again.

    With `g` the gradient of one output, `w_x w_y` a corner's weights and `d = g . v` for its pixel `v`:

    * value: `A w_x w_y g`, added atomically to the corner's pixel, in the dtype of `grad_value`
    * position: `A sum d (w_x' w_y, w_x w_y')`; from there to locations, or to offsets and references
    * weight: `D = sum d w_x w_y`, and for its logit `A (D - mean)`; the mean of all `D` under the attention is
      `g . output`

    An output in half precision makes that mean inexact. It is corrected at the end, when all `D` are known.

    Gradients of references are stored per head and level: (image, query, head, level, coordinate).
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
    in_chunk = words_below(WORDS, 0, WIDTH)
    in_next = words_below(WORDS, WIDTH, WIDTH)
    grad_row = (row * WORDS)[:, None] + word[None, :]

    zero = tl.zeros((ROWS,), tl.float32)
    even, odd = load_row(grad_output + grad_row, exists[:, None] & in_chunk, PREDICATED, PAIRED, DTYPE)
    next_even, next_odd = even, odd
    if CHUNKS == 2:
        next_even, next_odd = load_row(
            grad_output + WIDTH + grad_row, exists[:, None] & in_next, PREDICATED, PAIRED, DTYPE
        )
    largest, share, mean, exact_mean = zero, zero, zero, zero
    if FUSED:
        largest, share = sum_up_softmax(weights, row * (L * P), L * P, POINTS)
        if NEEDS_WEIGHTS:
            # The inner product is linear: the mean of all `D` under the attention is `g . output`.
            low, high = load_row(output + grad_row, exists[:, None] & in_chunk, PREDICATED, PAIRED, DTYPE)
            products = multiply_rows(low, high, even, odd, PAIRED)
            if CHUNKS == 2:
                low, high = load_row(output + WIDTH + grad_row, exists[:, None] & in_next, PREDICATED, PAIRED, DTYPE)
                products += multiply_rows(low, high, next_even, next_odd, PAIRED)
            mean = tl.sum(products, axis=1)
    reference_x, reference_y, reference_w, reference_h = zero, zero, zero, zero
    next_start = first_start(CHECKED)
    for level in range(L):
        height, width, start, next_start = load_level(shapes, level, next_start, pixels, GROUPED, CHECKED)
        if FUSED:
            reference_x, reference_y, reference_w, reference_h = load_reference(
                references, query, level, reference_stride_query, reference_stride_level, COORDINATES
            )
        width_in_float, height_in_float = width.to(tl.float32), height.to(tl.float32)
        grad_x, grad_y, grad_w, grad_h = zero, zero, zero, zero
        # Compile time grows with the square of the unrolled length.
        for point in tl.range(P, loop_unroll_factor=UNROLLED):
            index = row * (L * P) + (level * P + point)
            x, y = load_xy(locations, index)
            weight = tl.load(weights + index).to(tl.float32)
            if FUSED:
                weight = power(weight, largest) * share
            u, v = find_position(
                x, y, reference_x, reference_y, reference_w, reference_h,
                width_in_float, height_in_float, COORDINATES, P,
            )  # fmt: skip
            inside_x, left, has_right, left_weight, right_weight = split_axis(u, width_in_float)
            inside_y, top, has_bottom, top_weight, bottom_weight = split_axis(v, height_in_float)
            inside = inside_x & inside_y & exists
            left_slope, right_slope = slopes(u, has_right)
            top_slope, bottom_slope = slopes(v, has_bottom)
            pixel = start + top * width + left
            step_x = has_right.to(tl.int32)
            step_y = has_bottom.to(tl.int32) * width
            grad_weight, grad_u, grad_v = zero, zero, zero
            # All loads come before the first addition: compilers move none past it.
            seen = tl.zeros((ROWS,), tl.int32)
            for below in tl.static_range(2):
                weight_y = bottom_weight if below else top_weight
                slope_y = bottom_slope if below else top_slope
                line_weight, line_slope = zero, zero
                for right in tl.static_range(2):
                    corner_pixel = find_corner(pixel, step_x, step_y, right, below, WIDE)
                    visible = is_visible(padding, corner_pixel, inside, PADDED)
                    if PADDED:
                        seen |= visible.to(tl.int32) << (2 * below + right)
                    if NEEDS_DOTS:
                        pointer = value + (corner_pixel * PIXEL)[:, None] + word[None, :]
                        low, high = load_row(pointer, visible[:, None] & in_chunk, PREDICATED, PAIRED, DTYPE)
                        products = multiply_rows(low, high, even, odd, PAIRED)
                        if CHUNKS == 2:
                            low, high = load_row(pointer + WIDTH, visible[:, None] & in_next, PREDICATED, PAIRED, DTYPE)
                            products += multiply_rows(low, high, next_even, next_odd, PAIRED)
                        dot = tl.sum(products, axis=1)
                        line_weight += (right_weight if right else left_weight) * dot
                        line_slope += (right_slope if right else left_slope) * dot
                grad_weight += weight_y * line_weight
                grad_u += weight_y * line_slope
                grad_v += slope_y * line_weight
            if NEEDS_VALUE:
                for below in tl.static_range(2):
                    for right in tl.static_range(2):
                        corner_weight = weight * (bottom_weight if below else top_weight)
                        corner_weight = corner_weight * (right_weight if right else left_weight)
                        adds = inside & (corner_weight != 0)
                        if PADDED:
                            adds = adds & (seen & (1 << (2 * below + right)) != 0)
                        offset = find_corner(pixel, step_x, step_y, right, below, WIDE) * (M * D)
                        _add_row(grad_value, offset, even, odd, corner_weight, adds, 0, WIDTH, WORDS, PAIRED)
                        if CHUNKS == 2:
                            _add_row(
                                grad_value, offset, next_even, next_odd, corner_weight, adds,
                                WIDTH, WIDTH, WORDS, PAIRED,
                            )  # fmt: skip

            if NEEDS_WEIGHTS:
                if FUSED:
                    exact_mean += weight * grad_weight
                    grad_weight = (grad_weight - mean) * weight
                tl.store(grad_weights + index, grad_weight.to(grad_weights.dtype.element_ty), mask=exists)
            if NEEDS_LOCATIONS or NEEDS_REFERENCES:
                grad_u *= weight
                grad_v *= weight
                if COORDINATES == 4:
                    grad_w += grad_u * x * width_in_float * (0.5 / P)
                    grad_h += grad_v * y * height_in_float * (0.5 / P)
                grad_x += grad_u
                grad_y += grad_v
            if NEEDS_LOCATIONS:
                if COORDINATES == 0:
                    grad_u, grad_v = grad_u * width_in_float, grad_v * height_in_float
                elif COORDINATES == 4:
                    grad_u *= reference_w * width_in_float * (0.5 / P)
                    grad_v *= reference_h * height_in_float * (0.5 / P)
                tl.store(grad_locations + index * 2, grad_u.to(grad_locations.dtype.element_ty), mask=exists)
                tl.store(grad_locations + index * 2 + 1, grad_v.to(grad_locations.dtype.element_ty), mask=exists)
        if NEEDS_REFERENCES:
            pointer = grad_references + (row * L + level) * COORDINATES
            tl.store(pointer, grad_x * width_in_float, mask=exists)
            tl.store(pointer + 1, grad_y * height_in_float, mask=exists)
            if COORDINATES == 4:
                tl.store(pointer + 2, grad_w, mask=exists)
                tl.store(pointer + 3, grad_h, mask=exists)
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
    CHECKED: tl.constexpr,
    SAMPLES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Sum the gradient of one head of one pixel in a fixed order.

    A pixel belongs to the four cells between it and its neighbors. `order` has the indices of all samples, sorted by
    cell, and `first_of_cell` the position at which each cell begins. Cells of one row are consecutive, so two ranges of
    `order` hold all samples that touch the pixel. `sort_by_cell` defines the numbers of cells.
    """
    pixel = tl.program_id(0)
    head = tl.program_id(1)
    image = (first_image + tl.program_id(2)).to(tl.int64)
    # A pixel outside all levels gets zero, as the only pixel of a level without samples.
    height, width, level_start, is_in_level = 1, 1, pixel, False
    next_start = first_start(CHECKED)
    for level in range(L):
        level_height, level_width, start, next_start = load_level(shapes, level, next_start, pixels, GROUPED, CHECKED)
        if (level_width > 0) & (pixel >= start) & (pixel < start + level_height * level_width):
            height, width, level_start, is_in_level = level_height, level_width, start, True
    column = (pixel - level_start) % width
    line = (pixel - level_start) // width

    channel = tl.arange(0, WIDTH)
    total = tl.zeros((WIDTH,), tl.float32)
    cell = ((image * M + head) * pixels + level_start) * 4 + line * (width + 1) + column
    for below in range(2):
        first = tl.load(first_of_cell + cell + below * (width + 1))
        end = tl.load(first_of_cell + cell + below * (width + 1) + 2)
        end = tl.where(is_in_level, end, first)
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
