// One layer without gradients, all of it by pointers to float or double.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include "cpu/rnn.h"
#include "cpu/tuned.h"

namespace fastrnn {

struct LayerWeights {
  const void *w_ih, *w_hh, *b_ih, *b_hh;  // as torch has them, contiguous; biases may be null
};

struct Inference {
  cpu::Cell cell;
  bool is_double;
  bool half_weights;  // w_ih and w_hh are bfloat16, all else is float
  int directions;
  int64_t T, B, I, H;
  const void* x;
  int64_t x_step, x_row;  // strides; the features of a row are contiguous
  const void *h0, *c0;    // (D, B, H), or null: zeros
  LayerWeights weights[2];
  void *y, *h_n, *c_n;  // (T, B, D * H), (D, B, H); for a single step, y and h_n may be the same
};

void infer(const Inference& given);

// What tuning knows such layers by; `layers` are those of a stack, 0 for a cell.
inline cpu::Kind kind_of(const Inference& given, int64_t layers, bool trains = false) {
  using torch::headeronly::ScalarType;
  const ScalarType dtype = given.is_double ? ScalarType::Double : ScalarType::Float;
  return {static_cast<int>(given.cell), static_cast<int>(dtype), given.directions, layers, trains, false};
}

}  // namespace fastrnn
