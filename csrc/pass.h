// One pass over a layer: its plan, its workspace, its packed weights, and the threads that run its shares.
#pragma once

#include <memory>
#include <type_traits>

#include "call.h"
#include "cpu/tuned.h"
#include "panels.h"
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
  int products;            // parts of a large product of matrices: one for each thread that might help, now or not,
  bool parallel_products;  // and whether they do
  Workspace memory;
  std::vector<Tensor> kept;  // whatever the layer points to beside it
  std::vector<int64_t> row_start;
  std::unique_ptr<cpu::Barrier[]> barriers;

  Pass(const Call& c, bool backward, bool trains)
      : call(c), kernels(kernels_of(C{}, c.x.scalar_type())), width(cpu::pre_width(c.cell)) {
    cpu::Problem problem = cpu::problem_of(c.cell, {c.T, c.B, c.I, c.H}, c.directions, kernels.lanes, sizeof(C),
                                           backward, torch_threads());
    if (cpu::tuned.load(std::memory_order_relaxed)) problem.split = split_for(c, trains);
    layer.plan = cpu::plan_here(problem);
    products = backward ? std::min(torch_threads(), cpu::cores()) : 1;
    parallel_products = layer.plan.shares() > 1 || (products > 1 && cpu::threads_help(torch_threads()));
    layer.packed = c.T > 1 || kernels.bf16;
    layer.half_weights = c.weights[1].scalar_type() == ScalarType::BFloat16 && !kernels.bf16;
    layer.cell = c.cell, layer.I = c.I, layer.H = c.H, layer.directions = c.directions, layer.s1 = c.T;
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
    if (kernels.bf16) {
      const int64_t longest = std::max(c.I, (backward ? cpu::gate_count(c.cell) : 1) * c.H);
      layer.tiles_size = kernels.tile_rows_size(std::max(c.B, cpu::kBlockRows), longest);
      layer.tiles = fastrnn::workspace<char>(layer.plan.shares() * layer.tiles_size);
    }
    barriers.reset(new cpu::Barrier[layer.plan.teams]);
    layer.barriers = barriers.get();
    for (int d = 0; d < c.directions; ++d) {
      layer.dir[d].reverse = d == 1;
      layer.dir[d].h0 = state(c.h0, d), layer.dir[d].c0 = state(c.c0, d);
    }
  }

  static cpu::Split split_for(const Call& c, bool trains) {
    const cpu::Kind kind{static_cast<int>(c.cell), static_cast<int>(c.x.scalar_type()), c.directions, 0, trains,
                         c.packed || c.padded};
    return cpu::split_for({kind, {c.T, c.B, c.I, c.H}}, torch_threads());
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

  C* workspace(int64_t n) { return fastrnn::workspace<C>(n); }

  static C* data(const Tensor& t) { return t.mutable_data_ptr<C>(); }

  const C* values(const Tensor& t) {
    kept.push_back(without_gaps(as(t, kScalar<C>)));
    return kept.back().const_data_ptr<C>();
  }

  const C* state(const OptionalTensor& t, int d) { return t ? values(*t) + d * call.B * call.H : nullptr; }

  Matrix<C> whole(const Tensor& w) {
    kept.push_back(kernels.bf16 ? without_gaps(w) : as(w, kScalar<C>));
    return {static_cast<const C*>(kept.back().const_data_ptr()), kept.back().stride(0), kept.back().stride(1)};
  }

  const uint16_t* halves(const Tensor& w) {
    kept.push_back(without_gaps(w));
    return static_cast<const uint16_t*>(kept.back().const_data_ptr());
  }

  // Pack what this pass needs of the weights.
  void pack(bool forward, bool backward, bool need_x) {
    Panels<C> panels(kernels, call.cell);
    const int64_t gates = cpu::gate_count(call.cell), each = call.weights.size() / call.directions;
    const auto add_forward = [&](const Tensor& w, int64_t K, const C** to) {
      if (!layer.packed) {
        *to = layer.half_weights ? reinterpret_cast<const C*>(halves(w)) : values(w);
      } else if (layer.half_weights) {
        panels.forward(pairs<C>(halves(w), w.size(0), K), call.H, (K + 1) / 2, to);
      } else {
        panels.forward(whole(w), call.H, K, to);
      }
    };
    for (int d = 0; d < call.directions; ++d) {
      cpu::Weights<C>& w = layer.dir[d].weights;
      const Tensor &w_ih = call.weights[d * each], &w_hh = call.weights[d * each + 1];
      if (forward) add_forward(w_ih, call.I, &w.w_ih);
      if (forward) add_forward(w_hh, call.H, &w.w_hh);
      if (backward) panels.backward(whole(w_hh), call.H, gates * call.H, &w.w_hh_t);
      if (backward && need_x) panels.backward(whole(w_ih), call.I, gates * call.H, &w.w_ih_t);
      if (forward) w.bias = bias(d * each);
    }
    panels.pack(layer.plan.shares() > 1);
  }

  const C* bias(size_t at) {
    C* const sum = workspace(width * call.H);
    const auto given = [&](size_t i) { return call.bias ? values(call.weights[at + i]) : nullptr; };
    cpu::sum_bias(call.cell, given(2), given(3), call.H, sum);
    return sum;
  }

  template <class F>
  void parallel(int64_t n, const F& f) {
    in_parts(n, layer.plan.shares() > 1, f);
  }

  // f(lo, hi) over the shares of the plan.
  template <class F>
  void shares(const F& f) {
    in_shares(layer.plan, f, [&](int64_t lo, int64_t hi) { return layer.work(lo, hi); });
  }
};

}  // namespace fastrnn
