// The gradient of an image's activations, and its sums over pixels. Included once for each instruction set.

// Sixteen pixels side by side, or channels where these are many: the same sums whatever the width of a register.
inline void activation_backward(const float* grad, const float* y, float slope, float* out, float* sums, int64_t pixels,
                                int channels) {
  constexpr int kSideBySide = 16;
  const Activation activation(slope);
  const int period = channels % kSideBySide == 0 ? channels : kSideBySide * channels;
  const int64_t floats = pixels * channels, whole = floats / period * period;
  auto* total = static_cast<float*>(scratch.bytes(static_cast<size_t>(period) * sizeof(float)));
  std::memset(total, 0, static_cast<size_t>(period) * sizeof(float));
  for (int64_t i = 0; i < whole; i += period) {
    for (int c = 0; c < period; c += kLanes) {
      Lanes value = load(grad + i + c);
      if (y != nullptr) {
        value = activation.backward(load(y + i + c), value);
        store(out + i + c, value);
      }
      store(total + c, load(total + c) + value);
    }
  }
  for (int64_t i = whole; i < floats; ++i) {
    float value = grad[i];
    if (y != nullptr) {
      if (y[i] <= 0.0f) value = slope == 0.0f ? 0.0f : value * slope;
      out[i] = value;
    }
    total[i - whole] += value;
  }
  for (int i = 0; i < period; ++i) sums[i % channels] += total[i];
}
