// Raw operators on the LibTorch stable ABI: one binary for every torch from 2.11, and no Python in it. Gradients,
// shapes for torch.compile and friendly errors are Python's.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(pyvae_native, m) {
  // The first dimension is the batch where rows is negative; a loss is the scaled sum of so many images.
  m.def(
      "bernoulli_nll_fwd(Tensor logits, Tensor target, float target_scale, bool packed, float scale=1.0, int rows=-1,"
      " int images=1) -> Tensor");
  m.def(
      "bernoulli_nll_fwd_bwd(Tensor logits, Tensor target, float target_scale, bool packed, float scale, int rows=-1,"
      " int images=1) -> (Tensor, Tensor)");
  m.def("reparameterize_kl_fwd(Tensor mu, Tensor logvar, Tensor key, int stream) -> (Tensor, Tensor)");
  m.def(
      "reparameterize_kl_bwd(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar, Tensor key, int stream)"
      " -> (Tensor, Tensor)");
  m.def(
      "reparameterize_kl_fwd_keeping(Tensor mu, Tensor logvar, Tensor key, int stream)"
      " -> (Tensor z, Tensor kl, Tensor shift)");
  m.def(
      "reparameterize_kl_bwd_kept(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar, Tensor shift)"
      " -> (Tensor, Tensor)");
  m.def(
      "aggregate_log_density_fwd(Tensor z, Tensor mu, Tensor logvar, float own, float successor, float other)"
      " -> Tensor");
  m.def(
      "aggregate_log_density_bwd(Tensor grad, Tensor z, Tensor mu, Tensor logvar, Tensor log_q, float own,"
      " float successor, float other) -> (Tensor, Tensor, Tensor)");
  m.def(
      "importance_log_weight_fwd(Tensor logits, Tensor target, Tensor z, Tensor mu, Tensor logvar, float target_scale,"
      " bool packed) -> (Tensor, Tensor)");
  m.def(
      "importance_log_weight_bwd(Tensor grad_likelihood, Tensor grad_ratio, Tensor logits, Tensor target, Tensor z,"
      " Tensor mu, Tensor logvar, float target_scale, bool packed) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("gather_bits(Tensor store, Tensor index, int pixels, ScalarType dtype) -> (Tensor, Tensor)");
  // Layers one after another. Maps are [B, H, W, C]; a weight's first dimension is that of the smaller map's channels. A
  // slope below 0 is that of no activation, 0 a ReLU's. What is not wanted has shape [0].
  m.def(
      "convolutions_fwd(Tensor x, Tensor[] weights, Tensor?[] biases, bool[] transposed, float[] slopes, bool bf16,"
      " bool keep) -> Tensor[]");
  m.def(
      "convolutions_bwd(Tensor grad, Tensor[] maps, Tensor? y, Tensor[] weights, bool[] transposed, float[] slopes,"
      " bool wants_x, bool[] wants_weights, bool[] wants_biases, bool bf16)"
      " -> (Tensor grad_x, Tensor[] grad_weights, Tensor[] grad_biases)");
  // Likewise of rows; beside them, as many pixels as a map has whose numbers, channels first, are those of a row below or
  // above, else 1.
  m.def(
      "linears_fwd(Tensor x, Tensor[] weights, Tensor?[] biases, bool[] transposed, float[] slopes, int[] pixels_below,"
      " int[] pixels_above) -> Tensor[]");
  m.def(
      "linears_bwd(Tensor grad, Tensor[] maps, Tensor? y, Tensor[] weights, bool[] transposed, float[] slopes,"
      " int[] pixels_below, int[] pixels_above, bool wants_x, bool[] wants_weights, bool[] wants_biases)"
      " -> (Tensor grad_x, Tensor[] grad_weights, Tensor[] grad_biases)");
  m.def("convolution_level(int? at_most=None) -> int");
  // The end of a step, as pyvae/engine/ledger.py has it: found_inf is 1 where a value is not finite, or a step was not.
  m.def("norm(Tensor[] tensors) -> Tensor");
  m.def(
      "ledger(Tensor[] values, Tensor kl, Tensor(a!) bad_step, Tensor(b!) key, Tensor(c!) row, Tensor(d!) bad_row,"
      " Tensor(e!) ring, Tensor(f!)[] control, Tensor[] moved, int every, bool settle) -> Tensor found_inf");
  m.def("permute_dims(Tensor? first, Tensor z, Tensor key, int stream) -> (Tensor, Tensor)");
  m.def("code_histogram(Tensor codes, Tensor? factors, int[] factor_sizes, Tensor edges) -> Tensor");
  m.def(
      "posterior_density(Tensor mu, Tensor logvar, Tensor low, Tensor step, int[] factor_sizes, int nodes)"
      " -> Tensor");
}
