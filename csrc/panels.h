// Weights on their way into the panels that a pass reads: all of its matrices side by side, one a thread.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/rnn.h"
#include "threads.h"
#include "workspace.h"

namespace fastrnn {

// A matrix in elements of C.
template <class C>
struct Matrix {
  const C* data;
  int64_t row, column;  // strides
};

// Bfloat16 weights (n, K) without gaps, as a matrix of pairs: the last one of an odd number is beside a zero.
template <class C>
Matrix<C> pairs(const uint16_t* from, int64_t n, int64_t K) {
  const int64_t even = K + K % 2;
  if (K < even || reinterpret_cast<uintptr_t>(from) % sizeof(C) != 0) {
    uint16_t* const to = workspace<uint16_t>(n * even);
    for (int64_t i = 0; i < n; ++i) {
      uint16_t* const end = std::copy(from + i * K, from + (i + 1) * K, to + i * even);
      if (K < even) *end = 0;
    }
    from = to;
  }
  return {reinterpret_cast<const C*>(from), even / 2, 1};
}

template <class C>
class Panels {
 public:
  Panels(const cpu::Kernels<C>& kernels, cpu::Cell cell) : kernels_(kernels), cell_(cell) {}

  // Of a forward product: `n` units, their gates' rows of w one after the other.
  void forward(Matrix<C> w, int64_t n, int64_t K, const C** to) {
    add({w, n, K, false}, kernels_.forward_panels_size(cell_, n, K), to);
  }
  // Of a backward product: the columns of w, which has K rows.
  void backward(Matrix<C> w, int64_t n, int64_t K, const C** to) {
    add({w, n, K, true}, kernels_.plain_panels_size(n, K), to);
  }

  void pack(bool parallel) const {
    in_parts(static_cast<int64_t>(items_.size()), parallel, [&](int64_t lo, int64_t hi) {
      for (int64_t i = lo; i < hi; ++i) {
        const Item& item = items_[i];
        if (item.plain) {
          kernels_.pack_plain(item.w.data, item.w.row, item.w.column, item.n, item.K, item.to);
        } else {
          kernels_.pack_forward(cell_, item.w.data, item.w.row, item.w.column, item.n, item.K, item.to);
        }
      }
    });
  }

 private:
  struct Item {
    Matrix<C> w;
    int64_t n, K;
    bool plain;
    C* to = nullptr;
  };

  void add(Item item, int64_t size, const C** to) {
    *to = item.to = workspace<C>(size);
    items_.push_back(item);
  }

  const cpu::Kernels<C>& kernels_;
  cpu::Cell cell_;
  std::vector<Item> items_;
};

}  // namespace fastrnn
