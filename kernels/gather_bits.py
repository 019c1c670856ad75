"""Rows of a bit-packed store by index, copied and unpacked.

Bytes per pixel, for images of s bytes a pixel: 1/8 read, s + 1/8 written, so 4.25 for float32. Gathering the bits
first and unpacking them after reads 1/8 more and, worse for small batches, launches twice; gathering from a store of
a byte per pixel and converting moves 7, from eight times the memory.
"""

import triton
import triton.language as tl


@triton.jit
def gather_bits_fwd_kernel(
    store_ptr,  # [N, row_bytes], strided
    index_ptr,  # [B]
    images_ptr,  # [B, pixels]
    bits_ptr,  # [B, row_bytes]
    pixels,
    row_bytes,
    store_stride_row,
    store_stride_byte,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(pixels, BLOCK)
    image = pid // blocks
    row = tl.load(index_ptr + image).to(tl.int64)
    byte = (pid % blocks) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)[:, None]
    held = byte < row_bytes
    word = tl.load(store_ptr + row * store_stride_row + byte * store_stride_byte, mask=held, other=0)
    tl.store(bits_ptr + image * row_bytes + byte, word, mask=held)
    bit = tl.arange(0, 8)[None, :]
    column = byte * 8 + bit
    # through float32: the interpreter casts no integer to bfloat16
    x = ((word.to(tl.int32) >> bit) & 1).to(tl.float32).to(images_ptr.dtype.element_ty)
    tl.store(images_ptr + image * pixels + column, x, mask=column < pixels)
