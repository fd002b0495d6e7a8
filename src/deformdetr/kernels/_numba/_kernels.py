"""The CPU kernels, in the part of Python that Numba compiles.

A kernel is a function of one `Job`. Any number of threads may run it on the same job at once: each takes the next task
until none is left, and no two tasks write to the same place.
"""

import functools

import numpy as np
import torch
from numba import carray, config, from_dtype, njit, types

from deformdetr.kernels._levels import MOST_PIXELS_IN_LINE
from deformdetr.kernels._numba._cache import compile_kernel, name_of
from deformdetr.kernels._numba._job import Job
from deformdetr.kernels._numba._vectors import (
    FLOAT_BYTES,
    add,
    add_stored,
    add_to,
    dot_stored,
    fetch_and_increment,
    float_bytes,
    load,
    read_float32,
    read_int64,
    store,
    stored_bytes,
    write_float32,
    zeros,
)

INT64_BYTES = 8
_SIGNATURE = types.void(types.CPointer(from_dtype(np.dtype(Job))))
_HALF, _ONE = np.float32(0.5), np.float32(1)


def _check_that_numba_compiles() -> None:
    if config.DISABLE_JIT:
        raise RuntimeError(
            "NUMBA_DISABLE_JIT is set, but the kernels for CPUs work on addresses and run only if they are compiled"
        )


@njit
def _read_level(levels, index, pixels):
    """Return height, width and first pixel; all are 0 if the level does not fit into `pixels` pixels.

    Levels have been checked before. Here the check bounds every address of a pixel, at no measurable cost.
    """
    place = levels + 3 * index * INT64_BYTES
    height, width, start = read_int64(place), read_int64(place + INT64_BYTES), read_int64(place + 2 * INT64_BYTES)
    is_size = (height >= 0) & (height <= MOST_PIXELS_IN_LINE) & (width >= 0) & (width <= MOST_PIXELS_IN_LINE)
    if is_size & (start >= 0) & (start <= pixels - height * width):
        return height, width, start
    return 0, 0, 0


@njit
def _locate(locations, index, size):
    """Return the pixel at or before a location along one axis, the distance past it, and whether any pixel is touched.

    Pixel `i` is at `(i + 1/2) / size`. A location that is not finite touches none, and its pixel is meaningless.
    """
    position = read_float32(locations + index * FLOAT_BYTES) * np.float32(size) - _HALF
    first = np.floor(position)
    return np.int64(first), position - first, (position >= -_ONE) & (position < np.float32(size))


@njit
def _visit(job, pixel, grad, weight):
    """Add to the gradient of one pixel, and return the inner product of the pixel with the gradient of the output."""
    if job.grad_value != 0:
        add_to(job.grad_value + pixel * float_bytes(grad), weight, grad)
    if job.grad_locations != 0 or job.grad_weights != 0:
        return dot_stored(grad, job.value + pixel * stored_bytes(grad))
    return np.float32(0)


@njit
def _differentiate(job, image, head, run, zero):
    """Differentiate one head of an image in a run of equal levels; `zero` is a vector of zeros, of the type to use."""
    begin, end = read_int64(job.runs + run * INT64_BYTES), read_int64(job.runs + (run + 1) * INT64_BYTES)
    height, width, start = _read_level(job.levels, begin, job.pixels)
    start += image * job.pixels
    if job.grad_value != 0:
        for pixel in range(start, start + height * width):
            store(job.grad_value + (pixel * job.heads + head) * float_bytes(zero), zero)
    for query in range(job.queries):
        out_row = (image * job.queries + query) * job.heads + head
        grad = load(job.output + out_row * float_bytes(zero), zero)
        for at in range((out_row * job.n_levels + begin) * job.points, (out_row * job.n_levels + end) * job.points):
            x, right_share, is_along = _locate(job.locations, 2 * at, width)
            y, lower_share, is_across = _locate(job.locations, 2 * at + 1, height)
            grad_weight = grad_x = grad_y = np.float32(0)
            if is_along & is_across:
                weight = read_float32(job.weights + at * FLOAT_BYTES)
                left_share, upper_share = _ONE - right_share, _ONE - lower_share
                left, right = weight * left_share, weight * right_share
                pixel = (start + y * width + x) * job.heads + head
                below = pixel + width * job.heads
                upper_left = upper_right = lower_left = lower_right = np.float32(0)
                if (y >= 0) & (x >= 0):
                    upper_left = _visit(job, pixel, grad, upper_share * left)
                if (y >= 0) & (x + 1 < width):
                    upper_right = _visit(job, pixel + job.heads, grad, upper_share * right)
                if (y + 1 < height) & (x >= 0):
                    lower_left = _visit(job, below, grad, lower_share * left)
                if (y + 1 < height) & (x + 1 < width):
                    lower_right = _visit(job, below + job.heads, grad, lower_share * right)
                dot_left = upper_share * upper_left + lower_share * lower_left
                dot_right = upper_share * upper_right + lower_share * lower_right
                grad_weight = left_share * dot_left + right_share * dot_right
                grad_x = weight * np.float32(width) * (dot_right - dot_left)
                dot_upper = left * upper_left + right * upper_right
                dot_lower = left * lower_left + right * lower_right
                grad_y = np.float32(height) * (dot_lower - dot_upper)
            if job.grad_weights != 0:
                write_float32(job.grad_weights + at * FLOAT_BYTES, grad_weight)
            if job.grad_locations != 0:
                write_float32(job.grad_locations + 2 * at * FLOAT_BYTES, grad_x)
                write_float32(job.grad_locations + (2 * at + 1) * FLOAT_BYTES, grad_y)


@functools.cache
def compile_forward(channels: int, dtype: torch.dtype):
    """Compile the kernel of `out[b, q, m] = sum_{l, p} A[b, q, m, l, p] * bilinear(value[b, level l, m], at p)`.

    A task is one head of some queries of an image. The sum of every query stays in registers.
    """
    _check_that_numba_compiles()
    stored, out_bytes, row_bytes = name_of(dtype), channels * FLOAT_BYTES, channels * dtype.itemsize

    def forward(pointer):
        job = carray(pointer, 1)[0]
        parts = (job.queries + job.queries_per_task - 1) // job.queries_per_task
        task = fetch_and_increment(job.next_task)
        while task < job.tasks:
            head, part, image = task % job.heads, task // job.heads % parts, task // job.heads // parts
            begin = part * job.queries_per_task
            for query in range(begin, min(begin + job.queries_per_task, job.queries)):
                out_row = (image * job.queries + query) * job.heads + head
                out = zeros(channels, stored)
                for level in range(job.n_levels):
                    height, width, start = _read_level(job.levels, level, job.pixels)
                    start += image * job.pixels
                    right, down = job.heads * row_bytes, width * job.heads * row_bytes
                    sample = (out_row * job.n_levels + level) * job.points
                    # Each level has its own sum: a single sum over all samples would have larger rounding errors.
                    level_sum = zeros(channels, stored)
                    for at in range(sample, sample + job.points):
                        x, right_share, is_along = _locate(job.locations, 2 * at, width)
                        y, lower_share, is_across = _locate(job.locations, 2 * at + 1, height)
                        if not (is_along & is_across):
                            continue
                        weight = read_float32(job.weights + at * FLOAT_BYTES)
                        lower = weight * lower_share
                        upper = weight - lower
                        left_share = _ONE - right_share
                        row = job.value + ((start + y * width + x) * job.heads + head) * row_bytes
                        if (y >= 0) & (x >= 0):
                            level_sum = add_stored(level_sum, upper * left_share, row)
                        if (y >= 0) & (x + 1 < width):
                            level_sum = add_stored(level_sum, upper * right_share, row + right)
                        if (y + 1 < height) & (x >= 0):
                            level_sum = add_stored(level_sum, lower * left_share, row + down)
                        if (y + 1 < height) & (x + 1 < width):
                            level_sum = add_stored(level_sum, lower * right_share, row + down + right)
                    out = add(out, level_sum)
                store(job.output + out_row * out_bytes, out)
            task = fetch_and_increment(job.next_task)

    return compile_kernel(forward, _SIGNATURE, channels, dtype)


@functools.cache
def compile_backward(channels: int, dtype: torch.dtype):
    """Compile the kernel of all gradients; those that are not needed have address 0.

    With `g` the gradient of the output, and `d = g . v` for each of a sample's pixels `v`:

    * value: `A w_x w_y g`, added to the pixel
    * attention weight: the sum over the pixels of `w_x w_y d`
    * location: the sum of `A (± w_y width, ± w_x height) d`, with + for the right and the lower pixels

    A task is one head of an image in some of its levels. No other task adds to the pixels of these. It goes through
    level after level, and through all queries in each. So results are bit-identical however levels are distributed, and
    the pixels of a level stay in a cache. Separate passes for value and samples would read memory more often.
    """
    _check_that_numba_compiles()
    stored = name_of(dtype)

    def backward(pointer):
        job = carray(pointer, 1)[0]
        task = fetch_and_increment(job.next_task)
        while task < job.tasks:
            head, image, part = task % job.heads, task // job.heads % job.images, task // job.heads // job.images
            first = part * job.runs_per_task
            for run in range(first, first + job.runs_per_task):
                _differentiate(job, image, head, run, zeros(channels, stored))
            task = fetch_and_increment(job.next_task)

    return compile_kernel(backward, _SIGNATURE, channels, dtype)
