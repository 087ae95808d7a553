// The gradients of a direction's weights: products of what backward leaves of every chunk of steps, summed.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "pass.h"

namespace fastrnn {

// No sum is long, for a long one rounds more than torch's, which is one over steps of those over rows. What is small or
// narrow the engine multiplies itself: blocks of a few rows, added in double. The rest is aten's: products of blocks,
// which for matrices of that size are sums of shorter ones, groups of them added in C, and the groups in double.
// Where layers of bfloat16 compute in it, so do these products, of a chunk each: aten rounds every product to bfloat16.
// Rows of zeros leave few different numbers of rows: oneDNN keeps code for each that it has met.
template <class C>
class WeightGradients {
 public:
  // to: where the gradients of w_ih, w_hh and, where there are biases, b_ih, b_hh are to be written.
  WeightGradients(Pass<C>& pass, int64_t most_rows, int64_t chunks, const std::array<C*, 4>& to)
      : pass_(pass),
        gates_(cpu::gate_count(pass.call.cell)),
        H_(pass.call.H),
        ih_(weight(pass.call.I, chunks * blocks(most_rows), to[0])),
        hh_(weight(pass.call.H, chunks * blocks(most_rows), to[1])),
        biases_{to[2], to[3]} {
    if (pass.call.bias) db_.assign(pass.width * H_, 0.0);
    if (!ih_.own || !hh_.own) partial_ = pass.workspace(gates_ * H_ * std::max(ih_.columns, H_));
    if (!pass.kernels.bf16) return;
    for (size_t i = 0; i < 3; ++i)
      halves_[i] = workspace<uint16_t>(padded(most_rows) * (i == 0 ? pass.width * H_ : i == 1 ? H_ : ih_.columns));
  }

  // dgates (n, width * H), h_prev (n, H), x (n, I): a chunk's compact rows.
  void add(const C* dgates, const C* h_prev, const C* x, int64_t n) {
    if (n == 0) return;
    const Factor left = factor(dgates, n, pass_.width * H_, halves_[0]);
    const Factor h = factor(h_prev, n, H_, halves_[1]);
    product(left.part(0, gates_ * H_), factor(x, n, ih_.columns, halves_[2]), ih_, 0);
    if (pass_.call.cell == cpu::Cell::kGru) {
      product(left.part(0, 2 * H_), h, hh_, 0);
      product(left.part(3 * H_, H_), h, hh_, 2 * H_);
    } else {
      product(left, h, hh_, 0);
    }
    blocks_ += blocks(n);
    if (pass_.call.bias) {
      const int64_t columns = pass_.width * H_;
      columns_in_parts(columns, n * columns,
                       [&](int64_t c0, int64_t c1) { pass_.kernels.sum_rows(dgates, n, columns, c0, c1, db_.data()); });
    }
  }

  // Once everything is added: write the sums.
  void finish() {
    finish(ih_);
    finish(hh_);
    if (!pass_.call.bias) return;
    for (const bool hidden : {false, true}) {
      const bool apart = hidden && pass_.call.cell == cpu::Cell::kGru;
      for (int64_t i = 0; i < gates_ * H_; ++i) {
        biases_[hidden][i] = static_cast<C>(db_[apart && i >= 2 * H_ ? i + H_ : i]);
      }
    }
  }

 private:
  static constexpr int64_t kLine = 64 / sizeof(C);        // numbers of a cache line
  static constexpr int64_t kNarrow = 16, kSmall = 32768;  // columns, and numbers of a gradient, that are not aten's
  static constexpr int64_t kBlock = 512, kGroup = 16;     // rows of a product of aten's, and products of a group
  static constexpr int64_t kManyFactors = 1 << 20;        // of a product that is worth several threads

  struct Weight {
    int64_t columns;
    bool own;       // multiplied by the engine, into the total, transposed
    C* gradient;    // or else the last group
    double* total;  // the groups before it; null if there is but one
  };

  Weight weight(int64_t columns, int64_t most_blocks, C* gradient) const {
    const int64_t size = gates_ * H_ * columns;
    const bool own = !pass_.kernels.bf16 && (columns < kNarrow || size <= kSmall);
    double* const total = own || most_blocks > kGroup ? workspace<double>(size) : nullptr;
    if (total != nullptr) std::fill(total, total + size, 0.0);
    return {columns, own, gradient, total};
  }

  int64_t rows_of_block(int64_t rows) const { return pass_.kernels.bf16 ? rows : std::min(rows, kBlock); }
  int64_t blocks(int64_t rows) const { return rows > 0 ? (rows - 1) / rows_of_block(rows) + 1 : 0; }

  // The next of 16 numbers up to 128, and of eight more for each doubling.
  static int64_t padded(int64_t rows) {
    int64_t step = 8;
    while (step * 16 < rows) step *= 2;
    return (rows + step - 1) / step * step;
  }

  // Rows of numbers that are to be multiplied, some of their columns.
  struct Factor {
    const char* data;
    int64_t item, rows, row, columns;  // item: bytes of a number; row: numbers from one row to the next
    Factor part(int64_t from, int64_t n) const { return {data + from * item, item, rows, row, n}; }
    Factor some(int64_t from, int64_t n) const { return {data + from * row * item, item, n, row, columns}; }
  };

  // Rows without gaps; in bfloat16 they go to `half`, padded.
  Factor factor(const C* from, int64_t rows, int64_t columns, uint16_t* half) const {
    if (half == nullptr) return {reinterpret_cast<const char*>(from), sizeof(C), rows, columns, columns};
    const int64_t parts = pass_.layer.plan.shares();
    pass_.parallel(parts, [&](int64_t lo, int64_t hi) {
      const int64_t begin = rows * lo / parts * columns, end = rows * hi / parts * columns;
      pass_.kernels.store_bf16(from + begin, half + begin, end - begin);
    });
    const int64_t all = padded(rows);
    std::fill(half + rows * columns, half + all * columns, uint16_t{0});
    return {reinterpret_cast<const char*>(half), sizeof(uint16_t), all, columns, columns};
  }

  // f(c0, c1) for all of them, whole cache lines to a share if `work` is worth it.
  template <class F>
  void columns_in_parts(int64_t columns, int64_t work, const F& f) const {
    const int64_t parts = work > 16384 ? pass_.layer.plan.shares() : 1;
    pass_.parallel(parts, [&](int64_t lo, int64_t hi) {
      const auto start = [&](int64_t part) { return columns * part / parts / kLine * kLine; };
      f(start(lo), hi == parts ? columns : start(hi));
    });
  }

  // f(i) for all of them.
  template <class F>
  void in_parts_of(int64_t n, const F& f) const {
    columns_in_parts(n, n, [&](int64_t lo, int64_t hi) {
      for (int64_t i = lo; i < hi; ++i) f(i);
    });
  }

  // Rows of the gradient, from `first` on, += left' right.
  void product(const Factor& left, const Factor& right, const Weight& w, int64_t first) const {
    const int64_t n = left.columns * right.columns;
    if (n == 0) return;
    if (w.own) {
      columns_in_parts(left.columns, n * left.rows, [&](int64_t c0, int64_t c1) {
        pass_.kernels.add_product(reinterpret_cast<const C*>(left.data), left.row, c0, c1,
                                  reinterpret_cast<const C*>(right.data), right.columns, left.rows, w.total + first,
                                  gates_ * H_);
      });
      return;
    }
    C* const group = w.gradient + first * right.columns;
    double* const total = w.total + (w.total == nullptr ? 0 : first * right.columns);
    const int64_t step = rows_of_block(left.rows);
    for (int64_t r = 0, block = blocks_; r < left.rows; r += step, ++block) {
      const bool begins = block % kGroup == 0, straight = begins && !pass_.kernels.bf16;
      if (begins && block > 0) in_parts_of(n, [&](int64_t i) { total[i] += static_cast<double>(group[i]); });
      const int64_t rows = std::min(step, left.rows - r);
      multiply(left.some(r, rows), right.some(r, rows), straight ? group : partial_);
      if (!straight) add_partial(n, begins, group);
    }
  }

  void add_partial(int64_t n, bool begins, C* group) const {
    columns_in_parts(n, n, [&](int64_t lo, int64_t hi) {
      C some[256];
      for (int64_t i = lo; i < hi; i += 256) {
        const int64_t count = std::min<int64_t>(256, hi - i);
        const C* terms = partial_ + i;
        if (pass_.kernels.bf16) {
          pass_.kernels.load_bf16(reinterpret_cast<const uint16_t*>(partial_) + i, some, count);
          terms = some;
        }
        for (int64_t k = 0; k < count; ++k) group[i + k] = begins ? terms[k] : group[i + k] + terms[k];
      }
    });
  }

  struct Delete {
    void operator()(AtenTensorHandle t) const { (void)aoti_torch_delete_tensor_object(t); }
  };
  using Handle = std::unique_ptr<AtenTensorOpaque, Delete>;

  // Not torch::stable::from_blob, which drops the error of the call that it makes: where that one failed, its tensor is
  // whatever was there.
  static Handle view(const void* data, const std::array<int64_t, 2>& sizes, const std::array<int64_t, 2>& strides,
                     int64_t item) {
    const bool compute = item == int64_t{sizeof(C)}, is_double = std::is_same_v<C, double>;
    const int32_t dtype = !compute    ? aoti_torch_dtype_bfloat16()
                          : is_double ? aoti_torch_dtype_float64()
                                      : aoti_torch_dtype_float32();
    AtenTensorHandle made = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(const_cast<void*>(data), 2, sizes.data(), strides.data(),
                                                              0, dtype, aoti_torch_device_type_cpu(), 0, &made));
    return Handle(made);
  }

  // to = left' right, in the factors' type: by parts of left's columns, each by one thread, so that the bits do not
  // depend on whether threads help at the moment.
  void multiply(const Factor& left, const Factor& right, C* to) const {
    const bool is_large = left.columns * right.columns * left.rows > kManyFactors;
    const int64_t parts = is_large ? std::clamp<int64_t>(left.columns / kNarrow, 1, pass_.products) : 1;
    const auto start = [&](int64_t part) {
      return part == parts ? left.columns : left.columns * part / parts / kLine * kLine;
    };
    in_parts(parts, pass_.parallel_products, [&](int64_t lo, int64_t hi) {
      for (int64_t part = lo; part < hi; ++part) {
        const int64_t c0 = start(part), c1 = start(part + 1);
        multiply_part(left.part(c0, c1 - c0), right, reinterpret_cast<char*>(to) + c0 * right.columns * left.item);
      }
    });
  }

  void multiply_part(const Factor& left, const Factor& right, void* to) const {
    const OneThread one;
    Handle a = view(left.data, {left.columns, left.rows}, {1, left.row}, left.item);
    Handle b = view(right.data, {right.rows, right.columns}, {right.row, 1}, right.item);
    Handle out = view(to, {left.columns, right.columns}, {right.columns, 1}, left.item);
    // From here on they are the call's.
    const auto give = [](Handle& t) { return torch::stable::detail::from(t.release()); };
    std::array<StableIValue, 3> stack{give(a), give(b), give(out)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
    const Handle result(torch::stable::detail::to<AtenTensorHandle>(stack[0]));
  }

  // The gradient from its parts.
  void finish(const Weight& w) const {
    const int64_t rows = gates_ * H_, n = rows * w.columns;
    C* const to = w.gradient;
    if (w.own) {
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < w.columns; ++j) to[i * w.columns + j] = static_cast<C>(w.total[j * rows + i]);
      }
    } else if (blocks_ == 0) {
      std::fill(to, to + n, C(0));
    } else if (blocks_ > kGroup) {
      in_parts_of(n, [&](int64_t i) { to[i] = static_cast<C>(w.total[i] + static_cast<double>(to[i])); });
    }
  }

  Pass<C>& pass_;
  int64_t gates_, H_;
  Weight ih_, hh_;
  std::array<C*, 2> biases_;
  int64_t blocks_ = 0;      // added so far
  std::vector<double> db_;  // by pre-activation column
  C* partial_ = nullptr;
  uint16_t* halves_[3] = {};  // dgates, h_prev and x of a chunk in bfloat16
};

}  // namespace fastrnn
