// The operators of fastrnn/_ops.py: their schemas, and what computes them for CPU tensors. They allocate, and run the
// engine's shares on torch's threads. This file and the headers beside it are the only ones that know torch.

#include "ops.h"

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
template <class C>
Outputs forward_in(const Call& call, Tape tape_kind, bool want_cells) {
  Pass<C> pass(call, false, tape_kind != Tape::kNone);
  cpu::Layer<C>& layer = pass.layer;
  const Tensor& x = call.x;
  const ScalarType storage = x.scalar_type(), compute = kScalar<C>;
  const int64_t D = call.directions, B = call.B, H = call.H;
  const bool has_c = cpu::has_c(call.cell);

  // No output holds memory that nobody wrote: where padding leaves rows out, they are zero.
  const auto allocate = [&](const Sizes& sizes, ScalarType dtype, bool whole) {
    return whole ? empty(sizes, dtype) : torch::stable::new_zeros(x, sizes, dtype);
  };
  const auto all_steps = [&](ScalarType dtype) { return allocate(call.rows_of(D * H), dtype, !call.padded); };
  Outputs out{all_steps(storage), empty({D, B, H}, compute), {}, {}, {}};
  layer.y = call.rows(out.y, static_cast<char*>(out.y.mutable_data_ptr()), layer.x.item);
  if (has_c) out.c_n = empty({D, B, H}, compute);
  if (has_c && (want_cells || tape_kind == Tape::kFull)) {
    out.cells = all_steps(compute);
    layer.cells = call.rows(*out.cells, pass.data(*out.cells), 1);
  }
  const int64_t chunks = (call.T + cpu::kLeanChunk - 1) / cpu::kLeanChunk;
  const bool gates_kept = tape_kind == Tape::kFull && cpu::gate_count(call.cell) > 1;
  const bool borders_kept = tape_kind == Tape::kLean && has_c;
  if (gates_kept) out.tape = allocate({D, call.N, pass.width * H}, compute, !call.padded);
  if (borders_kept) out.tape = allocate({D, chunks, B, H}, compute, false);
  for (int64_t d = 0; d < D; ++d) {
    cpu::Direction<C>& dir = layer.dir[d];
    dir.h_n = pass.data(out.h_n) + d * B * H;
    if (has_c) dir.c_n = pass.data(*out.c_n) + d * B * H;
    if (gates_kept) dir.tape = pass.data(*out.tape) + d * call.N * pass.width * H;
    if (borders_kept) dir.borders = pass.data(*out.tape) + d * chunks * B * H;
    if (!gates_kept) dir.pre = pass.workspace(layer.plan.forward_steps * B * pass.width * H);
    if (layer.store != nullptr) dir.h_state = pass.workspace(2 * B * H);
    if (has_c && !layer.cells) dir.c_state = pass.workspace(B * H);
  }
  pass.pack(true, false, false);
  if (B > 0) {
    pass.shares([&](int64_t lo, int64_t hi) { pass.kernels.forward(layer, lo, hi); });
  }
  out.h_n = as(out.h_n, storage);
  if (has_c) out.c_n = as(*out.c_n, storage);
  return out;
}

// ---- Backward ----
template <class C>
Gradients backward_in(const Call& call, const Cotangents& given, const Kept& kept, const Wanted& wanted) {
  Pass<C> pass(call, true, true);
  cpu::Layer<C>& layer = pass.layer;
  const Tensor& x = call.x;
  const ScalarType storage = x.scalar_type(), compute = kScalar<C>;
  const int64_t D = call.directions, B = call.B, H = call.H, I = call.I, T = call.T;
  const bool has_c = cpu::has_c(call.cell), recompute = kept.kind == Tape::kLean && cpu::gate_count(call.cell) > 1;
  layer.lean = recompute;
  const Tensor y = with_rows(kept.y);
  layer.y = call.rows(y, static_cast<char*>(const_cast<void*>(y.const_data_ptr())), layer.x.item);
  OptionalTensor cells;
  if (has_c && !recompute) {
    cells = without_gaps(*kept.cells);
    layer.cells = call.rows(*cells, const_cast<C*>(cells->const_data_ptr<C>()), 1);
  }
  // The gates of every step, or borders.
  C* const tape = kept.tape ? const_cast<C*>(pass.values(*kept.tape)) : nullptr;
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
  Gradients found;
  if (wanted.x) {
    const Sizes sizes = call.rows_of(I);
    found.x = D == 2 || call.padded ? torch::stable::new_zeros(x, sizes, compute) : empty(sizes, compute);
    layer.dx = call.rows(*found.x, pass.data(*found.x), 1);
  }
  // The gradients that arrive from the step processed before: at first there is none.
  if (wanted.h0 && call.h0) found.h0 = empty({D, B, H}, compute);
  if (wanted.c0 && call.c0 && has_c) found.c0 = empty({D, B, H}, compute);
  const auto from_zero = [&](const OptionalTensor& t) {
    C* const to = t ? pass.data(*t) : pass.workspace(D * B * H);
    std::fill(to, to + D * B * H, C(0));
    return to;
  };
  C *const dh_data = from_zero(found.h0), *const dc_data = has_c ? from_zero(found.c0) : nullptr;

  const int64_t steps = recompute ? cpu::kLeanChunk : layer.plan.backward_steps, chunks = (T + steps - 1) / steps;
  const int64_t most_rows = std::min(steps, T) * B;
  // x is used where it lies if its rows already lie as the compact buffers have them.
  const bool x_compact = layer.load == nullptr && !call.padded && x.is_contiguous();
  const size_t each = call.weights.size() / D;  // tensors a direction
  if (wanted.weights) {
    for (size_t i = 0; i < (wanted.apart ? D : 1) * each; ++i) {
      const int64_t rows = (wanted.apart ? 1 : D) * cpu::gate_count(call.cell) * H;
      const size_t kind = i % each;
      found.weights.push_back(empty(kind < 2 ? Sizes{rows, kind == 0 ? I : H} : Sizes{rows}, compute));
    }
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
      if (has_c) dir.borders = tape + d * chunks_kept * B * H;
      dir.gates = pass.workspace(most_rows * pass.width * H);
      if (has_c) dir.chunk_cells = pass.workspace(most_rows * H);
    } else if (cpu::gate_count(call.cell) > 1) {
      dir.tape = tape + d * call.N * pass.width * H;
    }
    dir.dgates = pass.workspace(most_rows * pass.width * H);
    dir.h_prev = pass.workspace(most_rows * H);
    if (!x_compact) dir.x_chunk = pass.workspace(most_rows * I);
    if (wanted.weights) {
      std::array<C*, 4> to{};
      for (size_t i = 0; i < each; ++i) {
        const Tensor& t = found.weights[wanted.apart ? d * each + i : i];
        to[i] = pass.data(t) + (wanted.apart ? 0 : d * (t.numel() / D));
      }
      sums.emplace_back(pass, most_rows, chunks, to);
    }
  }
  pass.pack(recompute, true, wanted.x);

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
      if (wanted.x) {
        const int64_t parts = std::min<int64_t>(layer.plan.shares(), rows);
        pass.parallel(parts, [&](int64_t lo, int64_t hi) {
          pass.kernels.input_gradient(layer, static_cast<int>(d), lo, rows * lo / parts, rows * hi / parts);
        });
      }
      if (wanted.weights) {
        const cpu::Direction<C>& dir = layer.dir[d];
        sums[d].add(dir.dgates, dir.h_prev,
                    x_compact ? static_cast<const C*>(x.const_data_ptr()) + call.first[t0] * I : dir.x_chunk, rows);
      }
    }
  }
  for (auto& sum : sums) sum.finish();
  for (OptionalTensor* t : {&found.x, &found.h0, &found.c0}) {
    if (*t) *t = as(**t, storage);
  }
  for (Tensor& t : found.weights) t = as(t, storage);
  return found;
}

// ---- The operators ----
// What the cell does not have, or nobody asked for.
Tensor or_empty(const OptionalTensor& t, ScalarType dtype) { return t ? *t : empty({0}, dtype); }

ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> layer(StringHandle cell, Tensor x, OptionalTensor h0, OptionalTensor c0,
                                                 std::vector<Tensor> weights, bool bidirectional,
                                                 OptionalTensor batch_sizes, OptionalTensor lengths,
                                                 OptionalTensor reset, StringHandle tape, bool cells) {
  const std::string name = take(cell);
  parse_tape(take(tape));  // what to keep where gradients are wanted, and here none are
  const Outputs out =
      forward(Call(name, x, h0, c0, weights, bidirectional, batch_sizes, lengths, reset), Tape::kNone, cells);
  return {out.y, out.h_n, or_empty(out.c_n, x.scalar_type()), or_empty(out.cells, compute_type(x))};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layer_forward(StringHandle cell, Tensor x, OptionalTensor h0,
                                                                 OptionalTensor c0, std::vector<Tensor> weights,
                                                                 bool bidirectional, OptionalTensor batch_sizes,
                                                                 OptionalTensor lengths, OptionalTensor reset,
                                                                 StringHandle tape, bool cells) {
  const std::string name = take(cell);
  const Tape kind = parse_tape(take(tape));
  const Outputs out = forward(Call(name, x, h0, c0, weights, bidirectional, batch_sizes, lengths, reset), kind, cells);
  const ScalarType compute = compute_type(x);
  return {out.y, out.h_n, or_empty(out.c_n, x.scalar_type()), or_empty(out.cells, compute),
          or_empty(out.tape, compute)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> layer_backward(
    StringHandle cell, OptionalTensor dy, OptionalTensor dh_n, OptionalTensor dc_n, OptionalTensor dcells, Tensor x,
    OptionalTensor h0, OptionalTensor c0, std::vector<Tensor> weights, bool bidirectional, OptionalTensor batch_sizes,
    OptionalTensor lengths, OptionalTensor reset, Tensor y, Tensor cells, Tensor tape, StringHandle tape_kind,
    bool need_x, bool need_h0, bool need_c0, bool need_weights) {
  const std::string name = take(cell);
  const Tape kind = parse_tape(take(tape_kind));
  const Call call(name, x, h0, c0, weights, bidirectional, batch_sizes, lengths, reset);
  const Gradients found =
      backward(call, {dy, dh_n, dc_n, dcells}, {y, cells, tape, kind}, {need_x, need_h0, need_c0, need_weights, false});
  const ScalarType dtype = x.scalar_type();
  const auto weight = [&](size_t i) { return i < found.weights.size() ? found.weights[i] : empty({0}, dtype); };
  return {or_empty(found.x, dtype),
          or_empty(found.h0, dtype),
          or_empty(found.c0, dtype),
          weight(0),
          weight(1),
          weight(2),
          weight(3)};
}

}  // namespace

Outputs forward(const Call& call, Tape tape, bool cells) {
  switch (call.x.scalar_type()) {
    case ScalarType::Float:
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return forward_in<float>(call, tape, cells);
    default:
      check_dtype("x", call.x, ScalarType::Double);
      return forward_in<double>(call, tape, cells);
  }
}

Gradients backward(const Call& call, const Cotangents& given, const Kept& kept, const Wanted& wanted) {
  STD_TORCH_CHECK(!call.half_weights, "w_ih: expected Float in backward, got BFloat16");
  const int64_t D = call.directions, B = call.B, H = call.H;
  const bool has_c = cpu::has_c(call.cell), is_full = kept.kind == Tape::kFull;
  const bool has_gates = is_full && cpu::gate_count(call.cell) > 1, has_cells = is_full && has_c;
  const bool has_borders = !is_full && has_c;
  const ScalarType compute = compute_type(call.x);
  check_sizes("y", kept.y, call.rows_of(D * H));
  if (given.dy) check_sizes("dy", *given.dy, call.rows_of(D * H));
  if (given.dcells) check_sizes("dcells", *given.dcells, call.rows_of(D * H));
  if (given.dh_n) check_sizes("dh_n", *given.dh_n, {D, B, H});
  if (given.dc_n) check_sizes("dc_n", *given.dc_n, {D, B, H});
  STD_TORCH_CHECK(kept.cells || !has_cells, "cells: expected the result of forward, got None");
  STD_TORCH_CHECK(kept.tape || !(has_gates || has_borders), "tape: expected the result of forward, got None");
  if (has_cells) check_sizes("cells", *kept.cells, call.rows_of(D * H));
  if (has_gates) check_sizes("tape", *kept.tape, {D, call.N, cpu::pre_width(call.cell) * H});
  if (has_borders) check_sizes("tape", *kept.tape, {D, (call.T + cpu::kLeanChunk - 1) / cpu::kLeanChunk, B, H});
  check_dtype("y", kept.y, call.x.scalar_type());
  check_kept("y", kept.y);
  if (kept.cells) check_dtype("cells", *kept.cells, compute), check_kept("cells", *kept.cells);
  if (kept.tape) check_dtype("tape", *kept.tape, compute);
  if (compute == ScalarType::Double) return backward_in<double>(call, given, kept, wanted);
  return backward_in<float>(call, given, kept, wanted);
}

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
