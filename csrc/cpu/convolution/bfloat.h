// Operands of products in bfloat16, two numbers along the sum in a word, for processors that multiply those. Included in
// a namespace of their instruction set.

typedef uint16_t Halves __attribute__((vector_size(2 * PYVAE_LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * PYVAE_LANES)));

struct Bfloat {
  using Word = uint32_t;
  using Row = __m512bh;
  static constexpr int kDepth = 2;

  static PYVAE_HD Row row(const Word* from) { return (__m512bh)load(reinterpret_cast<const float*>(from)); }
  static PYVAE_HD Lanes add_product(Lanes sum, const Word* one, Row row) {
    return _mm512_dpbf16_ps(sum, (__m512bh)(Words{} + *one), row);
  }
  static PYVAE_HD Halves rounded(Lanes x) { return (Halves)_mm512_cvtneps_pbh(x); }
  static PYVAE_HD void put_both(Lanes first, Lanes second, Word* to) {
    const Words low = __builtin_convertvector(rounded(first), Words);
    const Words high = __builtin_convertvector(rounded(second), Words);
    store(reinterpret_cast<float*>(to), (Lanes)(low | high << 16));
  }
  // rows of so many numbers that are summed over, two of them in one of words
  static void pack(const float* rows, int numbers, int64_t count, Word* words) {
    for (int64_t row = 0; row < count; row += 2 * numbers, words += numbers) {
      for (int c = 0; c < numbers; c += kLanes) {
        put_both(load(rows + row + c), load(rows + row + numbers + c), words + c);
      }
    }
  }
};

template <>
struct AlongChannels<Bfloat> {
  static constexpr int kTiles = 1;
  static PYVAE_HD void put(uint32_t* strip, int64_t tile, int channels, int c, const Lanes* of_tiles) {
    const Halves halves = Bfloat::rounded(of_tiles[0]);
    std::memcpy(reinterpret_cast<uint16_t*>(strip) + tile * channels + c, &halves, sizeof halves);
  }
};
template <>
struct AlongTiles<Bfloat> {
  static constexpr int kTiles = 2;
  static PYVAE_HD void put(uint32_t* strip, int64_t tile, int channels, int c, const Lanes* of_tiles) {
    Bfloat::put_both(of_tiles[0], of_tiles[1], strip + tile / 2 * channels + c);
  }
};
