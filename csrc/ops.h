// What the operators of fastrnn/_ops.py compute for CPU tensors, of a call that has been checked.
#pragma once

#include <vector>

#include "call.h"

namespace fastrnn {

// What the cell does not have, or nobody asked for, is not there.
struct Outputs {
  Tensor y, h_n;
  OptionalTensor c_n, cells, tape;
};
Outputs forward(const Call& call, Tape tape, bool cells);

struct Cotangents {
  OptionalTensor dy, dh_n, dc_n, dcells;
};
struct Kept {  // by the forward pass
  Tensor y;
  OptionalTensor cells, tape;
  Tape kind;
};
struct Wanted {
  bool x, h0, c0, weights;
  bool apart;  // a tensor for each weight; else the rows of both directions one below the other
};
struct Gradients {
  OptionalTensor x, h0, c0;
  std::vector<Tensor> weights;  // those of one direction, or, apart, of both, or none
};
Gradients backward(const Call& call, const Cotangents& given, const Kept& kept, const Wanted& wanted);

}  // namespace fastrnn
