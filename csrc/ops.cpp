// The operators of fastrnn/_ops.py: their schemas, and what computes them for CPU tensors. They allocate, run the
// engine's shares on torch's threads, and leave the larger products of the weight gradients to aten. This file and the
// headers beside it are the only ones that know torch.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "pass.h"
#include "weight_gradients.h"

namespace fastrnn {
namespace {

// ---- Forward ----
using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class C>
ForwardResult forward(const Call& call, Tape tape_kind, bool want_cells) {
  Pass<C> pass(call, false, tape_kind != Tape::kNone);
  cpu::Layer<C>& layer = pass.layer;
  const Tensor& x = call.x;
  const ScalarType storage = x.scalar_type(), compute = kScalar<C>;
  const int64_t D = call.directions, B = call.B, H = call.H;
  const bool has_c = cpu::has_c(call.cell);

  // No output holds memory that nobody wrote: where padding leaves rows out, they are zero.
  const auto allocate = [&](const Sizes& sizes, ScalarType dtype, bool whole) {
    return whole ? torch::stable::new_empty(x, sizes, dtype) : torch::stable::new_zeros(x, sizes, dtype);
  };
  const auto all_steps = [&](ScalarType dtype) { return allocate(call.rows_of(D * H), dtype, !call.padded); };
  const Tensor y = all_steps(storage), h_n = torch::stable::new_empty(x, Sizes{D, B, H}, compute);
  const Tensor c_n = has_c ? torch::stable::new_empty(x, Sizes{D, B, H}, compute) : empty_result(x, compute);
  Tensor cells = empty_result(x, compute), tape = cells;
  layer.y = call.rows(y, static_cast<char*>(y.mutable_data_ptr()), layer.x.item);
  if (has_c && (want_cells || tape_kind == Tape::kFull)) {
    cells = all_steps(compute);
    layer.cells = call.rows(cells, pass.data(cells), 1);
  }
  const int64_t chunks = (call.T + cpu::kLeanChunk - 1) / cpu::kLeanChunk;
  const bool gates_kept = tape_kind == Tape::kFull && cpu::gate_count(call.cell) > 1;
  const bool borders_kept = tape_kind == Tape::kLean && has_c;
  if (gates_kept) tape = allocate({D, call.N, pass.width * H}, compute, !call.padded);
  if (borders_kept) tape = allocate({D, chunks, B, H}, compute, false);
  if (!gates_kept && !borders_kept) tape = empty_result(x, compute);
  for (int64_t d = 0; d < D; ++d) {
    cpu::Direction<C>& dir = layer.dir[d];
    dir.h_n = pass.data(h_n) + d * B * H;
    if (has_c) dir.c_n = pass.data(c_n) + d * B * H;
    if (gates_kept) dir.tape = pass.data(tape) + d * call.N * pass.width * H;
    if (borders_kept) dir.borders = pass.data(tape) + d * chunks * B * H;
    if (!gates_kept) dir.pre = pass.workspace(layer.plan.forward_steps * B * pass.width * H);
    if (layer.store != nullptr) dir.h_state = pass.workspace(2 * B * H);
    if (has_c && !layer.cells) dir.c_state = pass.workspace(B * H);
  }
  pass.pack(true, false, false);
  if (B > 0) {
    pass.shares([&](int64_t lo, int64_t hi) { pass.kernels.forward(layer, lo, hi); });
  }
  return {y, as(h_n, storage), has_c ? as(c_n, storage) : empty_result(x, storage), cells, tape};
}

// ---- Backward ----
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

struct Gradients {
  OptionalTensor dy, dh_n, dc_n, dcells;
};

template <class C>
BackwardResult backward(const Call& call, const Gradients& given, const Tensor& y, const Tensor& cells,
                        const Tensor& tape, Tape tape_kind, bool need_x, bool need_h0, bool need_c0,
                        bool need_weights) {
  Pass<C> pass(call, true, true);
  cpu::Layer<C>& layer = pass.layer;
  const Tensor& x = call.x;
  const ScalarType storage = x.scalar_type(), compute = kScalar<C>;
  const int64_t D = call.directions, B = call.B, H = call.H, I = call.I, T = call.T;
  const bool has_c = cpu::has_c(call.cell), recompute = tape_kind == Tape::kLean && cpu::gate_count(call.cell) > 1;
  layer.lean = recompute;
  layer.y = call.rows(y, static_cast<char*>(const_cast<void*>(y.const_data_ptr())), layer.x.item);
  if (has_c && !recompute) layer.cells = call.rows(cells, const_cast<C*>(cells.const_data_ptr<C>()), 1);
  OptionalTensor dy, dcells;
  if (given.dy) {
    dy = with_rows(as(*given.dy, storage));
    layer.dy = call.rows(*dy, static_cast<const char*>(dy->const_data_ptr()), layer.x.item);
  }
  if (given.dcells) {
    dcells = with_rows(as(*given.dcells, compute));
    layer.dcells = call.rows(*dcells, dcells->const_data_ptr<C>(), 1);
  }
  // Two directions add up in dx; beyond a row's length it is zero.
  Tensor dx = empty_result(x, compute);
  if (need_x) {
    const Sizes sizes = call.rows_of(I);
    const bool zeros = D == 2 || call.padded;
    dx = zeros ? torch::stable::new_zeros(x, sizes, compute) : torch::stable::new_empty(x, sizes, compute);
    layer.dx = call.rows(dx, pass.data(dx), 1);
  }
  // The gradients that arrive from the step processed before: at first there is none.
  const bool want_h0 = need_h0 && call.h0, want_c0 = need_c0 && call.c0 && has_c;
  const auto carried = [&](bool wanted) {
    return wanted ? torch::stable::new_empty(x, Sizes{D, B, H}, compute) : empty_result(x, compute);
  };
  const Tensor dh = carried(want_h0), dc = carried(want_c0);
  const auto from_zero = [&](const Tensor& t, bool wanted) {
    C* const to = wanted ? pass.data(t) : pass.workspace(D * B * H);
    std::fill(to, to + D * B * H, C(0));
    return to;
  };
  C *const dh_data = from_zero(dh, want_h0), *const dc_data = has_c ? from_zero(dc, want_c0) : nullptr;

  const int64_t steps = recompute ? cpu::kLeanChunk : layer.plan.backward_steps, chunks = (T + steps - 1) / steps;
  const int64_t most_rows = std::min(steps, T) * B;
  // x is used where it lies if its rows already lie as the compact buffers have them.
  const bool x_compact = layer.load == nullptr && !call.padded && x.is_contiguous();
  // The gradients of w_ih, w_hh, b_ih and b_hh, the rows of both directions one below the other.
  std::array<Tensor, 4> dw;
  for (size_t i = 0; i < 4; ++i) {
    const int64_t rows = D * cpu::gate_count(call.cell) * H;
    const bool wanted = need_weights && (i < 2 || call.bias);
    const Sizes sizes = i < 2 ? Sizes{rows, i == 0 ? I : H} : Sizes{rows};
    dw[i] = wanted ? torch::stable::new_empty(x, sizes, compute) : empty_result(x, compute);
  }
  std::vector<WeightGradients<C>> sums;
  for (int64_t d = 0; d < D; ++d) {
    cpu::Direction<C>& dir = layer.dir[d];
    dir.dh = dh_data + d * B * H;
    if (has_c) dir.dc = dc_data + d * B * H;
    dir.dh_n = pass.state(given.dh_n, d);
    dir.dc_n = pass.state(given.dc_n, d);
    const int64_t chunks_kept = (T + cpu::kLeanChunk - 1) / cpu::kLeanChunk;
    if (recompute) {
      if (has_c) dir.borders = const_cast<C*>(tape.const_data_ptr<C>()) + d * chunks_kept * B * H;
      dir.gates = pass.workspace(most_rows * pass.width * H);
      if (has_c) dir.chunk_cells = pass.workspace(most_rows * H);
    } else if (cpu::gate_count(call.cell) > 1) {
      dir.tape = const_cast<C*>(tape.const_data_ptr<C>()) + d * call.N * pass.width * H;
    }
    dir.dgates = pass.workspace(most_rows * pass.width * H);
    dir.h_prev = pass.workspace(most_rows * H);
    if (!x_compact) dir.x_chunk = pass.workspace(most_rows * I);
    if (need_weights) {
      std::array<C*, 4> to;
      std::transform(dw.begin(), dw.end(), to.begin(),
                     [&](const Tensor& t) { return pass.data(t) + d * (t.numel() / D); });
      sums.emplace_back(pass, most_rows, chunks, to);
    }
  }
  pass.pack(recompute, true, need_x);

  for (int64_t chunk = chunks - 1; chunk >= 0 && B > 0; --chunk) {
    layer.s0 = chunk * steps;
    layer.s1 = std::min(T, layer.s0 + steps);
    pass.parallel((layer.s1 - layer.s0) * D, [&](int64_t lo, int64_t hi) { pass.kernels.gather(layer, lo, hi); });
    pass.barriers.reset(new cpu::Barrier[layer.plan.teams]);
    layer.barriers = pass.barriers.get();
    pass.shares([&](int64_t lo, int64_t hi) { pass.kernels.backward(layer, lo, hi); });
    for (int64_t d = 0; d < D; ++d) {
      const int64_t t0 = d == 1 ? T - layer.s1 : layer.s0, t1 = d == 1 ? T - layer.s0 : layer.s1;
      const int64_t rows = call.compact[t1] - call.compact[t0];
      if (need_x) {
        const int64_t parts = std::min<int64_t>(layer.plan.shares(), rows);
        pass.parallel(parts, [&](int64_t lo, int64_t hi) {
          pass.kernels.input_gradient(layer, static_cast<int>(d), lo, rows * lo / parts, rows * hi / parts);
        });
      }
      if (need_weights) {
        const cpu::Direction<C>& dir = layer.dir[d];
        sums[d].add(dir.dgates, dir.h_prev,
                    x_compact ? static_cast<const C*>(x.const_data_ptr()) + call.first[t0] * I : dir.x_chunk, rows);
      }
    }
  }
  for (auto& sum : sums) sum.finish();
  const auto stored = [&](const Tensor& t) { return as(t, storage); };
  return {stored(dx), stored(dh), stored(dc), stored(dw[0]), stored(dw[1]), stored(dw[2]), stored(dw[3])};
}

// ---- The operators ----
ForwardResult forward(const Call& call, Tape tape, bool cells) {
  switch (call.x.scalar_type()) {
    case ScalarType::Float:
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return forward<float>(call, tape, cells);
    default:
      check_dtype("x", call.x, ScalarType::Double);
      return forward<double>(call, tape, cells);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer(StringHandle cell, Tensor x, OptionalTensor h0, OptionalTensor c0,
                                                 std::vector<Tensor> weights, bool bidirectional,
                                                 OptionalTensor batch_sizes, OptionalTensor lengths,
                                                 OptionalTensor reset, StringHandle tape, bool cells) {
  const std::string name = take(cell);
  parse_tape(take(tape));  // what to keep where gradients are wanted, and here none are
  const Call call(name, x, h0, c0, weights, bidirectional, batch_sizes, lengths, reset);
  const auto [y, h_n, c_n, all_cells, nothing] = forward(call, Tape::kNone, cells);
  return {y, h_n, c_n, all_cells};
}

ForwardResult layer_forward(StringHandle cell, Tensor x, OptionalTensor h0, OptionalTensor c0,
                            std::vector<Tensor> weights, bool bidirectional, OptionalTensor batch_sizes,
                            OptionalTensor lengths, OptionalTensor reset, StringHandle tape, bool cells) {
  const std::string name = take(cell);
  const Tape kind = parse_tape(take(tape));
  const Call call(name, x, h0, c0, weights, bidirectional, batch_sizes, lengths, reset);
  return forward(call, kind, cells);
}

BackwardResult layer_backward(StringHandle cell, OptionalTensor dy, OptionalTensor dh_n, OptionalTensor dc_n,
                              OptionalTensor dcells, Tensor x, OptionalTensor h0, OptionalTensor c0,
                              std::vector<Tensor> weights, bool bidirectional, OptionalTensor batch_sizes,
                              OptionalTensor lengths, OptionalTensor reset, Tensor y, Tensor cells, Tensor tape,
                              StringHandle tape_kind, bool need_x, bool need_h0, bool need_c0, bool need_weights) {
  const std::string name = take(cell);
  const Tape kind = parse_tape(take(tape_kind));
  const Call call(name, x, h0, c0, weights, bidirectional, batch_sizes, lengths, reset);
  STD_TORCH_CHECK(!call.half_weights, "w_ih: expected Float in backward, got BFloat16");
  const int64_t D = call.directions, H = call.H;
  const bool has_c = cpu::has_c(call.cell), gated = cpu::gate_count(call.cell) > 1;
  check_sizes("y", y, call.rows_of(D * H));
  if (dy) check_sizes("dy", *dy, call.rows_of(D * H));
  if (dcells) check_sizes("dcells", *dcells, call.rows_of(D * H));
  if (dh_n) check_sizes("dh_n", *dh_n, {D, call.B, H});
  if (dc_n) check_sizes("dc_n", *dc_n, {D, call.B, H});
  const ScalarType compute = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  if (kind == Tape::kFull && has_c) check_sizes("cells", cells, call.rows_of(D * H));
  if (kind == Tape::kFull && gated) check_sizes("tape", tape, {D, call.N, cpu::pre_width(call.cell) * H});
  if (kind == Tape::kLean && has_c) {
    check_sizes("tape", tape, {D, (call.T + cpu::kLeanChunk - 1) / cpu::kLeanChunk, call.B, H});
  }
  check_dtype("y", y, x.scalar_type());
  check_dtype("cells", cells, compute);
  check_dtype("tape", tape, compute);
  check_kept("y", y);
  check_kept("cells", cells);
  const Gradients given{dy, dh_n, dc_n, dcells};
  const Tensor y_rows = with_rows(y), cell_rows = without_gaps(cells), kept = without_gaps(tape);
  if (compute == ScalarType::Double) {
    return backward<double>(call, given, y_rows, cell_rows, kept, kind, need_x, need_h0, need_c0, need_weights);
  }
  return backward<float>(call, given, y_rows, cell_rows, kept, kind, need_x, need_h0, need_c0, need_weights);
}

}  // namespace

// The schemas are here and not in Python, so that a program without Python has them as well.
#define LAYER                                                                                                      \
  "Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights, bool bidirectional, Tensor? batch_sizes, Tensor? lengths, " \
  "Tensor? reset"

STABLE_TORCH_LIBRARY(fastrnn, m) {
  m.def("layer(str cell, " LAYER ", str tape, bool cells) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor cells)");
  m.def("layer_forward(str cell, " LAYER
        ", str tape, bool cells)"
        " -> (Tensor y, Tensor h_n, Tensor c_n, Tensor cells, Tensor tape)");
  m.def("layer_backward(str cell, Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor? dcells, " LAYER
        ", Tensor y, Tensor cells, Tensor tape, str tape_kind, bool need_x, bool need_h0, bool need_c0,"
        " bool need_weights)"
        " -> (Tensor dx, Tensor dh0, Tensor dc0, Tensor dw_ih, Tensor dw_hh, Tensor db_ih, Tensor db_hh)");
}

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("layer", TORCH_BOX(&layer));
  m.impl("layer_forward", TORCH_BOX(&layer_forward));
  m.impl("layer_backward", TORCH_BOX(&layer_backward));
}

}  // namespace fastrnn
