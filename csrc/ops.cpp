// The operators of fastrnn/_ops.py for CPU tensors. They allocate, run the engine's shares on torch's threads, and
// leave the weight gradients to aten. This file and the headers beside it are the only ones that know torch.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "pass.h"

namespace fastrnn {
namespace {

// ---- Forward ----
using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class C>
ForwardResult forward(const Call& call, Tape tape_kind, bool want_cells) {
  Pass<C> pass(call, false);
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
    pass.parallel(layer.plan.shares(), [&](int64_t lo, int64_t hi) { pass.kernels.forward(layer, lo, hi); });
  }
  return {y, as(h_n, storage), has_c ? as(c_n, storage) : empty_result(x, storage), cells, tape};
}

// ---- Backward ----
using BackwardResult = std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>>;

Tensor columns(const Tensor& t, int64_t from, int64_t n) {
  Tensor whole = t;
  return torch::stable::narrow(whole, 1, from, n);
}

Tensor leading(const Tensor& t, int64_t from, int64_t n) {
  Tensor whole = t;
  return torch::stable::narrow(whole, 0, from, n);
}

// out = a b
void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  (void)torch::stable::detail::to<Tensor>(stack[0]);
}

struct Gradients {
  OptionalTensor dy, dh_n, dc_n, dcells;
};

// The weight gradients of one direction, summed over chunks in order. Where layers of bfloat16 compute in it, so do
// these products; their sum is float.
template <class C>
struct WeightGradients {
  Pass<C>& pass;
  Tensor dw_ih, dw_hh;
  std::vector<double> db;  // by pre-activation column; over many chunks, only double keeps a plain sum exact
  C* partial;
  char* halves[3] = {};  // dgates, h_prev and x of a chunk in bfloat16
  bool any = false;

  WeightGradients(Pass<C>& p, int64_t most_rows) : pass(p) {
    const int64_t rows = cpu::gate_count(p.call.cell) * p.call.H, H = p.call.H, I = p.call.I;
    dw_ih = torch::stable::new_empty(p.call.x, Sizes{rows, I}, kScalar<C>);
    dw_hh = torch::stable::new_empty(p.call.x, Sizes{rows, H}, kScalar<C>);
    db.assign(p.width * H, 0.0);
    partial = p.workspace(rows * std::max(I, H));
    if (!p.kernels.bf16) return;
    for (size_t i = 0; i < 3; ++i) {
      const int64_t width = i == 0 ? p.width * H : i == 1 ? H : I;
      halves[i] = static_cast<char*>(Workspace::take(2 * most_rows * width));
    }
  }

  // dgates (n, width * H), h_prev (n, H), x (n, I): a chunk's compact rows.
  void add(const Tensor& dgates, const Tensor& h_prev, const Tensor& x) {
    const int64_t n = dgates.size(0);
    if (n == 0) return;
    products(factor(dgates, halves[0]), factor(h_prev, halves[1]), factor(x, halves[2]));
    if (pass.call.bias) {
      const std::array<int64_t, 1> rows{0};
      const Tensor sum = torch::stable::sum(dgates, rows, true);  // pairwise, which a product with ones is not
      const C* const terms = sum.template const_data_ptr<C>();
      for (size_t i = 0; i < db.size(); ++i) db[i] += terms[i];
    }
    any = true;
  }

  void products(const Tensor& dgates, const Tensor& h_prev, const Tensor& x) {
    const int64_t H = pass.call.H, gates = cpu::gate_count(pass.call.cell);
    product(columns(dgates, 0, gates * H), x, dw_ih);
    if (pass.call.cell == cpu::Cell::kGru) {
      product(columns(dgates, 0, 2 * H), h_prev, leading(dw_hh, 0, 2 * H));
      product(columns(dgates, 3 * H, H), h_prev, leading(dw_hh, 2 * H, H));
    } else {
      product(dgates, h_prev, dw_hh);
    }
  }

  // The matrix as aten is to multiply it; in bfloat16 it goes to `to`.
  Tensor factor(const Tensor& matrix, char* to) const {
    if (!pass.kernels.bf16) return matrix;
    const int64_t n = matrix.size(0), width = matrix.size(1);
    const C* const from = matrix.template const_data_ptr<C>();
    const int64_t parts = pass.layer.plan.shares();
    pass.parallel(parts, [&](int64_t lo, int64_t hi) {
      const int64_t begin = n * lo / parts * width, end = n * hi / parts * width;
      pass.kernels.store_bf16(from + begin, to + 2 * begin, end - begin);
    });
    return half_matrix(to, n, width);
  }

  Tensor half_matrix(void* values, int64_t rows, int64_t width) const {
    return torch::stable::from_blob(values, Sizes{rows, width}, Sizes{width, 1}, pass.call.x.device(),
                                    ScalarType::BFloat16);
  }

  void product(const Tensor& dgates, const Tensor& other, const Tensor& into) {
    const int64_t n = into.numel();
    if (n == 0) return;
    const Tensor left = torch::stable::transpose(dgates, 0, 1);
    const bool half = pass.kernels.bf16;
    if (!half && !any) return multiply(left, other, into);
    multiply(
        left, other,
        half ? half_matrix(partial, into.size(0), into.size(1)) : pass.matrix(partial, into.size(0), into.size(1)));
    C* const sum = Pass<C>::data(into);
    const int64_t parts = n > 65536 ? pass.layer.plan.shares() : 1;
    pass.parallel(parts, [&](int64_t lo, int64_t hi) {
      C some[256];
      for (int64_t i = n * lo / parts, end = n * hi / parts; i < end; i += 256) {
        const int64_t count = std::min<int64_t>(256, end - i);
        const C* terms = partial + i;
        if (half) {
          pass.kernels.load_bf16(reinterpret_cast<const uint16_t*>(partial) + i, some, count);
          terms = some;
        }
        for (int64_t k = 0; k < count; ++k) sum[i + k] = any ? sum[i + k] + terms[k] : terms[k];
      }
    });
  }

  // The gradients of w_ih, w_hh and, where there are biases, b_ih, b_hh, in storage.
  void append_to(std::vector<Tensor>& gradients) {
    const int64_t H = pass.call.H, gates = cpu::gate_count(pass.call.cell);
    const ScalarType storage = pass.call.x.scalar_type();
    if (!any) {
      for (Tensor* t : {&dw_ih, &dw_hh}) torch::stable::zero_(*t);
    }
    gradients.push_back(as(dw_ih, storage));
    gradients.push_back(as(dw_hh, storage));
    if (!pass.call.bias) return;
    for (const bool hidden : {false, true}) {
      const Tensor b = torch::stable::new_empty(pass.call.x, Sizes{gates * H}, kScalar<C>);
      C* const to = Pass<C>::data(b);
      const bool apart = hidden && pass.call.cell == cpu::Cell::kGru;
      for (int64_t i = 0; i < gates * H; ++i) to[i] = static_cast<C>(db[apart && i >= 2 * H ? i + H : i]);
      gradients.push_back(as(b, storage));
    }
  }
};

template <class C>
BackwardResult backward(const Call& call, const Gradients& given, const Tensor& y, const Tensor& cells,
                        const Tensor& tape, Tape tape_kind, bool need_x, bool need_h0, bool need_c0,
                        bool need_weights) {
  Pass<C> pass(call, true);
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
  const Tensor dh = torch::stable::new_zeros(x, Sizes{D, B, H}, compute);
  const Tensor dc = torch::stable::new_zeros(x, Sizes{has_c ? D : 0, B, H}, compute);

  const int64_t steps = recompute ? cpu::kLeanChunk : layer.plan.backward_steps, chunks = (T + steps - 1) / steps;
  const int64_t most_rows = std::min(steps, T) * B;
  // x is used where it lies if its rows already lie as the compact buffers have them.
  const bool x_compact = layer.load == nullptr && !call.padded && x.is_contiguous();
  std::vector<Tensor> dgates, h_prev, x_rows;
  std::vector<WeightGradients<C>> sums;
  for (int64_t d = 0; d < D; ++d) {
    cpu::Direction<C>& dir = layer.dir[d];
    dir.dh = pass.data(dh) + d * B * H;
    if (has_c) dir.dc = pass.data(dc) + d * B * H;
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
    dgates.push_back(pass.matrix(dir.dgates, most_rows, pass.width * H));
    h_prev.push_back(pass.matrix(dir.h_prev, most_rows, H));
    if (!x_compact) {
      dir.x_chunk = pass.workspace(most_rows * I);
      x_rows.push_back(pass.matrix(dir.x_chunk, most_rows, I));
    }
    if (need_weights) sums.emplace_back(pass, most_rows);
  }
  const Tensor x_flat = x_compact ? torch::stable::reshape(x, Sizes{call.N, I}) : x;
  pass.pack(recompute, true, need_x);

  for (int64_t chunk = chunks - 1; chunk >= 0 && B > 0; --chunk) {
    layer.s0 = chunk * steps;
    layer.s1 = std::min(T, layer.s0 + steps);
    pass.parallel((layer.s1 - layer.s0) * D, [&](int64_t lo, int64_t hi) { pass.kernels.gather(layer, lo, hi); });
    pass.barriers.reset(new cpu::Barrier[layer.plan.teams]);
    layer.barriers = pass.barriers.get();
    pass.parallel(layer.plan.shares(), [&](int64_t lo, int64_t hi) { pass.kernels.backward(layer, lo, hi); });
    for (int64_t d = 0; d < D; ++d) {
      const int64_t t0 = d == 1 ? T - layer.s1 : layer.s0, t1 = d == 1 ? T - layer.s0 : layer.s1;
      const int64_t rows = call.compact[t1] - call.compact[t0];
      if (need_x) {
        const int64_t parts = std::min<int64_t>(layer.plan.shares(), rows);
        pass.parallel(parts, [&](int64_t lo, int64_t hi) {
          pass.kernels.input_gradient(layer, static_cast<int>(d), rows * lo / parts, rows * hi / parts);
        });
      }
      if (need_weights) {
        sums[d].add(leading(dgates[d], 0, rows), leading(h_prev[d], 0, rows),
                    x_compact ? leading(x_flat, call.first[t0], rows) : leading(x_rows[d], 0, rows));
      }
    }
  }
  std::vector<Tensor> dweights;
  for (auto& sum : sums) sum.append_to(dweights);
  while (dweights.size() < call.weights.size()) dweights.push_back(empty_result(x, storage));
  const Tensor nothing = empty_result(x, storage);
  return {need_x ? as(dx, storage) : nothing, need_h0 && call.h0 ? as(dh, storage) : empty_result(x, storage),
          need_c0 && call.c0 && has_c ? as(dc, storage) : empty_result(x, storage), dweights};
}

// ---- The operators ----
ForwardResult layer_forward(std::string cell, Tensor x, OptionalTensor h0, OptionalTensor c0,
                            std::vector<Tensor> weights, bool bidirectional, OptionalTensor batch_sizes,
                            OptionalTensor lengths, OptionalTensor reset, std::string tape, bool cells) {
  const Call call(cell, x, h0, c0, weights, bidirectional, batch_sizes, lengths, reset);
  switch (x.scalar_type()) {
    case ScalarType::Float:
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return forward<float>(call, parse_tape(tape), cells);
    default:
      check_dtype("x", x, ScalarType::Double);
      return forward<double>(call, parse_tape(tape), cells);
  }
}

BackwardResult layer_backward(std::string cell, OptionalTensor dy, OptionalTensor dh_n, OptionalTensor dc_n,
                              OptionalTensor dcells, Tensor x, OptionalTensor h0, OptionalTensor c0,
                              std::vector<Tensor> weights, bool bidirectional, OptionalTensor batch_sizes,
                              OptionalTensor lengths, OptionalTensor reset, Tensor y, Tensor cells, Tensor tape,
                              std::string tape_kind, bool need_x, bool need_h0, bool need_c0, bool need_weights) {
  const Call call(cell, x, h0, c0, weights, bidirectional, batch_sizes, lengths, reset);
  const Tape kind = parse_tape(tape_kind);
  STD_TORCH_CHECK(kind != Tape::kNone, "tape: expected full or lean in backward, got none");
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
  const Gradients given{dy, dh_n, dc_n, dcells};
  const Tensor y_rows = with_rows(y), cell_rows = torch::stable::contiguous(cells),
               kept = torch::stable::contiguous(tape);
  if (compute == ScalarType::Double) {
    return backward<double>(call, given, y_rows, cell_rows, kept, kind, need_x, need_h0, need_c0, need_weights);
  }
  return backward<float>(call, given, y_rows, cell_rows, kept, kind, need_x, need_h0, need_c0, need_weights);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("layer_forward", TORCH_BOX(&layer_forward));
  m.impl("layer_backward", TORCH_BOX(&layer_backward));
}

}  // namespace fastrnn
