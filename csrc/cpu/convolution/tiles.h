// Two ways of making a layer's products: by Winograd's tiles for kernel 4, stride 2, padding 1, and by patches for kernel
// 2, stride 2. Included once for each instruction set.

// Where a tile of kSide x kSide pixels of the small map lies.
struct Place {
  int64_t small, big;              // its first pixel in either map, of all images
  int64_t small_image, big_image;  // the first of its image
  int y, x;                        // its first pixel, in the small map
};

// Tiles [first, first + count) of small maps of batch x height x width pixels.
template <int kSide, int kMost>
struct Strip {
  int64_t first;
  int count;
  Place place[kMost];

  Strip(const Job& job, int64_t first, int tiles) : first(first), count(tiles) {
    const int columns = job.width / kSide, rows = job.height / kSide;
    const int64_t tile_row = first / columns;
    int64_t image = tile_row / rows;
    int y = static_cast<int>(tile_row - image * rows) * kSide, x = static_cast<int>(first - tile_row * columns) * kSide;
    const int64_t pixels = static_cast<int64_t>(job.height) * job.width;
    for (int s = 0; s < count; ++s) {
      const int64_t big = image * 4 * pixels;
      place[s] = {image * pixels + y * job.width + x, big + static_cast<int64_t>(4 * y) * job.width + 2 * x,
                  image * pixels, big, y, x};
      x += kSide;
      if (x + kSide > job.width) x = 0, y += kSide;
      if (y + kSide > job.height) y = 0, ++image;
    }
  }

  // the last tile stands in for those that would complete a word
  const Place& at(int s) const { return place[std::min(s, count - 1)]; }
};

// What is outside of a map.
alignas(64) constexpr float kNothing[64] = {};

// The kN x kN pixels from (y, x) on, some of which may lie outside.
template <int kN>
struct Border {
  const float* pixel[kN][kN];

  PYVAE_HD Border(const float* image, int height, int width, int channels, int y, int x) {
    for (int i = 0; i < kN; ++i) {
      const bool in_row = y + i >= 0 && y + i < height;
      const float* row = image + (static_cast<int64_t>(y + i) * width + x) * channels;
      for (int j = 0; j < kN; ++j) {
        pixel[i][j] = in_row && x + j >= 0 && x + j < width ? row + j * channels : kNothing;
      }
    }
  }
  PYVAE_HD Lanes at(int i, int j, int c) const { return load(pixel[i][j] + c); }
};

// The same of pixels that all lie inside.
struct Inside {
  const float* first;
  int64_t row;
  int channels;

  PYVAE_HD Lanes at(int i, int j, int c) const { return load(first + i * row + j * channels + c); }
};

// Calls visit with the pixels from (y, x) on, of an image.
template <int kN, class Visit>
PYVAE_HD void with_window(const float* image, int height, int width, int channels, int y, int x, const Visit& visit) {
  if (y >= 0 && x >= 0 && y + kN <= height && x + kN <= width) {
    const int64_t row = static_cast<int64_t>(width) * channels;
    visit(Inside{image + y * row + x * channels, row, channels});
  } else {
    visit(Border<kN>(image, height, width, channels, y, x));
  }
}

// What becomes of sums, channels [c, c + kLanes) of a pixel at a time.
template <Finish kFinish>
struct Finisher {
  Activation activation;
  const float *bias, *mask;
  float* out;

  explicit Finisher(const Job& job) : activation(job.slope), bias(job.bias), mask(job.mask), out(job.out) {}

  PYVAE_HD void operator()(int64_t at, int c, Lanes y, Lanes& sum) const {
    if (kFinish == Finish::kLinear || kFinish == Finish::kActivated) y += load(bias + c);
    if (kFinish == Finish::kActivated) y = activation.forward(y);
    if (kFinish == Finish::kMasked) y = activation.backward(load(mask + at + c), y);
    if (kFinish == Finish::kMasked || kFinish == Finish::kSummed) sum += y;
    store(out + at + c, y);
  }
};

// Calls visit with a Finisher of the job's kind.
template <class Visit>
PYVAE_HD void with_finisher(const Job& job, const Visit& visit) {
  switch (job.finish) {
    case Finish::kLinear: return visit(Finisher<Finish::kLinear>(job));
    case Finish::kActivated: return visit(Finisher<Finish::kActivated>(job));
    case Finish::kMasked: return visit(Finisher<Finish::kMasked>(job));
    case Finish::kSummed: return visit(Finisher<Finish::kSummed>(job));
  }
}

// Sums over the pixels of a strip, which are then added to the job's.
template <int kChannels>
struct Sums {
  alignas(64) float value[kChannels] = {};

  PYVAE_HD Lanes at(int c) const { return load(value + c); }
  PYVAE_HD void put(int c, Lanes x) { store(value + c, x); }
  PYVAE_HD void add_to(const Job& job) const {
    if (!job.is_gradient()) return;
    for (int c = 0; c < kChannels; c += kLanes) store(job.sums + c, load(job.sums + c) + at(c));
  }
};

// kBig and kSmall are channels; a strip's buffers are of kPositions products, each of a matrix of its own.
template <int kBig, int kSmall>
struct Winograd {
  static constexpr int kBigChannels = kBig, kSmallChannels = kSmall;
  static constexpr int kSide = 2;
  static constexpr int kDepth = 4 * kBig;  // four parities of the big map
  static constexpr int kTaps = 16, kPositions = 9, kUpPositions = 25, kUpProducts = 9;

  // [kPositions][tiles][4 parities][kBig]
  template <class Layout, class Tiles, class Word>
  static __attribute__((noinline)) void spread_big(const Job& job, const Tiles& tiles, Word* strip, int64_t position) {
    for (int s = 0; s < tiles.count; s += Layout::kTiles) {
      const auto window = [&](int t, const auto& visit) {
        const Place& place = tiles.at(s + t);
        with_window<6>(job.big + place.big_image * kBig, 2 * job.height, 2 * job.width, kBig, 2 * place.y - 1,
                       2 * place.x - 1, visit);
      };
      if constexpr (Layout::kTiles == 1) {
        window(0, [&](const auto& one) {
          for_each_parity([&](int parity, int c) {
            Lanes value[9][1];
            spread_window(one, parity, c, value, 0, true);
            put<Layout>(strip, position, s, kDepth, parity * kBig + c, value);
          });
        });
      } else {
        window(0, [&](const auto& one) {
          window(1, [&](const auto& other) {
            for_each_parity([&](int parity, int c) {
              Lanes value[9][2];
              spread_window(one, parity, c, value, 0, true);
              spread_window(other, parity, c, value, 1, s + 1 < tiles.count);
              put<Layout>(strip, position, s, kDepth, parity * kBig + c, value);
            });
          });
        });
      }
    }
  }

  // [kPositions][tiles][kSmall], of gradients for those of the weights
  template <class Layout, class Tiles, class Word>
  static __attribute__((noinline)) void spread_small(const Job& job, const Tiles& tiles, Word* strip, int64_t position) {
    const int64_t row = static_cast<int64_t>(job.width) * kSmall;
    for (int s = 0; s < tiles.count; s += Layout::kTiles) {
      for (int c = 0; c < kSmall; c += kLanes) {
        Lanes value[9][Layout::kTiles];
#pragma GCC unroll 2
        for (int t = 0; t < Layout::kTiles; ++t) {
          const float* from = job.small + tiles.at(s + t).small * kSmall + c;
          const Three<Lanes> top = both(load(from), load(from + kSmall));
          const Three<Lanes> bottom = both(load(from + row), load(from + row + kSmall));
          const bool there = s + t < tiles.count;
          put_column(both(top.first, bottom.first), value, 0, t, there);
          put_column(both(top.middle, bottom.middle), value, 1, t, there);
          put_column(both(top.last, bottom.last), value, 2, t, there);
        }
        put<Layout>(strip, position, s, kSmall, c, value);
      }
    }
  }

  // [kUpPositions][tiles][kSmall]
  template <class Layout, class Tiles, class Word>
  static __attribute__((noinline)) void spread_up(const Job& job, const Tiles& tiles, Word* strip, int64_t position) {
    for (int s = 0; s < tiles.count; ++s) {
      const Place& place = tiles.place[s];
      with_window<4>(job.small + place.small_image * kSmall, job.height, job.width, kSmall, place.y - 1, place.x - 1,
                     [&](const auto& window) {
        for (int c = 0; c < kSmall; c += kLanes) {
          Five<Lanes> row[4];
#pragma GCC unroll 4
          for (int i = 0; i < 4; ++i) {
            row[i] = spread(window.at(i, 0, c), window.at(i, 1, c), window.at(i, 2, c), window.at(i, 3, c));
          }
#pragma GCC unroll 5
          for (int j = 0; j < 5; ++j) {
            const Five<Lanes> column = spread(row[0].value[j], row[1].value[j], row[2].value[j], row[3].value[j]);
#pragma GCC unroll 5
            for (int i = 0; i < 5; ++i) Layout::put(strip + (5 * i + j) * position, s, kSmall, c, &column.value[i]);
          }
        }
      });
    }
  }
  static constexpr int up_position(int parity, int product) {
    return (product / 3 + 2 * (parity >> 1)) * 5 + product % 3 + 2 * (parity & 1);
  }

  template <class Tiles>
  static __attribute__((noinline)) void finish_small(const Job& job, const Tiles& tiles, const float* products,
                                                     int64_t position) {
    with_finisher(job, [&](const auto finish) {
      const int64_t row = static_cast<int64_t>(job.width) * kSmall;
      Sums<kSmall> sums;
      for (int s = 0; s < tiles.count; ++s) {
        finish_tile<kSmall>(products + s * kSmall, position, tiles.place[s].small * kSmall, row, kSmall, finish, sums);
      }
      sums.add_to(job);
    });
  }

  template <class Tiles>
  static __attribute__((noinline)) void finish_big(const Job& job, const Tiles& tiles, int parity,
                                                   const float* products, int64_t position) {
    with_finisher(job, [&](const auto finish) {
      const int64_t row = static_cast<int64_t>(2 * job.width) * kBig;
      const int64_t own = (parity >> 1) * row + (parity & 1) * kBig;
      Sums<kBig> sums;
      for (int s = 0; s < tiles.count; ++s) {
        finish_tile<kBig>(products + s * kBig, position, tiles.place[s].big * kBig + own, 2 * row, 2 * kBig, finish,
                          sums);
      }
      sums.add_to(job);
    });
  }

  // [kPositions][kDepth][kSmall] of w [kSmall][16 taps][kBig]; `turned` has room for as many numbers as w
  static void weights_down(const float* w, float* turned, float* out) {
    constexpr int kTap = kBig * kSmall;
    for (int line = 0; line < 16 * kBig; line += 16) {
      for (int s = 0; s < kSmall; ++s) {
        for (int k = line; k < line + 16; ++k) turned[k * kSmall + s] = w[s * 16 * kBig + k];
      }
    }
    for (int parity = 0; parity < 4; ++parity) {
      const float* tap = turned + ((parity >> 1) * 4 + (parity & 1)) * kTap;
      for (int e = 0; e < kTap; e += kLanes) {
        const Three<Lanes> top = both(load(tap + e), load(tap + 2 * kTap + e));
        const Three<Lanes> bottom = both(load(tap + 8 * kTap + e), load(tap + 10 * kTap + e));
        Lanes value[9];
        put_both(both(top.first, bottom.first), value, 0);
        put_both(both(top.middle, bottom.middle), value, 1);
        put_both(both(top.last, bottom.last), value, 2);
        for (int q = 0; q < 9; ++q) store(out + (static_cast<int64_t>(q) * 4 + parity) * kTap + e, value[q]);
      }
    }
  }

  // [4 parities][kUpProducts][kSmall][kBig]
  static void weights_up(const float* w, float* out) {
    for (int parity = 0; parity < 4; ++parity) {
      const bool odd_y = parity >> 1, odd_x = parity & 1;
      for (int s = 0; s < kSmall; ++s) {
        for (int c = 0; c < kBig; c += kLanes) {
          Three<Lanes> row[2];
          for (int i = 0; i < 2; ++i) {
            const float* taps = w + (s * 16 + tap_transposed(odd_y, i) * 4) * kBig + c;
            row[i] = both_transposed(odd_x, load(taps + tap_transposed(odd_x, 0) * kBig),
                                     load(taps + tap_transposed(odd_x, 1) * kBig));
          }
          Lanes value[9];
          put_both(both_transposed(odd_y, row[0].first, row[1].first), value, 0);
          put_both(both_transposed(odd_y, row[0].middle, row[1].middle), value, 1);
          put_both(both_transposed(odd_y, row[0].last, row[1].last), value, 2);
          for (int q = 0; q < 9; ++q) {
            store(out + ((static_cast<int64_t>(parity) * 9 + q) * kSmall + s) * kBig + c, value[q]);
          }
        }
      }
    }
  }

  // of sums [parts][kPositions][kSmall][kDepth]
  static void weight_gradient(const float* sums, int64_t parts, float* grad, int first, int last) {
    constexpr int64_t kPart = static_cast<int64_t>(kPositions) * kSmall * kDepth;
    for (int s = first; s < last; ++s) {
      for (int parity = 0; parity < 4; ++parity) {
        for (int c = 0; c < kBig; c += kLanes) {
          Lanes m[9];
          for (int q = 0; q < 9; ++q) {
            const float* own = sums + (static_cast<int64_t>(q) * kSmall + s) * kDepth + parity * kBig + c;
            m[q] = load(own);
            for (int64_t part = 1; part < parts; ++part) m[q] += load(own + part * kPart);
          }
          Two<Lanes> row[3];
          for (int i = 0; i < 3; ++i) row[i] = gather(m[3 * i], m[3 * i + 1], m[3 * i + 2]);
          const Two<Lanes> left = gather(row[0].first, row[1].first, row[2].first);
          const Two<Lanes> right = gather(row[0].last, row[1].last, row[2].last);
          float* tap = grad + (s * 16 + (parity >> 1) * 4 + (parity & 1)) * kBig + c;
          store(tap, left.first);
          store(tap + 2 * kBig, right.first);
          store(tap + 8 * kBig, left.last);
          store(tap + 10 * kBig, right.last);
        }
      }
    }
  }

 private:
  template <class Visit>
  static PYVAE_HD void for_each_parity(const Visit& visit) {
#pragma GCC unroll 4
    for (int parity = 0; parity < 4; ++parity) {
      for (int c = 0; c < kBig; c += kLanes) visit(parity, c);
    }
  }
  template <class Layout, class Word, int kTiles>
  static PYVAE_HD void put(Word* strip, int64_t position, int s, int channels, int c, const Lanes (&value)[9][kTiles]) {
#pragma GCC unroll 9
    for (int q = 0; q < 9; ++q) Layout::put(strip + q * position, s, channels, c, value[q]);
  }
  template <class Pixels, int kTiles>
  static PYVAE_HD void spread_window(const Pixels& window, int parity, int c, Lanes (&value)[9][kTiles], int t,
                                     bool there) {
    const int py = parity >> 1, px = parity & 1;
    Three<Lanes> row[3];
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      const int y = 2 * i + py;
      row[i] = spread(window.at(y, px, c), window.at(y, px + 2, c), window.at(y, px + 4, c));
    }
    put_column(spread(row[0].first, row[1].first, row[2].first), value, 0, t, there);
    put_column(spread(row[0].middle, row[1].middle, row[2].middle), value, 1, t, there);
    put_column(spread(row[0].last, row[1].last, row[2].last), value, 2, t, there);
  }
  // a tile that is not there adds nothing to a sum along tiles
  template <int kTiles>
  static PYVAE_HD void put_column(Three<Lanes> column, Lanes (&value)[9][kTiles], int j, int t, bool there) {
    value[j][t] = there ? column.first : Lanes{};
    value[3 + j][t] = there ? column.middle : Lanes{};
    value[6 + j][t] = there ? column.last : Lanes{};
  }
  static PYVAE_HD void put_both(Three<Lanes> column, Lanes* value, int j) {
    value[j] = column.first;
    value[3 + j] = column.middle;
    value[6 + j] = column.last;
  }

  template <int kChannels, class Finish>
  static PYVAE_HD void finish_tile(const float* m, int64_t position, int64_t to, int64_t down, int64_t right,
                                   const Finish& finish, Sums<kChannels>& sums) {
    for (int c = 0; c < kChannels; c += kLanes) {
      Two<Lanes> row[3];
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        const float* own = m + 3 * i * position + c;
        row[i] = gather(load(own), load(own + position), load(own + 2 * position));
      }
      const Two<Lanes> left = gather(row[0].first, row[1].first, row[2].first);
      const Two<Lanes> right_side = gather(row[0].last, row[1].last, row[2].last);
      Lanes sum{};
      finish(to, c, left.first, sum);
      finish(to + right, c, right_side.first, sum);
      finish(to + down, c, left.last, sum);
      finish(to + down + right, c, right_side.last, sum);
      sums.put(c, sums.at(c) + sum);
    }
  }
};

// A patch of 2 x 2 pixels of the big map is a row of the product.
template <int kBig, int kSmall>
struct Patches {
  static constexpr int kBigChannels = kBig, kSmallChannels = kSmall;
  static constexpr int kSide = 1;
  static constexpr int kDepth = 4 * kBig;
  static constexpr int kTaps = 4, kPositions = 1, kUpPositions = 1, kUpProducts = 1;

  template <class Layout, class Tiles, class Word>
  static void spread_big(const Job& job, const Tiles& tiles, Word* strip, int64_t) {
    const int64_t row = static_cast<int64_t>(2 * job.width) * kBig;
    for (int s = 0; s < tiles.count; s += Layout::kTiles) {
      for (int c = 0; c < kDepth; c += kLanes) {
        Lanes value[Layout::kTiles];
        for (int t = 0; t < Layout::kTiles; ++t) {
          const float* patch = job.big + tiles.at(s + t).big * kBig + c / (2 * kBig) * row + c % (2 * kBig);
          value[t] = s + t < tiles.count ? load(patch) : Lanes{};
        }
        Layout::put(strip, s, kDepth, c, value);
      }
    }
  }

  template <class Layout, class Tiles, class Word>
  static void spread_small(const Job& job, const Tiles& tiles, Word* strip, int64_t) {
    for (int s = 0; s < tiles.count; s += Layout::kTiles) {
      for (int c = 0; c < kSmall; c += kLanes) {
        Lanes value[Layout::kTiles];
        for (int t = 0; t < Layout::kTiles; ++t) {
          value[t] = s + t < tiles.count ? load(job.small + tiles.at(s + t).small * kSmall + c) : Lanes{};
        }
        Layout::put(strip, s, kSmall, c, value);
      }
    }
  }

  template <class Layout, class Tiles, class Word>
  static void spread_up(const Job& job, const Tiles& tiles, Word* strip, int64_t) {
    spread_small<Layout>(job, tiles, strip, 0);
  }
  static constexpr int up_position(int, int) { return 0; }

  template <class Tiles>
  static void finish_small(const Job& job, const Tiles& tiles, const float* products, int64_t) {
    with_finisher(job, [&](const auto finish) {
      Sums<kSmall> sums;
      for (int s = 0; s < tiles.count; ++s) {
        finish_pixel<kSmall>(products + s * kSmall, tiles.place[s].small * kSmall, finish, sums);
      }
      sums.add_to(job);
    });
  }

  template <class Tiles>
  static void finish_big(const Job& job, const Tiles& tiles, int parity, const float* products, int64_t) {
    with_finisher(job, [&](const auto finish) {
      const int64_t own = static_cast<int64_t>(parity >> 1) * 2 * job.width + (parity & 1);
      Sums<kBig> sums;
      for (int s = 0; s < tiles.count; ++s) {
        finish_pixel<kBig>(products + s * kBig, (tiles.place[s].big + own) * kBig, finish, sums);
      }
      sums.add_to(job);
    });
  }

  // [kDepth][kSmall] of w [kSmall][4 taps][kBig]
  static void weights_down(const float* w, float*, float* out) {
    for (int s = 0; s < kSmall; ++s) {
      for (int k = 0; k < kDepth; ++k) out[k * kSmall + s] = w[s * kDepth + k];
    }
  }

  // [4 taps][kSmall][kBig]
  static void weights_up(const float* w, float* out) {
    for (int s = 0; s < kSmall; ++s) {
      for (int tap = 0; tap < 4; ++tap) {
        std::memcpy(out + (tap * kSmall + s) * kBig, w + (s * 4 + tap) * kBig, kBig * sizeof(float));
      }
    }
  }

  static void weight_gradient(const float* sums, int64_t parts, float* grad, int first, int last) {
    for (int64_t i = static_cast<int64_t>(first) * kDepth; i < static_cast<int64_t>(last) * kDepth; i += kLanes) {
      Lanes sum = load(sums + i);
      for (int64_t part = 1; part < parts; ++part) sum += load(sums + part * kSmall * kDepth + i);
      store(grad + i, sum);
    }
  }

 private:
  template <int kChannels, class Finish>
  static PYVAE_HD void finish_pixel(const float* product, int64_t to, const Finish& finish, Sums<kChannels>& sums) {
    for (int c = 0; c < kChannels; c += kLanes) {
      Lanes sum = sums.at(c);
      finish(to, c, load(product + c), sum);
      sums.put(c, sum);
    }
  }
};
