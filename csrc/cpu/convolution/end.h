// The ends of a network: kernel 4, stride 2, padding 1 between a picture of 1 or 3 channels, the big map, and a small map
// of 32 or 64. Sixteen taps are too few for Winograd; the picture's patches are the rows of a product. Included once for
// each instruction set.

template <int kColours, int kSmall>
struct End {
  static constexpr int kRow = 4 * kColours;  // numbers of a tap's row, which lie together in a row of the picture
  static constexpr int kTaps = 4 * kRow;
  static constexpr int64_t kWeights = static_cast<int64_t>(kTaps) * kSmall;

  // A picture with a border of nothing; rows go on where blocks of pixels reach beyond their end.
  struct Picture {
    static constexpr int kPixels = kLanes == 16 ? 8 : 4;  // of a block
    int64_t stride;
    int height, width;
    float* at;

    explicit Picture(const Job& job)
        : stride((2 * job.width + 2 + 2 * kPixels) * kColours), height(2 * job.height), width(2 * job.width) {
      const size_t floats = static_cast<size_t>((height + 2) * stride);
      at = static_cast<float*>(scratch.bytes(4 * floats));
      std::memset(at, 0, 4 * floats);
    }
    void take(const float* image) const {
      for (int y = 0; y < height; ++y) {
        std::memcpy(at + (y + 1) * stride + kColours, image + static_cast<int64_t>(y) * width * kColours,
                    static_cast<size_t>(width) * kColours * sizeof(float));
      }
    }
    int64_t floats() const { return static_cast<int64_t>(height) * width * kColours; }
  };

  // [kTaps][kSmall] of w [kSmall][kTaps]
  static void prepare_down(const float* w, void* weights) {
    auto* out = static_cast<float*>(weights);
    for (int s = 0; s < kSmall; ++s) {
      for (int k = 0; k < kTaps; ++k) out[k * kSmall + s] = w[s * kTaps + k];
    }
  }

  // [kSmall][colour][kx][ky]
  static void prepare_up(const float* w, void* weights) {
    auto* out = static_cast<float*>(weights);
    for (int s = 0; s < kSmall; ++s) {
      for (int ky = 0; ky < 4; ++ky) {
        for (int kx = 0; kx < 4; ++kx) {
          for (int colour = 0; colour < kColours; ++colour) {
            out[s * kTaps + (colour * 4 + kx) * 4 + ky] = w[s * kTaps + ky * kRow + kx * kColours + colour];
          }
        }
      }
    }
  }

  // images [first, last)
  static void down(const Job& job, int64_t first, int64_t last) {
    const Picture picture(job);
    for (int64_t image = first; image < last; ++image) {
      picture.take(job.big + image * picture.floats());
      down_image(job, picture, image);
    }
  }

  static void up(const Job& job, int64_t first, int64_t last) {
    const int side = 2 * job.height, rows = side + 4, width = 2 * job.width;
    const int64_t pixels = static_cast<int64_t>(job.height) * job.width;
    // products [1 + pixels of a row + 1][kTaps], then [colour][column][row and two beyond either end]
    const int64_t row_floats = static_cast<int64_t>(job.width + 2) * kTaps;
    const int64_t column_floats = static_cast<int64_t>(kColours) * width * rows;
    auto* products = static_cast<float*>(scratch.bytes(4 * static_cast<size_t>(row_floats + column_floats)));
    std::memset(products, 0, 4 * static_cast<size_t>(row_floats));
    float* columns = products + row_floats;
    for (int64_t image = first; image < last; ++image) {
      for (int64_t i = 0; i < column_floats; ++i) columns[i] = 0.0f;
      const Range own{job.small + (image + 1) * pixels * kSmall, pixels * kSmall};
      const Range out{job.out + image * 4 * pixels * kColours, 4 * pixels * kColours};
      Ahead next(own, out, std::max<int64_t>(1, pixels / kUpPixels * kSmall));
      for (int y = 0; y < job.height; ++y) {
        up_row(job, job.small + (image * job.height + y) * job.width * kSmall, products + kTaps, next);
        add_row(job, products + kTaps, columns + 2 * y, rows);
      }
      switch (job.finish) {
        case Finish::kLinear: finish_up<Finish::kLinear>(job, columns + 1, rows, image); break;
        case Finish::kActivated: finish_up<Finish::kActivated>(job, columns + 1, rows, image); break;
        case Finish::kMasked: finish_up<Finish::kMasked>(job, columns + 1, rows, image); break;
        case Finish::kSummed: finish_up<Finish::kSummed>(job, columns + 1, rows, image); break;
      }
    }
  }

  // of a convolution: job.small is the gradient that comes; weight_sums [kTaps][kSmall]
  static void down_backward(const Job& job, int64_t first, int64_t last) {
    if (job.weight_sums) {
      const Picture picture(job);
      for (int64_t image = first; image < last; ++image) {
        picture.take(job.big + image * picture.floats());
        weight_image(job, picture, image);
      }
    }
    if (job.out) up(job, first, last);
  }

  // of a transposed convolution: job.big is the gradient that comes
  static void up_backward(const Job& job, int64_t first, int64_t last) {
    const Picture picture(job);
    for (int64_t image = first; image < last; ++image) {
      picture.take(job.big + image * picture.floats());
      if (job.out) down_image(job, picture, image);
      if (job.weight_sums) weight_image(job, picture, image);
    }
  }

  static void weight_gradient(const float* sums, int64_t parts, float* grad, int first, int last) {
    for (int s = first; s < last; ++s) {
      for (int k = 0; k < kTaps; ++k) {
        float sum = sums[k * kSmall + s];
        for (int64_t part = 1; part < parts; ++part) sum += sums[part * kWeights + k * kSmall + s];
        grad[s * kTaps + k] = sum;
      }
    }
  }

 private:
  static constexpr int kPixels = Picture::kPixels;
  static constexpr int kSummed = 4;  // pixels whose gradients are summed first, whatever the block

  static __attribute__((noinline)) void down_image(const Job& job, const Picture& picture, int64_t image) {
    with_finisher(job, [&](const auto finish) {
      const auto* weights = static_cast<const float*>(job.weights);
      Sums<kSmall> sums;
      for (int y = 0; y < job.height; ++y) {
        for (int x = 0; x < job.width; x += kPixels) {
          const int count = std::min(kPixels, job.width - x);
          const int64_t to = ((image * job.height + y) * job.width + x) * kSmall;
          for (int c = 0; c < kSmall; c += kBlockColumns) {
            Block<Float, kPixels, 2> block;
            block.clear();
            NotAhead none;
            const float* from = picture.at + 2 * y * picture.stride + 2 * x * kColours;
            for (int ky = 0; ky < 4; ++ky) {
              block.add(from + ky * picture.stride, 2 * kColours, 1, weights + ky * kRow * kSmall + c, kSmall, kRow,
                        none);
            }
#pragma GCC unroll 32
            for (int first = 0; first < kPixels; first += kSummed) {
              Lanes sum[2] = {};
#pragma GCC unroll 32
              for (int r = first; r < first + kSummed; ++r) {
                if (r >= count) break;
#pragma GCC unroll 8
                for (int v = 0; v < 2; ++v) finish(to + r * kSmall, c + v * kLanes, block.sum[r][v], sum[v]);
              }
              for (int v = 0; v < 2; ++v) sums.put(c + v * kLanes, sums.at(c + v * kLanes) + sum[v]);
            }
          }
        }
      }
      sums.add_to(job);
    });
  }

  // taps whose gradients are summed in registers over all of an image: two rows of them, one, or half of one
  static constexpr int kSummedTaps = (kColours == 1 ? 8 : 12) / (kLanes == 16 ? 1 : 2);

  static __attribute__((noinline)) void weight_image(const Job& job, const Picture& picture, int64_t image) {
    const float* small = job.small + image * job.height * job.width * kSmall;
    for (int c = 0; c < kSmall; c += kBlockColumns) {
      for (int tap = 0; tap < kTaps; tap += kSummedTaps) {
        Lanes sum[kSummedTaps][2] = {};
        for (int y = 0; y < job.height; ++y) {
          const float* pixels = picture.at + (2 * y + tap / kRow) * picture.stride + tap % kRow;
          const float* grads = small + static_cast<int64_t>(y) * job.width * kSmall + c;
          for (int x = 0; x < job.width; ++x) {
            const Lanes row[2] = {load(grads + x * kSmall), load(grads + x * kSmall + kLanes)};
#pragma GCC unroll 32
            for (int r = 0; r < kSummedTaps; ++r) {
              const Lanes pixel = all(pixels[(r / kRow) * picture.stride + 2 * x * kColours + r % kRow]);
              sum[r][0] += pixel * row[0];
              sum[r][1] += pixel * row[1];
            }
          }
        }
#pragma GCC unroll 32
        for (int r = 0; r < kSummedTaps; ++r) {
#pragma GCC unroll 8
          for (int v = 0; v < 2; ++v) {
            float* to = job.weight_sums + (tap + r) * kSmall + c + v * kLanes;
            store(to, load(to) + sum[r][v]);
          }
        }
      }
    }
  }

  // lanes of a block's columns, and pixels of its rows
  static constexpr int kUpColumns = kTaps / kLanes > 3 ? 3 : kTaps / kLanes;
  static constexpr int kUpPixels = kLanes == 16 ? (kUpColumns == 1 ? 16 : 8) : (kUpColumns == 2 ? 6 : 4);

  template <int kCount>
  static PYVAE_HD void up_pixels(const float* weights, const float* small, float* products, Ahead& next) {
    for (int n = 0; n < kTaps; n += kUpColumns * kLanes) {
      Block<Float, kCount, kUpColumns> block;
      block.clear();
      block.add(small, kSmall, 1, weights + n, kTaps, kSmall, next);
#pragma GCC unroll 32
      for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < kUpColumns; ++v) store(products + r * kTaps + n + v * kLanes, block.sum[r][v]);
      }
    }
  }

  static __attribute__((noinline)) void up_row(const Job& job, const float* small, float* products, Ahead& next) {
    const auto* weights = static_cast<const float*>(job.weights);
    int x = 0;
    for (; x + kUpPixels <= job.width; x += kUpPixels) {
      up_pixels<kUpPixels>(weights, small + x * kSmall, products + x * kTaps, next);
    }
    for (; x + 2 <= job.width; x += 2) up_pixels<2>(weights, small + x * kSmall, products + x * kTaps, next);
    if (x < job.width) up_pixels<1>(weights, small + x * kSmall, products + x * kTaps, next);
  }

  // A small pixel's four rows of taps lie together in a column; columns of even and odd number take two of four each.
  static PYVAE_HD void add_row(const Job& job, const float* products, float* columns, int rows) {
    typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
    const auto four = [](const float* from) { return *reinterpret_cast<const Four*>(from); };
    for (int colour = 0; colour < kColours; ++colour) {
      const float* own = products + colour * 16;
      float* column = columns + static_cast<int64_t>(colour) * 2 * job.width * rows;
      for (int x = 0; x < job.width; ++x, own += kTaps, column += 2 * rows) {
        *reinterpret_cast<Four*>(column) += four(own + 4) + four(own - kTaps + 12);
        *reinterpret_cast<Four*>(column + rows) += four(own + 8) + four(own + kTaps);
      }
    }
  }

  template <Finish kFinish>
  static __attribute__((noinline)) void finish_up(const Job& job, const float* columns, int rows, int64_t image) {
    const int height = 2 * job.height, width = 2 * job.width;
    const int64_t first = image * height * width * kColours;
    constexpr int kSide = 8;  // of a square that is turned within few lines of the cache
    const float slope = job.slope;
    double total[kColours] = {};
    for (int y0 = 0; y0 < height; y0 += kSide) {
      for (int x0 = 0; x0 < width; x0 += kSide) {
        for (int y = y0; y < std::min(y0 + kSide, height); ++y) {
          for (int x = x0; x < std::min(x0 + kSide, width); ++x) {
            for (int colour = 0; colour < kColours; ++colour) {
              const int64_t to = first + (static_cast<int64_t>(y) * width + x) * kColours + colour;
              float value = columns[(static_cast<int64_t>(colour) * width + x) * rows + y];
              if (kFinish == Finish::kLinear || kFinish == Finish::kActivated) value += job.bias[colour];
              if (kFinish == Finish::kActivated && value < 0.0f) value = slope == 0.0f ? 0.0f : value * slope;
              if (kFinish == Finish::kMasked && job.mask[to] <= 0.0f) value = slope == 0.0f ? 0.0f : value * slope;
              if (kFinish == Finish::kMasked || kFinish == Finish::kSummed) total[colour] += value;
              job.out[to] = value;
            }
          }
        }
      }
    }
    for (int colour = 0; job.is_gradient() && colour < kColours; ++colour) {
      job.sums[colour] += static_cast<float>(total[colour]);
    }
  }
};

inline Kernels end_kernels(int colours, int small) {
  const auto kernels = [](auto end) -> Kernels {
    using E = decltype(end);
    // its ranges are of images, not of tiles
    return {1, 0, E::kWeights, E::prepare_down, E::prepare_up, E::down, E::up, E::down_backward, E::up_backward,
            E::weight_gradient};
  };
  if (colours == 1) return small == 32 ? kernels(End<1, 32>()) : kernels(End<1, 64>());
  return small == 32 ? kernels(End<3, 32>()) : kernels(End<3, 64>());
}
