// What the kernels of linear.cpp are told, whatever the instruction set.
#pragma once
#include <cstdint>
#include <vector>

#include "../scratch.h"

namespace pyvae::linear {

// Where the features of a row lie in a map, and which lies at a place; empty where these are the same.
struct Order {
  std::vector<int64_t> places, features;
};

// Numbers of a matrix: at(i, j) is data[i * row + place(j)].
struct Matrix {
  float* data;
  int64_t row;
  const Order* order = nullptr;

  bool in_order() const { return order == nullptr || order->places.empty(); }
  int64_t place(int64_t j) const { return in_order() ? j : order->places[static_cast<size_t>(j)]; }
  int64_t feature(int64_t at) const { return in_order() ? at : order->features[static_cast<size_t>(at)]; }
};

constexpr int kPanel = 64;  // columns of the second operand that are made ready together
constexpr int kBlocksOfUnit = 2;

// c [rows, columns] = a [rows, depth] b [depth, columns], by units: some of the rows, of a panel of columns.
struct Product {
  int64_t rows, columns, depth;
  const float* a;  // at(i, k) is a[i * a_row + k * a_step]
  int64_t a_row, a_step;
  Matrix b;
  bool b_turned;  // b is of columns side by side: at(k, j) is that of (j, k)
  Matrix c;
  bool c_turned;
  // where c is a layer's output: of its features, which are columns of c, or its rows where it is turned
  const float* bias = nullptr;
  bool activated = false;
  float slope = 0.0f;
  int block = 1;  // rows at once, of an instruction set

  int64_t blocks() const { return (rows + block - 1) / block; }
  int64_t groups() const { return (blocks() + kBlocksOfUnit - 1) / kBlocksOfUnit; }
  int64_t panels() const { return (columns + kPanel - 1) / kPanel; }
  int64_t units() const { return panels() * groups(); }
};

// The gradient of a layer's output, and what it is before the activation.
struct Masked {
  int64_t batch;
  Matrix grad, y;  // y is that output, or nothing where there is no activation
  float slope;
  float* out;    // [batch, features]
  double* sums;  // [features]
};

struct Kernels {
  int block;
  // units [first, last)
  void (*multiply)(const Product&, int64_t first, int64_t last);
  // features [first, last)
  void (*mask)(const Masked&, int64_t first, int64_t last);
};

}  // namespace pyvae::linear
