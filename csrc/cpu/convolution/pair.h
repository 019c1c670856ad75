// Layers between maps of 32 and 64 channels, strip by strip of tiles, by one of the ways of tiles.h. Included once for
// each instruction set.

// Floats between the matrices of two positions, so that they do not fall onto the same lines of the cache.
constexpr int64_t kApart = 32;

template <class Way, class A>
struct Pair {
  using Word = typename A::Word;
  static constexpr int kBig = Way::kBigChannels, kSmall = Way::kSmallChannels;
  // what a strip needs fits a second-level cache of 512 KB
  static constexpr int kStrip = kBig == 64 ? 24 : 48;
  static constexpr int kDepth = Way::kDepth / A::kDepth, kUpDepth = kSmall / A::kDepth;  // words
  static constexpr int64_t kWeights = static_cast<int64_t>(Way::kPositions) * Way::kDepth * kSmall;
  static constexpr int64_t kGiven = static_cast<int64_t>(Way::kTaps) * kBig * kSmall;
  using Tiles = Strip<Way::kSide, kStrip>;
  static_assert(kStrip % kBlockRows == 0 && 4 * Way::kUpProducts * kSmall * kBig == kWeights);

  static constexpr int64_t position(int64_t words) { return kStrip * words + kApart; }
  // strips of operands, whether for sums along channels or along tiles, and of products
  static constexpr int64_t kBigPosition = position(kDepth), kSmallPosition = position(kUpDepth);
  static constexpr int64_t kToSmall = position(kSmall), kToBig = position(kBig);

  static constexpr int words(int tiles) { return (tiles + A::kDepth - 1) / A::kDepth; }
  // what the tiles of a strip from `tile` on have in a map
  static Range of_big(const float* map, int64_t tile) {
    constexpr int64_t kTile = 4 * Way::kSide * Way::kSide * kBig;
    return {map + tile * kTile, kStrip * kTile};
  }
  static Range of_small(const float* map, int64_t tile) {
    constexpr int64_t kTile = Way::kSide * Way::kSide * kSmall;
    return {map + tile * kTile, kStrip * kTile};
  }

  static Word* buffer(int64_t words) { return static_cast<Word*>(scratch.bytes(4 * static_cast<size_t>(words))); }

  static void prepare_down(const float* w, void* weights) {
    float* turned = reinterpret_cast<float*>(buffer(kGiven + kWeights));
    if constexpr (A::kDepth == 1) {
      Way::weights_down(w, turned, static_cast<float*>(weights));
    } else {
      Way::weights_down(w, turned, turned + kGiven);
      A::pack(turned + kGiven, kSmall, kWeights, static_cast<Word*>(weights));
    }
  }
  static void prepare_up(const float* w, void* weights) {
    if constexpr (A::kDepth == 1) {
      Way::weights_up(w, static_cast<float*>(weights));
    } else {
      float* floats = reinterpret_cast<float*>(buffer(kWeights));
      Way::weights_up(w, floats);
      A::pack(floats, kBig, kWeights, static_cast<Word*>(weights));
    }
  }

  static void down(const Job& job, int64_t first, int64_t last) {
    Word* big = buffer(Way::kPositions * (kBigPosition + kToSmall));
    float* products = reinterpret_cast<float*>(big + Way::kPositions * kBigPosition);
    for (int64_t at = first; at < last; at += kStrip) {
      const Tiles tiles(job, at, static_cast<int>(std::min<int64_t>(kStrip, last - at)));
      Way::template spread_big<AlongChannels<A>>(job, tiles, big, kBigPosition);
      down_products(job, tiles, big, products, of_big(job.big, at + kStrip), of_small(job.out, at));
    }
  }

  static void up(const Job& job, int64_t first, int64_t last) {
    Word* small = buffer(Way::kUpPositions * kSmallPosition + Way::kUpProducts * kToBig);
    for (int64_t at = first; at < last; at += kStrip) {
      const Tiles tiles(job, at, static_cast<int>(std::min<int64_t>(kStrip, last - at)));
      Way::template spread_up<AlongChannels<A>>(job, tiles, small, kSmallPosition);
      up_products(job, tiles, small);
    }
  }

  // of a convolution: job.small is the gradient that comes
  static void down_backward(const Job& job, int64_t first, int64_t last) {
    Word* own = buffer(std::max(Way::kPositions * (kBigPosition + kSmallPosition),
                                Way::kUpPositions * kSmallPosition + Way::kUpProducts * kToBig));
    for (int64_t at = first; at < last; at += kStrip) {
      const Tiles tiles(job, at, static_cast<int>(std::min<int64_t>(kStrip, last - at)));
      if (job.weight_sums) {
        weight_products(job, tiles, own, job.out ? of_big(job.out, at) : of_big(job.big, at + kStrip),
                        of_small(job.small, at + kStrip));
      }
      if (job.out) {
        Way::template spread_up<AlongChannels<A>>(job, tiles, own, kSmallPosition);
        up_products(job, tiles, own);
      }
    }
  }

  // of a transposed convolution: job.big is the gradient that comes
  static void up_backward(const Job& job, int64_t first, int64_t last) {
    Word* big = buffer(Way::kPositions * (kBigPosition + std::max(kSmallPosition, kToSmall)));
    float* products = reinterpret_cast<float*>(big + Way::kPositions * kBigPosition);
    for (int64_t at = first; at < last; at += kStrip) {
      const Tiles tiles(job, at, static_cast<int>(std::min<int64_t>(kStrip, last - at)));
      const Range small_next = of_small(job.small, at + kStrip);
      if (job.weight_sums) {
        weight_products(job, tiles, big, of_big(job.big, at + kStrip), job.out ? of_small(job.out, at) : small_next);
      }
      if (job.out) {
        // where a word is one number, what lies along tiles lies along channels too
        if (A::kDepth > 1 || !job.weight_sums) {
          Way::template spread_big<AlongChannels<A>>(job, tiles, big, kBigPosition);
        }
        down_products(job, tiles, big, products, small_next, small_next);
      }
    }
  }

 private:
  static void down_products(const Job& job, const Tiles& tiles, const Word* big, float* products, Range one,
                            Range other) {
    Ahead ahead(one, other, Way::kPositions * multiply_steps(tiles.count, kDepth, kSmall));
    const Word* weights = static_cast<const Word*>(job.weights);
    for (int q = 0; q < Way::kPositions; ++q) {
      multiply<A, kDepth, kSmall>(big + q * kBigPosition, weights + static_cast<int64_t>(q) * kDepth * kSmall,
                                  products + q * kToSmall, tiles.count, ahead);
    }
    Way::finish_small(job, tiles, products, kToSmall);
  }

  static void up_products(const Job& job, const Tiles& tiles, const Word* small) {
    float* products = reinterpret_cast<float*>(const_cast<Word*>(small) + Way::kUpPositions * kSmallPosition);
    const int64_t next = tiles.first + kStrip;
    Ahead ahead(of_big(job.finish == Finish::kMasked ? job.mask : job.out, next), of_small(job.small, next),
                4 * Way::kUpProducts * multiply_steps(tiles.count, kUpDepth, kBig));
    const Word* weights = static_cast<const Word*>(job.weights);
    for (int parity = 0; parity < 4; ++parity) {
      for (int q = 0; q < Way::kUpProducts; ++q) {
        const int64_t matrix = static_cast<int64_t>(parity) * Way::kUpProducts + q;
        multiply<A, kUpDepth, kBig>(small + Way::up_position(parity, q) * kSmallPosition,
                                    weights + matrix * kUpDepth * kBig, products + q * kToBig, tiles.count, ahead);
      }
      Way::finish_big(job, tiles, parity, products, kToBig);
    }
  }

  static void weight_products(const Job& job, const Tiles& tiles, Word* big, Range one, Range other) {
    Word* small = big + Way::kPositions * kBigPosition;
    Way::template spread_big<AlongTiles<A>>(job, tiles, big, kBigPosition);
    Way::template spread_small<AlongTiles<A>>(job, tiles, small, kSmallPosition);
    Ahead ahead(one, other,
                Way::kPositions * multiply_transposed_steps(kSmall, Way::kDepth, words(tiles.count)));
    for (int q = 0; q < Way::kPositions; ++q) {
      multiply_transposed<A, kSmall, Way::kDepth>(small + q * kSmallPosition, big + q * kBigPosition,
                                                  job.weight_sums + static_cast<int64_t>(q) * kSmall * Way::kDepth,
                                                  words(tiles.count), ahead);
    }
  }
};

template <class Way, class A>
constexpr Kernels kernels_of() {
  using P = Pair<Way, A>;
  return {P::kStrip, Way::kSide, P::kWeights,       P::prepare_down, P::prepare_up,
          P::down,   P::up,      P::down_backward, P::up_backward,  Way::weight_gradient};
}

template <template <int, int> class Way, class A>
Kernels kernels_between(int big, int small) {
  if (big == 32) return small == 32 ? kernels_of<Way<32, 32>, A>() : kernels_of<Way<32, 64>, A>();
  return small == 32 ? kernels_of<Way<64, 32>, A>() : kernels_of<Way<64, 64>, A>();
}
