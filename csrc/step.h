// One step of one layer, all of it by pointers to contiguous float or double.
#pragma once

#include "cpu/rnn.h"

namespace fastrnn {

struct Step {
  cpu::Cell cell;
  bool is_double;
  int64_t B, I, H;
  const void *x, *h0, *c0;                // (B, I), (B, H); states may be null: zeros
  const void *w_ih, *w_hh, *b_ih, *b_hh;  // as torch has them; biases may be null
  void *y, *h_n, *c_n;                    // (B, H); y and h_n may be the same
  bool half_weights = false;              // w_ih and w_hh are bfloat16, all else is float
};

void run_step(const Step& step);

}  // namespace fastrnn
