// The gradients of a direction's weights: products of what backward leaves of every chunk of steps, by aten, summed.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "pass.h"

namespace fastrnn {

// Chunks are added in order. Where layers of bfloat16 compute in it, so do these products; their sum is float.
template <class C>
class WeightGradients {
 public:
  WeightGradients(Pass<C>& pass, int64_t most_rows)
      : pass_(pass), gates_(cpu::gate_count(pass.call.cell)), H_(pass.call.H), I_(pass.call.I) {
    dw_ih_ = torch::stable::new_empty(pass.call.x, Sizes{gates_ * H_, I_}, kScalar<C>);
    dw_hh_ = torch::stable::new_empty(pass.call.x, Sizes{gates_ * H_, H_}, kScalar<C>);
    if (pass.call.bias) db_.assign(pass.width * H_, 0.0);
    partial_ = pass.workspace(gates_ * H_ * std::max(I_, H_));
    if (!pass.kernels.bf16) return;
    for (size_t i = 0; i < 3; ++i)
      halves_[i] = workspace<uint16_t>(most_rows * (i == 0 ? pass.width * H_ : i == 1 ? H_ : I_));
  }

  // dgates (n, width * H), h_prev (n, H), x (n, I): a chunk's compact rows.
  void add(const C* dgates, const C* h_prev, const C* x, int64_t n) {
    if (n == 0) return;
    const Factor left = factor(dgates, n, pass_.width * H_, halves_[0]);
    const Factor h = factor(h_prev, n, H_, halves_[1]);
    product(left.part(0, gates_ * H_), factor(x, n, I_, halves_[2]), dw_ih_, 0);
    if (pass_.call.cell == cpu::Cell::kGru) {
      product(left.part(0, 2 * H_), h, dw_hh_, 0);
      product(left.part(3 * H_, H_), h, dw_hh_, 2 * H_);
    } else {
      product(left, h, dw_hh_, 0);
    }
    if (pass_.call.bias) add_rows(dgates, n);
    any_ = true;
  }

  // The gradients of w_ih, w_hh and, where there are biases, b_ih, b_hh, in storage.
  void append_to(std::vector<Tensor>& gradients) {
    const ScalarType storage = pass_.call.x.scalar_type();
    for (Tensor* t : {&dw_ih_, &dw_hh_}) {
      if (!any_) torch::stable::zero_(*t);
      gradients.push_back(as(*t, storage));
    }
    if (!pass_.call.bias) return;
    for (const bool hidden : {false, true}) {
      const Tensor b = torch::stable::new_empty(pass_.call.x, Sizes{gates_ * H_}, kScalar<C>);
      C* const to = Pass<C>::data(b);
      const bool apart = hidden && pass_.call.cell == cpu::Cell::kGru;
      for (int64_t i = 0; i < gates_ * H_; ++i) to[i] = static_cast<C>(db_[apart && i >= 2 * H_ ? i + H_ : i]);
      gradients.push_back(as(b, storage));
    }
  }

 private:
  // Rows of numbers that aten is to multiply, some of their columns.
  struct Factor {
    const char* data;
    int64_t item, rows, row, columns;  // item: bytes of a number; row: numbers from one row to the next
    Factor part(int64_t from, int64_t n) const { return {data + from * item, item, rows, row, n}; }
  };

  // Rows without gaps; in bfloat16 they go to `half`.
  Factor factor(const C* from, int64_t rows, int64_t columns, uint16_t* half) const {
    if (half == nullptr) return {reinterpret_cast<const char*>(from), sizeof(C), rows, columns, columns};
    const int64_t parts = pass_.layer.plan.shares();
    pass_.parallel(parts, [&](int64_t lo, int64_t hi) {
      const int64_t begin = rows * lo / parts * columns, end = rows * hi / parts * columns;
      pass_.kernels.store_bf16(from + begin, half + begin, end - begin);
    });
    return {reinterpret_cast<const char*>(half), sizeof(uint16_t), rows, columns, columns};
  }

  Tensor view(const void* data, const Sizes& sizes, const Sizes& strides, int64_t item) const {
    const ScalarType dtype = item == int64_t{sizeof(C)} ? kScalar<C> : ScalarType::BFloat16;
    return torch::stable::from_blob(const_cast<void*>(data), sizes, strides, pass_.call.x.device(), dtype);
  }

  // Rows of `into`, from `first` on, += left' right.
  void product(const Factor& left, const Factor& right, const Tensor& into, int64_t first) {
    const int64_t n = left.columns * right.columns;
    if (n == 0) return;
    const bool half = left.item < int64_t{sizeof(C)}, straight = !half && !any_;
    C* const sum = Pass<C>::data(into) + first * right.columns;
    multiply(view(left.data, {left.columns, left.rows}, {1, left.row}, left.item),
             view(right.data, {right.rows, right.columns}, {right.row, 1}, right.item),
             view(straight ? sum : partial_, {left.columns, right.columns}, {right.columns, 1}, left.item));
    if (straight) return;
    const int64_t parts = n > 16384 ? pass_.layer.plan.shares() : 1;
    pass_.parallel(parts, [&](int64_t lo, int64_t hi) {
      C some[256];
      for (int64_t i = n * lo / parts, end = n * hi / parts; i < end; i += 256) {
        const int64_t count = std::min<int64_t>(256, end - i);
        const C* terms = partial_ + i;
        if (half) {
          pass_.kernels.load_bf16(reinterpret_cast<const uint16_t*>(partial_) + i, some, count);
          terms = some;
        }
        for (int64_t k = 0; k < count; ++k) sum[i + k] = any_ ? sum[i + k] + terms[k] : terms[k];
      }
    });
  }

  // out = a b
  static void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
    std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                      torch::stable::detail::from(out)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
    (void)torch::stable::detail::to<Tensor>(stack[0]);
  }

  // The bias gradients.
  void add_rows(const C* dgates, int64_t n) {
    const int64_t columns = pass_.width * H_, parts = n * columns > 16384 ? pass_.layer.plan.shares() : 1;
    pass_.parallel(parts, [&](int64_t lo, int64_t hi) {
      const auto start = [&](int64_t part) { return columns * part / parts / kLine * kLine; };
      pass_.kernels.sum_rows(dgates, n, columns, start(lo), hi == parts ? columns : start(hi), db_.data());
    });
  }

  static constexpr int64_t kLine = 64 / sizeof(C);  // numbers of a cache line
  Pass<C>& pass_;
  int64_t gates_, H_, I_;
  Tensor dw_ih_, dw_hh_;
  std::vector<double> db_;  // by pre-activation column
  C* partial_;
  uint16_t* halves_[3] = {};  // dgates, h_prev and x of a chunk in bfloat16
  bool any_ = false;
};

}  // namespace fastrnn
