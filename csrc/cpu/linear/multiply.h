// Matrix products of any size: a panel of the second operand lies in cache, sums of a block in registers. Included once
// for each instruction set.

constexpr int kRowsAtOnce = kLanes == 16 ? 13 : 6;
// Long sums are of parts, whose rounding adds up to less.
constexpr int kPart = 128;

// sums [kRows, width] of a's rows and a panel, of which it reads `width` columns at least.
template <int kRows>
void multiply_block(const Product& p, const float* a, const float* panel, int width, float* sums, Ahead& ahead) {
  for (int n = 0; n < width; n += kBlockColumns) {
    int64_t k = 0;
    do {  // once where the sum is empty
      const int part = static_cast<int>(std::min<int64_t>(kPart, p.depth - k));
      Block<Float, kRows, 2> block;
      block.clear();
      block.add(a + k * p.a_step, p.a_row, p.a_step, panel + k * kPanel + n, kPanel, part, ahead);
#pragma GCC unroll 32
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < 2; ++v) {
          float* to = sums + r * kPanel + n + v * kLanes;
          store(to, k == 0 ? block.sum[r][v] : load(to) + block.sum[r][v]);
        }
      }
      k += kPart;
    } while (k < p.depth);
  }
}

template <size_t... kRows>
constexpr auto blocks_of(std::index_sequence<kRows...>) {
  return std::array{&multiply_block<static_cast<int>(kRows) + 1>...};
}
constexpr auto kMultiplyBlock = blocks_of(std::make_index_sequence<kRowsAtOnce>());

// Rows become columns: numbers whose indices differ in a bit change places, bit by bit.
PYVAE_HD void transpose(Lanes (&rows)[kLanes]) {
  constexpr int32_t kCount[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  LaneBits count;
  std::memcpy(&count, kCount, sizeof count);
#pragma GCC unroll 4
  for (int bit = 1; bit < kLanes; bit *= 2) {
    const LaneBits upper = (count & bit) != 0;
    const LaneBits first = upper ? count + (kLanes - bit) : count, second = upper ? count + kLanes : count + bit;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      if (i & bit) continue;
      const Lanes one = rows[i], other = rows[i + bit];
      rows[i] = __builtin_shuffle(one, other, first);
      rows[i + bit] = __builtin_shuffle(one, other, second);
    }
  }
}

// Columns [j, j + kLanes) of a panel from rows of b, of which there are `count`.
inline void turn(const Matrix& b, int64_t row, int count, int64_t depth, float* panel) {
  int64_t at = 0;
  for (; at + kLanes <= depth; at += kLanes) {
    Lanes rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = i < count ? load(b.data + (row + i) * b.row + at) : Lanes{};
    transpose(rows);
    for (int i = 0; i < kLanes; ++i) store(panel + b.feature(at + i) * kPanel, rows[i]);
  }
  for (; at < depth; ++at) {
    float* to = panel + b.feature(at) * kPanel;
    for (int i = 0; i < kLanes; ++i) to[i] = i < count ? b.data[(row + i) * b.row + at] : 0.0f;
  }
}

// Columns [first, first + kPanel) of b, zero beyond the last.
inline void fill(const Product& p, int64_t first, float* panel) {
  const int columns = static_cast<int>(std::min<int64_t>(kPanel, p.columns - first));
  const Matrix& b = p.b;
  if (p.b_turned) {
    for (int j = 0; j < kPanel; j += kLanes) turn(b, first + j, columns - j, p.depth, panel + j);
  } else {
    for (int64_t k = 0; k < p.depth; ++k) {
      const float* from = b.data + k * b.row;
      float* to = panel + k * kPanel;
      if (b.in_order() && columns == kPanel) {
        for (int j = 0; j < kPanel; j += kLanes) store(to + j, load(from + first + j));
      } else {
        for (int j = 0; j < kPanel; ++j) to[j] = j < columns ? from[b.place(first + j)] : 0.0f;
      }
    }
  }
}

// Few columns, which lie as rows of `depth`: rows of a, turned block by block, are what is side by side. Sums are made in
// the same order.
template <int kColumns>
void multiply_few(const Product& p, const float* a, int rows, const float* columns, float* sums) {
  const int64_t depth = p.depth, a_row = p.a_row;
  for (int64_t from = 0; from == 0 || from < depth; from += kPart) {
    const int64_t end = std::min(depth, from + kPart);
    Lanes part[kColumns] = {};
    int64_t k = from;
    for (; k + kLanes <= end; k += kLanes) {
      Lanes turned[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r) turned[r] = load(a + (r < rows ? r : 0) * a_row + k);
      transpose(turned);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < kColumns; ++j) part[j] += turned[i] * all(columns[j * depth + k + i]);
      }
    }
    for (; k < end; ++k) {
      Lanes column{};
      for (int r = 0; r < rows; ++r) column[r] = a[r * a_row + k];
      for (int j = 0; j < kColumns; ++j) part[j] += column * all(columns[j * depth + k]);
    }
    for (int j = 0; j < kColumns; ++j) {
      for (int r = 0; r < rows; ++r) {
        float& sum = sums[r * kPanel + j];
        sum = from == 0 ? part[j][r] : sum + part[j][r];
      }
    }
  }
}

constexpr int kFew = 8;
static_assert(kRowsAtOnce <= kLanes);
template <size_t... kColumns>
constexpr auto few_of(std::index_sequence<kColumns...>) {
  return std::array{&multiply_few<static_cast<int>(kColumns) + 1>...};
}
constexpr auto kMultiplyFew = few_of(std::make_index_sequence<kFew>());

// Columns [first, first + count) of b, each by itself.
inline void copy_rows(const Product& p, int64_t first, int count, float* columns) {
  for (int j = 0; j < count; ++j) {
    const float* from = p.b.data + (first + j) * p.b.row;
    float* to = columns + j * p.depth;
    for (int64_t at = 0; at < p.depth; ++at) to[p.b.feature(at)] = from[at];
  }
}

// Biases and the activation, of rows from `row` on and columns from `column` on.
inline void finish(const Product& p, int64_t row, int rows, int64_t column, int width, float* sums) {
  const Activation activation(p.slope);
  for (int r = 0; r < rows; ++r) {
    for (int n = 0; n < width; n += kLanes) {
      Lanes value = load(sums + r * kPanel + n);
      value += p.c_turned ? all(p.bias[row + r]) : load(p.bias + column + n);
      store(sums + r * kPanel + n, p.activated ? activation.forward(value) : value);
    }
  }
}

inline void put(const Product& p, int64_t row, int rows, int64_t column, const float* sums) {
  const int columns = static_cast<int>(std::min<int64_t>(kPanel, p.columns - column));
  const Matrix& c = p.c;
  if (p.c_turned) {
    for (int j = 0; j < columns; ++j) {
      float* to = c.data + (column + j) * c.row;
      for (int r = 0; r < rows; ++r) to[c.place(row + r)] = sums[r * kPanel + j];
    }
    return;
  }
  for (int r = 0; r < rows; ++r) {
    float* to = c.data + (row + r) * c.row;
    if (c.in_order() && columns == kPanel) {
      for (int j = 0; j < kPanel; j += kLanes) store(to + column + j, load(sums + r * kPanel + j));
    } else {
      for (int j = 0; j < columns; ++j) to[c.place(column + j)] = sums[r * kPanel + j];
    }
  }
}

inline void multiply(const Product& p, int64_t first, int64_t last) {
  auto* sums = static_cast<float*>(
      scratch.bytes(static_cast<size_t>((p.depth + kRowsAtOnce) * kPanel) * sizeof(float)));
  float* panel = sums + kRowsAtOnce * kPanel;
  const int64_t blocks = p.blocks(), groups = p.groups();
  // blocks of nearly as many rows
  const auto row_of = [&](int64_t block) { return std::min(block, blocks) * p.rows / blocks; };
  for (int64_t unit = first; unit < last; ++unit) {
    const int64_t column = unit / groups * kPanel, group = unit % groups;
    const int width = static_cast<int>(std::min<int64_t>(kPanel, p.columns - column));
    const bool few = p.b_turned && p.a_step == 1 && width <= kFew;
    if (unit == first || group == 0) few ? copy_rows(p, column, width, panel) : fill(p, column, panel);
    const int64_t end = (group + 1) * blocks / groups;
    for (int64_t i = group * blocks / groups; i < end; ++i) {
      const int64_t row = row_of(i);
      const int rows = static_cast<int>(row_of(i + 1) - row);
      const float* a = p.a + row * p.a_row;
      if (few) {
        kMultiplyFew[static_cast<size_t>(width - 1)](p, a, rows, panel, sums);
      } else {
        // the rows that come next, where they lie side by side
        const bool more = p.a_step == 1 && (i + 1 < end || unit + 1 < last);
        const int64_t next = more ? (row_of(i + 2) - row_of(i + 1)) * p.a_row : 0;
        Ahead ahead({a + rows * p.a_row, next}, {panel, 0},
                    (width + kBlockColumns - 1) / kBlockColumns * std::max<int64_t>(p.depth, 1));
        kMultiplyBlock[static_cast<size_t>(rows - 1)](p, a, panel, width, sums, ahead);
      }
      if (p.bias != nullptr) finish(p, row, rows, column, width, sums);
      put(p, row, rows, column, sums);
    }
  }
}

// Features of an image's map, side by side; past the last of `count` anything.
PYVAE_HD Lanes gather(const Matrix& m, int64_t image, int64_t feature, int count) {
  const float* from = m.data + image * m.row;
  if (m.in_order() && count == kLanes) return load(from + feature);
  Lanes value{};
  for (int i = 0; i < count; ++i) value[i] = from[m.place(feature + i)];
  return value;
}

// Features [first, last) of a layer's gradient, before its activation, and their sums over the batch, of parts.
inline void mask(const Masked& m, int64_t first, int64_t last) {
  constexpr int64_t kImages = 16;
  const Activation activation(m.slope);
  for (int64_t n = first; n < last; n += kLanes) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, last - n));
    double sums[kLanes] = {};
    for (int64_t from = 0; from < m.batch; from += kImages) {
      Lanes part{};
      for (int64_t image = from; image < std::min(m.batch, from + kImages); ++image) {
        Lanes value = gather(m.grad, image, n, count);
        if (m.y.data != nullptr) value = activation.backward(gather(m.y, image, n, count), value);
        part += value;
        float* to = m.out + image * m.grad.row + n;
        if (count == kLanes) {
          store(to, value);
        } else {
          for (int i = 0; i < count; ++i) to[i] = value[i];
        }
      }
      for (int i = 0; i < kLanes; ++i) sums[i] += part[i];
    }
    std::copy_n(sums, count, m.sums + n);
  }
}

constexpr Kernels kKernels{kRowsAtOnce, &multiply, &mask};
