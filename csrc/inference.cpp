// A dense layer of ordinary tensors, without an operator: where ops.cpp checks tensors, shortcut.cpp has read them.

#include "inference.h"

#include <algorithm>

#include "panels.h"
#include "workspace.h"

namespace fastrnn {
namespace {

// Tables for a batch of which all rows have all steps.
cpu::Sequences dense(int64_t T, int64_t B, int64_t shares) {
  int64_t *const alive = workspace<int64_t>(T), *const first = workspace<int64_t>(T);
  int64_t *const order = workspace<int64_t>(B), *const compact = workspace<int64_t>(T + 1);
  int64_t* const row_start = workspace<int64_t>(shares + 1);
  compact[0] = 0;
  for (int64_t t = 0; t < T; ++t) alive[t] = B, first[t] = t * B, compact[t + 1] = (t + 1) * B;
  for (int64_t b = 0; b < B; ++b) order[b] = b;
  for (int64_t k = 0; k <= shares; ++k) row_start[k] = B * k / shares;
  cpu::Sequences seq;
  seq.T = T, seq.B = B;
  seq.alive = alive, seq.order = order, seq.first = first, seq.compact = compact, seq.row_start = row_start;
  return seq;
}

template <class C>
void infer_in(const cpu::Kernels<C>& kernels, const Inference& given) {
  const Workspace memory;
  const int64_t T = given.T, B = given.B, I = given.I, H = given.H, D = given.directions;
  const int64_t width = cpu::pre_width(given.cell);
  const auto read = [](const void* p) { return static_cast<const C*>(p); };
  const auto state = [&](const void* p, int64_t d) { return p == nullptr ? nullptr : read(p) + d * B * H; };

  cpu::Layer<C> layer;
  cpu::Problem problem =
      cpu::problem_of(given.cell, {T, B, I, H}, given.directions, kernels.lanes, sizeof(C), false, torch_threads());
  if (cpu::tuned.load(std::memory_order_relaxed)) {
    problem.split = cpu::split_for({kind_of(given, 0), {T, B, I, H}}, problem.threads);
  }
  layer.plan = cpu::plan_here(problem);
  const int shares = layer.plan.shares();
  layer.cell = given.cell, layer.I = I, layer.H = H, layer.directions = given.directions, layer.s1 = T;
  layer.packed = T > 1, layer.half_weights = given.half_weights;
  layer.seq = dense(T, B, layer.plan.team_shares);
  layer.x.data = static_cast<const char*>(given.x), layer.x.item = sizeof(C);
  layer.x.step = given.x_step, layer.x.row = given.x_row;
  layer.y.data = static_cast<char*>(given.y), layer.y.item = sizeof(C);
  layer.y.step = B * D * H, layer.y.row = D * H;
  C* const zeros = workspace<C>(std::max(I, H));
  std::fill(zeros, zeros + std::max(I, H), C(0));
  layer.zeros = zeros;
  layer.scratch = workspace<char>(shares * layer.plan.scratch);
  cpu::Barrier barriers[2];
  layer.barriers = barriers;

  Panels<C> panels(kernels, given.cell);
  const auto add = [&](const void* w, int64_t K, const C** to) {
    if (!layer.packed) {
      *to = read(w);
    } else if (layer.half_weights) {
      const int64_t rows = cpu::gate_count(given.cell) * H;
      panels.forward(pairs<C>(static_cast<const uint16_t*>(w), rows, K), H, (K + 1) / 2, to);
    } else {
      panels.forward({read(w), K, 1}, H, K, to);
    }
  };
  for (int64_t d = 0; d < D; ++d) {
    cpu::Direction<C>& dir = layer.dir[d];
    const LayerWeights& w = given.weights[d];
    C* const bias = workspace<C>(width * H);
    cpu::sum_bias(given.cell, read(w.b_ih), read(w.b_hh), H, bias);
    dir.weights.bias = bias;
    dir.reverse = d == 1;
    dir.h0 = state(given.h0, d), dir.c0 = state(given.c0, d);
    dir.h_n = static_cast<C*>(given.h_n) + d * B * H;
    dir.pre = workspace<C>(layer.plan.forward_steps * B * width * H);
    if (cpu::has_c(given.cell)) {
      dir.c_n = static_cast<C*>(given.c_n) + d * B * H;
      dir.c_state = workspace<C>(B * H);
    }
    add(w.w_ih, I, &dir.weights.w_ih);
    add(w.w_hh, H, &dir.weights.w_hh);
  }
  panels.pack(shares > 1);
  in_shares(
      layer.plan, [&](int64_t lo, int64_t hi) { kernels.forward(layer, lo, hi); },
      [&](int64_t lo, int64_t hi) { return layer.work(lo, hi); });
}

}  // namespace

void infer(const Inference& given) {
  if (given.is_double) {
    infer_in(*cpu::isa().f64, given);
  } else {
    infer_in(*cpu::isa().f32, given);
  }
}

}  // namespace fastrnn
