// One pass over a layer: its plan, its workspace, its packed weights, and the threads that run its shares.
#pragma once

#include <memory>
#include <type_traits>

#include "call.h"
#include "workspace.h"

namespace fastrnn {

inline const cpu::Kernels<float>& kernels_of(float, ScalarType dtype) {
  const cpu::Isa& isa = cpu::isa();
  return dtype == ScalarType::BFloat16 && isa.bf16 != nullptr ? *isa.bf16 : *isa.f32;
}
inline const cpu::Kernels<double>& kernels_of(double, ScalarType) { return *cpu::isa().f64; }

template <class C>
struct Pass {
  const Call& call;
  const cpu::Kernels<C>& kernels;
  cpu::Layer<C> layer;
  int64_t width;
  Workspace memory;
  std::vector<Tensor> kept;  // whatever the layer points to beside it
  std::vector<int64_t> row_start;
  std::unique_ptr<cpu::Barrier[]> barriers;

  Pass(const Call& c, bool backward)
      : call(c), kernels(kernels_of(C{}, c.x.scalar_type())), width(cpu::pre_width(c.cell)) {
    const int threads = cpu::pool_usable() ? static_cast<int>(torch::stable::get_num_threads()) : 1;
    layer.plan = cpu::make_plan(
        cpu::problem_of(c.cell, {c.T, c.B, c.I, c.H}, c.directions, kernels.lanes, sizeof(C), backward, threads));
    layer.packed = c.T > 1 || kernels.bf16;
    layer.half_weights = c.weights[1].scalar_type() == ScalarType::BFloat16 && !kernels.bf16;
    layer.cell = c.cell, layer.I = c.I, layer.H = c.H, layer.directions = c.directions;
    split_rows();
    layer.seq = {c.T, c.B, c.alive.data(), c.order.data(), c.first.data(), c.compact.data(), row_start.data()};
    if (c.reset) {
      layer.seq.reset = c.reset->template const_data_ptr<bool>();
      layer.seq.reset_step = c.reset->stride(0), layer.seq.reset_row = c.reset->stride(1);
    }
    const ScalarType dtype = c.x.scalar_type();
    int64_t item = sizeof(C);
    if constexpr (std::is_same_v<C, float>) {
      if (dtype != ScalarType::Float) {
        const bool bf16 = dtype == ScalarType::BFloat16;
        layer.load = bf16 ? kernels.load_bf16 : kernels.load_f16;
        layer.store = bf16 ? kernels.store_bf16 : kernels.store_f16;
        item = 2;
      }
    }
    layer.x = c.rows(c.x, static_cast<const char*>(c.x.const_data_ptr()), item);
    const int64_t most = std::max(c.I, c.H);
    C* const zeros = workspace(most);
    std::fill(zeros, zeros + most, C(0));
    layer.zeros = zeros;
    layer.scratch = reinterpret_cast<char*>(workspace(layer.plan.shares() * layer.plan.scratch / int64_t{sizeof(C)}));
    barriers.reset(new cpu::Barrier[layer.plan.teams]);
    layer.barriers = barriers.get();
    for (int d = 0; d < c.directions; ++d) {
      layer.dir[d].reverse = d == 1;
      layer.dir[d].h0 = state(c.h0, d), layer.dir[d].c0 = state(c.c0, d);
    }
  }

  // Contiguous ranks with about the same number of steps for each share.
  void split_rows() {
    const int64_t n = layer.plan.team_shares, total = call.compact.back();
    std::vector<int64_t> steps(call.B + 1, 0);  // of the rows before a rank
    for (int64_t t = 0, rank = call.B; rank > 0; --rank) {
      while (t < call.T && call.alive[t] >= rank) ++t;
      steps[rank] = t;
    }
    for (int64_t rank = 0; rank < call.B; ++rank) steps[rank + 1] += steps[rank];
    for (int64_t k = 0; k <= n; ++k) {
      const auto at = std::lower_bound(steps.begin(), steps.end(), total * k / n);
      row_start.push_back(k == n ? call.B : at - steps.begin());
    }
  }

  C* workspace(int64_t n) { return static_cast<C*>(Workspace::take(n * int64_t{sizeof(C)})); }

  // A matrix in the workspace, for aten to read.
  Tensor matrix(C* values, int64_t rows, int64_t columns) const {
    return torch::stable::from_blob(values, Sizes{rows, columns}, Sizes{columns, 1}, call.x.device(), kScalar<C>);
  }

  static C* data(const Tensor& t) { return t.mutable_data_ptr<C>(); }

  const C* values(const Tensor& t) {
    kept.push_back(torch::stable::contiguous(as(t, kScalar<C>)));
    return kept.back().const_data_ptr<C>();
  }

  const C* state(const OptionalTensor& t, int d) { return t ? values(*t) + d * call.B * call.H : nullptr; }

  // A weight to be packed, in elements of C.
  struct Matrix {
    const C* data;
    int64_t row, column;
  };

  Matrix whole(const Tensor& w) {
    kept.push_back(kernels.bf16 ? torch::stable::contiguous(w) : as(w, kScalar<C>));
    return {static_cast<const C*>(kept.back().const_data_ptr()), kept.back().stride(0), kept.back().stride(1)};
  }

  // Half weights, whose elements are pairs: the last one of an odd number is beside a zero.
  Matrix pairs(const Tensor& w) {
    const int64_t n = w.size(0), K = w.size(1), even = K + K % 2;
    const uint16_t* from = halves(w);
    if (K < even || reinterpret_cast<uintptr_t>(from) % sizeof(C) != 0) {
      uint16_t* const to = static_cast<uint16_t*>(Workspace::take(n * even * int64_t{sizeof(uint16_t)}));
      for (int64_t i = 0; i < n; ++i) {
        uint16_t* const end = std::copy(from + i * K, from + (i + 1) * K, to + i * even);
        if (K < even) *end = 0;
      }
      from = to;
    }
    return {reinterpret_cast<const C*>(from), even / 2, 1};
  }

  const uint16_t* halves(const Tensor& w) {
    kept.push_back(torch::stable::contiguous(w));
    return static_cast<const uint16_t*>(kept.back().const_data_ptr());
  }

  // Pack what this pass needs of the weights; the products of one direction are packed side by side.
  void pack(bool forward, bool backward, bool need_x) {
    struct Item {
      Matrix w;
      int64_t n, K;
      bool transposed;
      const C** to;
    };
    std::vector<Item> items;
    const int64_t gates = cpu::gate_count(call.cell), each = call.weights.size() / call.directions;
    const auto add_forward = [&](const Tensor& w, int64_t K, const C** to) {
      if (layer.packed) {
        items.push_back(layer.half_weights ? Item{pairs(w), call.H, (K + 1) / 2, false, to}
                                           : Item{whole(w), call.H, K, false, to});
      } else {
        *to = layer.half_weights ? reinterpret_cast<const C*>(halves(w)) : values(w);
      }
    };
    for (int d = 0; d < call.directions; ++d) {
      cpu::Weights<C>& w = layer.dir[d].weights;
      const Tensor &w_ih = call.weights[d * each], &w_hh = call.weights[d * each + 1];
      if (forward) add_forward(w_ih, call.I, &w.w_ih);
      if (forward) add_forward(w_hh, call.H, &w.w_hh);
      if (backward) items.push_back({whole(w_hh), call.H, gates * call.H, true, &w.w_hh_t});
      if (backward && need_x) items.push_back({whole(w_ih), call.I, gates * call.H, true, &w.w_ih_t});
      if (forward) w.bias = bias(d * each);
    }
    for (Item& item : items) {
      *item.to = workspace(item.transposed ? kernels.plain_panels_size(item.n, item.K)
                                           : kernels.forward_panels_size(call.cell, item.n, item.K));
    }
    parallel(items.size(), [&](int64_t lo, int64_t hi) {
      for (int64_t i = lo; i < hi; ++i) {
        const Item& item = items[i];
        C* to = const_cast<C*>(*item.to);
        if (item.transposed) {
          kernels.pack_plain(item.w.data, item.w.row, item.w.column, item.n, item.K, to);
        } else {
          kernels.pack_forward(call.cell, item.w.data, item.w.row, item.w.column, item.n, item.K, to);
        }
      }
    });
  }

  const C* bias(size_t at) {
    C* const sum = workspace(width * call.H);
    const auto given = [&](size_t i) { return call.bias ? values(call.weights[at + i]) : nullptr; };
    cpu::sum_bias(call.cell, given(2), given(3), call.H, sum);
    return sum;
  }

  template <class F>
  void parallel(int64_t n, const F& f) {
    if (n == 1 || layer.plan.shares() == 1) {
      if (n > 0) f(0, n);
    } else {
      torch::stable::parallel_for(0, n, 1, f);
    }
  }
};

}  // namespace fastrnn
