// Numbers side by side in one register, PYVAE_LANES of them. Included once for each instruction set, in a namespace.

typedef float Lanes __attribute__((vector_size(4 * PYVAE_LANES)));
typedef int32_t LaneBits __attribute__((vector_size(4 * PYVAE_LANES)));
typedef Lanes UnalignedLanes __attribute__((aligned(4), may_alias));

constexpr int kLanes = PYVAE_LANES;
// A block of sums that stays in registers: of 32 with AVX-512, of 16 with AVX2.
constexpr int kBlockRows = kLanes == 16 ? 12 : 6;
constexpr int kBlockColumns = 2 * kLanes;

PYVAE_HD Lanes load(const float* from) { return *reinterpret_cast<const UnalignedLanes*>(from); }
PYVAE_HD void store(float* to, Lanes x) { *reinterpret_cast<UnalignedLanes*>(to) = x; }
PYVAE_HD Lanes all(float x) { return Lanes{} + x; }

// A ReLU, leaky if it has a slope, and its derivative. NaN goes through both, so that divergence is seen.
struct Activation {
  Lanes slope;
  LaneBits keep;  // without a slope nothing is kept, where the product with -inf would be NaN

  PYVAE_HD explicit Activation(float s) : slope(all(s)), keep(LaneBits{} - (s != 0.0f)) {}

  PYVAE_HD Lanes scaled(Lanes x) const { return (Lanes)((LaneBits)(x * slope) & keep); }
  PYVAE_HD Lanes forward(Lanes x) const { return x < Lanes{} ? scaled(x) : x; }
  PYVAE_HD Lanes backward(Lanes y, Lanes grad) const { return y <= Lanes{} ? scaled(grad) : grad; }
};

// Operands of products in float32, one number a word.
struct Float {
  using Word = float;
  using Row = Lanes;
  static constexpr int kDepth = 1;  // numbers along the sum in a word

  static PYVAE_HD Row row(const Word* from) { return load(from); }
  static PYVAE_HD Lanes add_product(Lanes sum, const Word* one, Row row) { return sum + all(*one) * row; }
};

// How a strip's operands lie, for sums along their channels: channels of a tile after one another.
template <class A>
struct AlongChannels;
// For sums along tiles: the same channel of kDepth tiles side by side.
template <class A>
struct AlongTiles;

template <>
struct AlongChannels<Float> {
  static constexpr int kTiles = 1;
  static PYVAE_HD void put(float* strip, int64_t tile, int channels, int c, const Lanes* of_tiles) {
    store(strip + tile * channels + c, of_tiles[0]);
  }
};
template <>
struct AlongTiles<Float> : AlongChannels<Float> {};
