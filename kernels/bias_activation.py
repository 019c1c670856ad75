"""The bias and the activation behind a convolution or a matrix product, and the gradients of both.

Three launches (bias, activation; mask, sum of the bias) become two, and each activation is read and written once less
in either direction. Where the next layer wants another memory order than the product has (a map that is flattened, or
the other way round), these kernels write it, which saves the copy.

A tensor is read as [images, rows, columns], by strides. A row is a pixel and a column a channel; where one stride
leads through all pixels of a batch, they are the rows of one image. For the bias of a linear layer whose output is
read as maps [channels, pixels], rows are images and a column is a pixel of a channel, INNER pixels to a channel.
"""

import triton
import triton.language as tl


@triton.jit
def _offsets(
    image,
    row,  # [ROWS]
    column,  # [COLUMNS]
    stride_image,
    stride_row,
    stride_column,
    stride_inner,
    INNER: tl.constexpr,
):
    at = (
        column * stride_column
        if INNER == 1
        else column // INNER * stride_column + column % INNER * stride_inner
    )
    return image * stride_image + row[:, None] * stride_row + at[None, :]


@triton.jit
def bias_activation_fwd_kernel(
    x_ptr,  # [images, rows, columns], strided
    bias_ptr,  # [columns]
    y_ptr,  # [images, rows, columns], strided; it may be x
    rows,
    columns,
    slope,  # of the leaky ReLU
    x_stride_image,
    x_stride_row,
    x_stride_column,
    x_stride_inner,
    y_stride_image,
    y_stride_row,
    y_stride_column,
    y_stride_inner,
    ACTIVATION: tl.constexpr,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    column_blocks = tl.cdiv(columns, COLUMNS)
    row_blocks = tl.cdiv(rows, ROWS)
    image = pid // column_blocks // row_blocks
    row = pid // column_blocks % row_blocks * ROWS + tl.arange(0, ROWS)
    column = pid % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    held = (row < rows)[:, None] & (column < columns)[None, :]
    x_at = _offsets(image, row, column, x_stride_image, x_stride_row, x_stride_column, x_stride_inner, INNER)
    x = tl.load(x_ptr + x_at, mask=held, other=0.0).to(tl.float32)
    x += tl.load(bias_ptr + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    # not a maximum, which would turn NaN into 0
    if ACTIVATION == "relu":
        x = tl.where(x <= 0.0, 0.0, x)
    if ACTIVATION == "leaky_relu":
        x = tl.where(x <= 0.0, x * slope, x)
    y_at = _offsets(image, row, column, y_stride_image, y_stride_row, y_stride_column, y_stride_inner, INNER)
    tl.store(y_ptr + y_at, x, mask=held)


@triton.jit
def bias_activation_bwd_kernel(
    grad_y_ptr,  # [images, rows, columns], strided
    y_ptr,  # [images, rows, columns], strided; read if there is an activation
    grad_x_ptr,  # [images, rows, columns], strided; written if WRITES
    partial_ptr,  # [programs of a block of columns, columns]; if SPLIT
    ticket_ptr,  # [blocks of columns]: 0 before and after a launch; if SPLIT
    grad_bias_ptr,  # [columns]; written if SUMS
    images,
    rows,
    columns,
    slope,  # of the leaky ReLU
    grad_y_stride_image,
    grad_y_stride_row,
    grad_y_stride_column,
    grad_y_stride_inner,
    y_stride_image,
    y_stride_row,
    y_stride_column,
    y_stride_inner,
    grad_x_stride_image,
    grad_x_stride_row,
    grad_x_stride_column,
    grad_x_stride_inner,
    ACTIVATION: tl.constexpr,
    WRITES: tl.constexpr,
    SUMS: tl.constexpr,
    SPLIT: tl.constexpr,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    column_blocks = tl.cdiv(columns, COLUMNS)
    row_blocks = tl.cdiv(rows, ROWS)
    programs = tl.num_programs(0) // column_blocks
    program = pid // column_blocks
    column_block = pid % column_blocks
    column = column_block * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for block in range(program, images * row_blocks, programs):
        image = block // row_blocks
        row = block % row_blocks * ROWS + tl.arange(0, ROWS)
        held = (row < rows)[:, None] & (column < columns)[None, :]
        grad_y_at = _offsets(
            image, row, column,
            grad_y_stride_image, grad_y_stride_row, grad_y_stride_column, grad_y_stride_inner, INNER,
        )  # fmt: skip
        grad = tl.load(grad_y_ptr + grad_y_at, mask=held, other=0.0).to(tl.float32)
        if ACTIVATION != "identity":
            y_at = _offsets(
                image, row, column, y_stride_image, y_stride_row, y_stride_column, y_stride_inner, INNER
            )
            y = tl.load(y_ptr + y_at, mask=held, other=0.0).to(tl.float32)
            # the sign of an output is that of the input
            if ACTIVATION == "relu":
                grad = tl.where(y <= 0.0, 0.0, grad)
            if ACTIVATION == "leaky_relu":
                grad = tl.where(y <= 0.0, grad * slope, grad)
            if ACTIVATION == "tanh":
                grad = grad * (1.0 - y * y)
        if WRITES:
            grad_x_at = _offsets(
                image, row, column,
                grad_x_stride_image, grad_x_stride_row, grad_x_stride_column, grad_x_stride_inner, INNER,
            )  # fmt: skip
            tl.store(grad_x_ptr + grad_x_at, grad, mask=held)
        if SUMS:
            total += grad
    if SUMS:
        sums = tl.sum(total, 0)
        if SPLIT:
            # The last program to come adds up what all have left. That it sees it: the stores of a program's threads
            # happen before its barrier, and that before the one thread's increment, which is a release, and so covers
            # what others of the block stored. Increments follow one another, each reading the one before, so the last
            # of them, an acquire, comes after all; a barrier hands the ticket, and with it that order, to the other
            # threads. ".cg" reads the cache that all multiprocessors share. Who comes last is chance; the order of the
            # sum is not.
            tl.store(partial_ptr + program * columns + column, sums, mask=column < columns)
            tl.debug_barrier()
            ticket = tl.atomic_add(ticket_ptr + column_block, 1, sem="acq_rel", scope="gpu")
            if ticket == programs - 1:
                total = tl.zeros((ROWS, COLUMNS), tl.float32)
                for first in range(0, programs, ROWS):
                    of = first + tl.arange(0, ROWS)
                    total += tl.load(
                        partial_ptr + of[:, None] * columns + column[None, :],
                        mask=(of < programs)[:, None] & (column < columns)[None, :],
                        other=0.0,
                        cache_modifier=".cg",
                    )
                tl.store(grad_bias_ptr + column, tl.sum(total, 0), mask=column < columns)
                tl.store(ticket_ptr + column_block, 0)
        else:
            tl.store(grad_bias_ptr + column, sums, mask=column < columns)
