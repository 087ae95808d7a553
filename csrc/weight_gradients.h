// The gradients of a direction's weights: sums over the rows of every chunk of steps.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "pass.h"

namespace fastrnn {

// No sum is long, for a long one rounds more than torch's, which is one over steps of those over rows: blocks of rows
// are summed in C, groups of them in the gradient, and the groups in double. Of small gradients every block is a group.
template <class C>
class WeightGradients {
 public:
  // to: where the gradients of w_ih, w_hh and, where there are biases, b_ih, b_hh are to be written.
  WeightGradients(Pass<C>& pass, int64_t most_rows, int64_t chunks, const std::array<C*, 4>& to)
      : pass_(pass),
        kernels_(pass.kernels),
        I_(pass.call.I),
        H_(pass.call.H),
        rows_(cpu::gate_count(pass.call.cell) * H_),
        group_(rows_ * (I_ + H_) <= kSmall ? 1 : kGroup),
        to_(to) {
    const int64_t n = std::min(most_rows, cpu::kSumRows);
    factors_ = pass.workspace(kernels_.factors_size(I_ + H_, n));
    const int64_t columns = pass.width * H_;
    shares_ = std::clamp<int64_t>(columns / kGrain, 1, pass.products);
    memory_size_ = kernels_.sum_memory(n);
    memory_ = workspace<char>(shares_ * memory_size_);
    if (chunks * blocks(most_rows) > group_) {
      totals_[0] = workspace<double>(rows_ * I_), totals_[1] = workspace<double>(rows_ * H_);
    }
    if (pass.call.bias) biases_.assign(columns, 0.0);
    // Columns of gates, and the rows of the gradients that are theirs; a GRU's n has two, one for x and one for h.
    if (pass.call.cell == cpu::Cell::kGru) {
      runs_ = {{0, 2 * H_, 0, 0}, {2 * H_, H_, 2 * H_, kNone}, {3 * H_, H_, kNone, 2 * H_}};
    } else {
      runs_ = {{0, rows_, 0, 0}};
    }
  }

  // dgates (n, width * H), h_prev (n, H), x (n, I): a chunk's compact rows.
  void add(const C* dgates, const C* h_prev, const C* x, int64_t n) {
    const int64_t width = pass_.width * H_;
    for (int64_t r = 0; r < n; r += cpu::kSumRows) {
      add({dgates + r * width, x + r * I_, h_prev + r * H_, std::min(n - r, cpu::kSumRows), width, I_, H_, factors_,
           blocks_ % group_ != 0});
    }
  }

  // Once everything is added: write the sums.
  void finish() {
    if (blocks_ == 0) {
      std::fill(to_[0], to_[0] + rows_ * I_, C(0));
      std::fill(to_[1], to_[1] + rows_ * H_, C(0));
    } else if (blocks_ > group_) {
      in_runs(rows_ * (I_ + H_), [&](int64_t, const Run& run) {
        for_each_sum(run, [](C& sum, double& total) { sum = static_cast<C>(total + static_cast<double>(sum)); });
      });
    }
    if (!pass_.call.bias) return;
    for (const bool hidden : {false, true}) {
      const bool apart = hidden && pass_.call.cell == cpu::Cell::kGru;
      for (int64_t i = 0; i < rows_; ++i) {
        to_[2 + hidden][i] = static_cast<C>(biases_[apart && i >= 2 * H_ ? i + H_ : i]);
      }
    }
  }

 private:
  static constexpr int64_t kNone = -1;
  static constexpr int64_t kSmall = 65536;          // numbers of both gradients
  static constexpr int64_t kGroup = 16;             // blocks
  static constexpr int64_t kManyFactors = 1 << 20;  // that are worth several threads
  static constexpr int64_t kManyNumbers = 1 << 16;  // to copy, likewise
  static constexpr int64_t kGrain = 48;             // columns of a share: whole tiles

  struct Run {
    int64_t column, columns, ih, hh;  // rows of the gradients, or kNone
  };

  int64_t blocks(int64_t rows) const { return (rows + cpu::kSumRows - 1) / cpu::kSumRows; }

  void add(const cpu::Sums<C>& sums) {
    const int64_t panels = kernels_.sum_panels(I_ + H_);
    const int64_t parts = sums.n * (I_ + H_) > kManyNumbers ? std::min<int64_t>(pass_.products, panels) : 1;
    in_parts(parts, pass_.parallel_products,
             [&](int64_t lo, int64_t hi) { kernels_.pack_factors(sums, panels * lo / parts, panels * hi / parts); });
    in_runs(sums.n * rows_ * (I_ + H_), [&](int64_t share, const Run& run) {
      if (!sums.add && blocks_ > 0) {
        const bool first = blocks_ == group_;
        for_each_sum(run, [first](C& sum, double& total) { total = (first ? 0.0 : total) + static_cast<double>(sum); });
      }
      const int64_t c0 = run.column, c1 = c0 + run.columns;
      kernels_.add_sums(sums, c0, c1, run.ih == kNone ? nullptr : to_[0] + run.ih * I_,
                        run.hh == kNone ? nullptr : to_[1] + run.hh * H_, memory_ + share * memory_size_);
      if (!biases_.empty()) kernels_.sum_columns(sums.dgates, sums.n, sums.width, c0, c1, biases_.data());
    });
    ++blocks_;
  }

  // f(share, run) for all columns, in shares of about the same work if there is much.
  template <class F>
  void in_runs(int64_t work, const F& f) const {
    const int64_t shares = work > kManyFactors ? shares_ : 1;
    const auto weight = [&](const Run& run) { return 1 + (run.ih == kNone ? 0 : I_) + (run.hh == kNone ? 0 : H_); };
    int64_t all = 0;
    for (const Run& run : runs_) all += run.columns * weight(run);
    in_parts(shares, pass_.parallel_products, [&](int64_t lo, int64_t hi) {
      for (int64_t share = lo; share < hi; ++share) {
        int64_t before = 0;
        for (const Run& run : runs_) {
          const auto cut = [&](int64_t k) {
            const int64_t column = std::max<int64_t>(all * k / shares - before, 0) / weight(run);
            return column >= run.columns ? run.columns : column / kGrain * kGrain;
          };
          const int64_t from = cut(share), to = cut(share + 1);
          const auto row = [&](int64_t first) { return first == kNone ? kNone : first + from; };
          if (from < to) f(share, Run{run.column + from, to - from, row(run.ih), row(run.hh)});
          before += run.columns * weight(run);
        }
      }
    });
  }

  // f(sum, total) for all of a run's.
  template <class F>
  void for_each_sum(const Run& run, const F& f) const {
    for (const bool hidden : {false, true}) {
      const int64_t row = hidden ? run.hh : run.ih, columns = hidden ? H_ : I_;
      if (row == kNone) continue;
      C* const sums = to_[hidden] + row * columns;
      double* const totals = totals_[hidden] + row * columns;
      for (int64_t i = 0; i < run.columns * columns; ++i) f(sums[i], totals[i]);
    }
  }

  Pass<C>& pass_;
  const cpu::Kernels<C>& kernels_;
  int64_t I_, H_, rows_, group_;
  std::array<C*, 4> to_;
  std::vector<Run> runs_;
  int64_t shares_, blocks_ = 0;  // blocks added so far
  C* factors_;                   // x and h_prev of a block
  char* memory_;                 // (shares_, memory_size_)
  int64_t memory_size_;
  double* totals_[2] = {};      // the groups but the last, which is in the gradient
  std::vector<double> biases_;  // by pre-activation column
};

}  // namespace fastrnn
