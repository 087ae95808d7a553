// One step of one layer from pointers, for streaming: no operator, no tables, nothing allocated. Where ops.cpp checks
// tensors, fastrnn/_streaming.py has checked them already.

#include "step.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "workspace.h"

namespace fastrnn {
namespace {

template <class C>
C* workspace(int64_t n) {
  return static_cast<C*>(Workspace::take(n * int64_t{sizeof(C)}));
}

template <class C>
void step_of(const cpu::Kernels<C>& kernels, const Step& step) {
  const Workspace memory;
  const int64_t B = step.B, I = step.I, H = step.H, width = cpu::pre_width(step.cell);
  const auto read = [](const void* p) { return static_cast<const C*>(p); };
  const int threads = cpu::pool_usable() ? static_cast<int>(torch::stable::get_num_threads()) : 1;

  cpu::Layer<C> layer;
  layer.plan = cpu::make_plan(cpu::problem_of(step.cell, {1, B, I, H}, 1, kernels.lanes, sizeof(C), false, threads));
  layer.cell = step.cell, layer.I = I, layer.H = H;
  layer.packed = false, layer.half_weights = step.half_weights;
  const int64_t alive[] = {B}, first[] = {0}, compact[] = {0, B};
  int64_t* const order = workspace<int64_t>(B);
  for (int64_t b = 0; b < B; ++b) order[b] = b;
  int64_t* const row_start = workspace<int64_t>(layer.plan.team_shares + 1);
  for (int64_t k = 0; k <= layer.plan.team_shares; ++k) row_start[k] = B * k / layer.plan.team_shares;
  layer.seq = {1, B, alive, order, first, compact, row_start};
  layer.x.data = static_cast<const char*>(step.x), layer.x.row = I, layer.x.item = sizeof(C);
  layer.y.data = static_cast<char*>(step.y), layer.y.row = H, layer.y.item = sizeof(C);
  C* const zeros = workspace<C>(std::max(I, H));
  std::fill(zeros, zeros + std::max(I, H), C(0));
  layer.zeros = zeros;
  layer.scratch = workspace<char>(layer.plan.shares() * layer.plan.scratch);
  cpu::Barrier barrier;
  layer.barriers = &barrier;

  cpu::Direction<C>& dir = layer.dir[0];
  dir.weights.w_ih = read(step.w_ih), dir.weights.w_hh = read(step.w_hh);
  C* const bias = workspace<C>(width * H);
  cpu::sum_bias(step.cell, read(step.b_ih), read(step.b_hh), H, bias);
  dir.weights.bias = bias;
  dir.h0 = read(step.h0), dir.c0 = read(step.c0);
  dir.h_n = static_cast<C*>(step.h_n), dir.c_n = static_cast<C*>(step.c_n);
  dir.pre = workspace<C>(B * width * H);
  if (cpu::has_c(step.cell)) dir.c_state = workspace<C>(B * H);

  const auto run = [&](int64_t lo, int64_t hi) { kernels.forward(layer, lo, hi); };
  if (layer.plan.shares() == 1) {
    run(0, 1);
  } else {
    torch::stable::parallel_for(0, layer.plan.shares(), 1, run);
  }
}

}  // namespace

void run_step(const Step& step) {
  if (step.is_double) {
    step_of(*cpu::isa().f64, step);
  } else {
    step_of(*cpu::isa().f32, step);
  }
}

}  // namespace fastrnn
