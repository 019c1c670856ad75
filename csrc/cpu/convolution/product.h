// Matrix products of a strip: both operands lie in cache, sums of a block in registers. Included once for each
// instruction set.

// Memory that will be read or written soon.
struct Range {
  const float* first;
  int64_t floats;
};

// Asks for two ranges of it, line by line between multiplications.
struct Ahead {
  const char *one, *other;
  int64_t one_step, other_step;  // bytes between two requests

  Ahead(Range first, Range second, int64_t requests)
      : one(reinterpret_cast<const char*>(first.first)),
        other(reinterpret_cast<const char*>(second.first)),
        one_step((4 * first.floats + requests - 1) / requests),
        other_step((4 * second.floats + requests - 1) / requests) {}
  PYVAE_HD void ask() {
    __builtin_prefetch(one, 0, 2);
    __builtin_prefetch(other, 0, 2);
    one += one_step;
    other += other_step;
  }
};
struct NotAhead {
  PYVAE_HD void ask() {}
};

// Of a block of kRows x kColumns lanes: sums of products along depth words.
template <class A, int kRows, int kColumns>
struct Block {
  Lanes sum[kRows][kColumns];

  // a: one word for each row, which are a_row apart, and a_step along the sum; b: rows of b_step words
  template <class Asking>
  PYVAE_HD void add(const typename A::Word* a, int64_t a_row, int64_t a_step, const typename A::Word* b, int64_t b_step,
                    int depth, Asking& ahead) {
    Asking asking = ahead;  // in registers
    for (int k = 0; k < depth; ++k) {
      asking.ask();
      typename A::Row row[kColumns];
#pragma GCC unroll 8
      for (int v = 0; v < kColumns; ++v) row[v] = A::row(b + k * b_step + v * kLanes);
#pragma GCC unroll 32
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < kColumns; ++v) sum[r][v] = A::add_product(sum[r][v], a + r * a_row + k * a_step, row[v]);
      }
    }
    ahead = asking;
  }

  PYVAE_HD void clear() {
#pragma GCC unroll 32
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kColumns; ++v) sum[r][v] = Lanes{};
    }
  }
};

// c [rows, kN] = a [rows, kK words] b [kK words, kN]; a and c have room for up to kBlockRows - 1 rows more. Long sums are
// of parts, whose rounding adds up to less.
template <class A, int kK, int kN>
__attribute__((noinline)) void multiply(const typename A::Word* a, const typename A::Word* b, float* c, int rows,
                                        Ahead& ahead) {
  constexpr int kPart = kK < 64 ? kK : 64;
  for (int n = 0; n < kN; n += kBlockColumns) {
    for (int r = 0; r < rows; r += kBlockRows) {
      for (int k = 0; k < kK; k += kPart) {
        Block<A, kBlockRows, 2> block;
        block.clear();
        block.add(a + r * kK + k, kK, 1, b + k * kN + n, kN, kPart, ahead);
#pragma GCC unroll 32
        for (int i = 0; i < kBlockRows; ++i) {
#pragma GCC unroll 8
          for (int v = 0; v < 2; ++v) {
            float* to = c + (r + i) * kN + n + v * kLanes;
            store(to, k == 0 ? block.sum[i][v] : load(to) + block.sum[i][v]);
          }
        }
      }
    }
  }
}

constexpr int64_t multiply_steps(int rows, int k, int n) {
  return static_cast<int64_t>(n / kBlockColumns) * ((rows + kBlockRows - 1) / kBlockRows) * k;
}

constexpr int kTransposedRows = kLanes == 16 ? 8 : 4;

// c [kM, kN] += a [words, kM]^T b [words, kN]. The sum of a strip is made by itself, so that long sums are of parts.
template <class A, int kM, int kN>
__attribute__((noinline)) void multiply_transposed(const typename A::Word* a, const typename A::Word* b, float* c,
                                                   int words, Ahead& ahead) {
  for (int n = 0; n < kN; n += kBlockColumns) {
    for (int m = 0; m < kM; m += kTransposedRows) {
      Block<A, kTransposedRows, 2> block;
      block.clear();
      block.add(a + m, 1, kM, b + n, kN, words, ahead);
#pragma GCC unroll 32
      for (int i = 0; i < kTransposedRows; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < 2; ++v) {
          float* to = c + (m + i) * kN + n + v * kLanes;
          store(to, load(to) + block.sum[i][v]);
        }
      }
    }
  }
}

constexpr int64_t multiply_transposed_steps(int m, int n, int words) {
  return static_cast<int64_t>(n / kBlockColumns) * (m / kTransposedRows) * words;
}
