// The operators of fastrnn/_ops.py for CPU tensors, and the module fastrnn._C: the only file that knows torch or Python.
// It checks, allocates, cuts the pass into shares, runs them on torch's threads and leaves the weight gradients to aten.

#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/rnn.h"

namespace fastrnn {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

constexpr int64_t kNothing[] = {0};

// ---- What an operator is given --------------------------------------------------------------------------------------

cpu::Cell parse_cell(const std::string& name) {
  if (name == "rnn_tanh") return cpu::Cell::kRnnTanh;
  if (name == "rnn_relu") return cpu::Cell::kRnnRelu;
  if (name == "lstm") return cpu::Cell::kLstm;
  STD_TORCH_CHECK(name == "gru", "cell: expected rnn_tanh, rnn_relu, lstm or gru, got ", name);
  return cpu::Cell::kGru;
}

enum class Tape { kNone, kFull, kLean };

Tape parse_tape(const std::string& name) {
  if (name == "none") return Tape::kNone;
  if (name == "full") return Tape::kFull;
  STD_TORCH_CHECK(name == "lean", "tape: expected none, full or lean, got ", name);
  return Tape::kLean;
}

std::string to_string(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

void check_sizes(const char* name, const Tensor& t, const Sizes& expected) {
  const auto got = t.sizes();
  STD_TORCH_CHECK(std::equal(got.begin(), got.end(), expected.begin(), expected.end()), name, ": expected size ",
                  to_string({expected.data(), expected.size()}), ", got ", to_string(got));
}

void check_dtype(const char* name, const Tensor& t, ScalarType expected) {
  STD_TORCH_CHECK(t.scalar_type() == expected, name, ": expected ", torch::headeronly::toString(expected), ", got ",
                  torch::headeronly::toString(t.scalar_type()));
}

template <class C>
constexpr ScalarType kScalar = std::is_same_v<C, double> ? ScalarType::Double : ScalarType::Float;

Tensor as(const Tensor& t, ScalarType dtype) { return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype); }

// A tensor whose rows can be read: the features of a row contiguous, any strides before them.
Tensor with_rows(const Tensor& t) {
  return t.numel() == 0 || t.stride(-1) == 1 || t.size(-1) == 1 ? t : torch::stable::contiguous(t);
}

const cpu::Kernels<float>& kernels_of(float) { return *cpu::isa().f32; }
const cpu::Kernels<double>& kernels_of(double) { return *cpu::isa().f64; }

// The common arguments of both operators, checked, with the tables that the engine reads.
struct Call {
  cpu::Cell cell;
  Tensor x;
  OptionalTensor h0, c0;
  std::vector<Tensor> weights;  // per direction: w_ih, w_hh, or w_ih, w_hh, b_ih, b_hh
  int directions;
  bool bias, packed, padded;
  OptionalTensor reset;
  int64_t T, B, I, H, N;  // N: stored rows
  std::vector<int64_t> alive, order, first, compact;

  Call(const std::string& name, const Tensor& x_, const OptionalTensor& h0_, const OptionalTensor& c0_,
       const std::vector<Tensor>& weights_, bool bidirectional, const OptionalTensor& batch_sizes,
       const OptionalTensor& lengths, const OptionalTensor& reset_)
      : cell(parse_cell(name)),
        x(with_rows(x_)),
        h0(h0_),
        c0(c0_),
        weights(weights_),
        directions(bidirectional ? 2 : 1),
        packed(batch_sizes.has_value()),
        padded(lengths.has_value()),
        reset(reset_) {
    STD_TORCH_CHECK(!(packed && padded), "lengths: expected None with batch_sizes");
    STD_TORCH_CHECK(x.dim() == (packed ? 2 : 3), "x: expected ", packed ? 2 : 3, " dimensions, got ", x.dim());
    bias = weights.size() == size_t(4 * directions);
    STD_TORCH_CHECK(bias || weights.size() == size_t(2 * directions), "weights: expected ", 2 * directions, " or ",
                    4 * directions, ", got ", weights.size());
    STD_TORCH_CHECK(weights[1].dim() == 2, "w_hh: expected 2 dimensions, got ", weights[1].dim());
    I = x.size(-1);
    H = weights[1].size(1);
    const int64_t rows = cpu::gate_count(cell) * H;
    for (size_t i = 0; i < weights.size(); ++i) {
      static const char* const kNames[] = {"w_ih", "w_hh", "b_ih", "b_hh"};
      const size_t kind = i % (weights.size() / directions);
      check_sizes(kNames[kind], weights[i], kind == 0 ? Sizes{rows, I} : kind == 1 ? Sizes{rows, H} : Sizes{rows});
      check_dtype(kNames[kind], weights[i], x.scalar_type());
    }
    if (packed) {
      read_batch_sizes(*batch_sizes);
    } else {
      read_dense(lengths);
    }
    for (const auto* state : {&h0, &c0}) {
      if (!state->has_value()) continue;
      check_sizes(state == &h0 ? "h0" : "c0", **state, {directions, B, H});
      check_dtype(state == &h0 ? "h0" : "c0", **state, x.scalar_type());
    }
    if (reset) {
      check_sizes("reset", *reset, {T, B});
      check_dtype("reset", *reset, ScalarType::Bool);
    }
    compact.assign(1, 0);
    for (int64_t t = 0; t < T; ++t) compact.push_back(compact.back() + alive[t]);
  }

  void read_batch_sizes(const Tensor& given) {
    check_dtype("batch_sizes", given, ScalarType::Long);
    STD_TORCH_CHECK(given.dim() == 1 && given.numel() > 0, "batch_sizes: expected one dimension and at least one step");
    const Tensor sizes = torch::stable::contiguous(given);
    const int64_t* p = sizes.const_data_ptr<int64_t>();
    T = sizes.numel();
    B = p[0];
    N = x.size(0);
    alive.assign(p, p + T);
    int64_t total = 0;
    for (int64_t t = 0; t < T; ++t) {
      STD_TORCH_CHECK(p[t] > 0 && p[t] <= (t == 0 ? p[0] : p[t - 1]),
                      "batch_sizes: expected positive numbers that never rise, got ", p[t], " at step ", t);
      first.push_back(total);
      total += p[t];
    }
    STD_TORCH_CHECK(total == N, "batch_sizes: expected a sum of ", N, ", the rows of x, got ", total);
    for (int64_t b = 0; b < B; ++b) order.push_back(b);
  }

  void read_dense(const OptionalTensor& lengths) {
    T = x.size(0);
    B = x.size(1);
    N = T * B;
    alive.assign(T, B);
    for (int64_t t = 0; t < T; ++t) first.push_back(t * B);
    for (int64_t b = 0; b < B; ++b) order.push_back(b);
    if (!lengths) return;
    check_dtype("lengths", *lengths, ScalarType::Long);
    check_sizes("lengths", *lengths, {B});
    const Tensor given = torch::stable::contiguous(*lengths);
    const int64_t* p = given.const_data_ptr<int64_t>();
    for (int64_t b = 0; b < B; ++b) {
      STD_TORCH_CHECK(p[b] > 0 && p[b] <= T, "lengths: expected numbers from 1 to ", T, ", got ", p[b]);
    }
    std::stable_sort(order.begin(), order.end(), [p](int64_t a, int64_t b) { return p[a] > p[b]; });
    for (int64_t t = 0; t < T; ++t) {
      int64_t& n = alive[t] = t == 0 ? B : alive[t - 1];
      while (n > 0 && p[order[n - 1]] <= t) --n;
    }
  }

  Sizes rows_of(int64_t features) const {
    return packed ? Sizes{N, features} : Sizes{T, B, features};
  }

  template <class P>
  cpu::Rows<P> rows(const Tensor& t, P* data, int64_t item) const {
    cpu::Rows<P> rows;
    rows.data = data;
    rows.step = packed ? 0 : t.stride(0);
    rows.row = t.stride(packed ? 0 : 1);
    rows.first = packed ? first.data() : nullptr;
    rows.item = item;
    return rows;
  }
};

// ---- A layer's pass: workspace, weights, plan ---------------------------------------------------------------------

template <class C>
struct Pass {
  const Call& call;
  const cpu::Kernels<C>& kernels = kernels_of(C{});
  cpu::Layer<C> layer;
  int64_t width;
  std::vector<Tensor> kept;  // whatever the layer points to
  std::vector<int64_t> row_start;
  std::unique_ptr<cpu::Barrier[]> barriers;

  Pass(const Call& c, bool backward) : call(c), width(cpu::pre_width(c.cell)) {
    const int64_t unit_vectors = c.cell == cpu::Cell::kRnnTanh || c.cell == cpu::Cell::kRnnRelu || backward ? 4 : 1;
    cpu::Problem problem;
    problem.T = c.T, problem.B = c.B, problem.I = c.I, problem.H = c.H;
    problem.gates = static_cast<int>(cpu::gate_count(c.cell));
    problem.width = static_cast<int>(width);
    problem.directions = c.directions;
    problem.element = sizeof(C);
    problem.unit_panels = static_cast<int>((c.H + unit_vectors * kernels.lanes - 1) / (unit_vectors * kernels.lanes));
    problem.threads = cpu::pool_usable() ? static_cast<int>(torch::stable::get_num_threads()) : 1;
    layer.plan = cpu::make_plan(problem);
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

  Tensor tensor(const Sizes& sizes) {
    kept.push_back(torch::stable::new_empty(call.x, sizes, kScalar<C>));
    return kept.back();
  }

  C* workspace(int64_t n) { return data(tensor({n})); }

  static C* data(const Tensor& t) { return t.mutable_data_ptr<C>(); }

  const C* values(const Tensor& t) {
    kept.push_back(torch::stable::contiguous(as(t, kScalar<C>)));
    return kept.back().const_data_ptr<C>();
  }

  const C* state(const OptionalTensor& t, int d) { return t ? values(*t) + d * call.B * call.H : nullptr; }

  // Pack what this pass needs of the weights; the products of one direction are packed side by side.
  void pack(bool forward, bool backward, bool need_x) {
    struct Item {
      Tensor w;
      int64_t n, K;
      bool transposed;
      const C** to;
    };
    std::vector<Item> items;
    const int64_t gates = cpu::gate_count(call.cell), each = call.weights.size() / call.directions;
    for (int d = 0; d < call.directions; ++d) {
      cpu::Weights<C>& w = layer.dir[d].weights;
      const Tensor w_ih = as(call.weights[d * each], kScalar<C>), w_hh = as(call.weights[d * each + 1], kScalar<C>);
      if (forward) items.push_back({w_ih, call.H, call.I, false, &w.w_ih});
      if (forward) items.push_back({w_hh, call.H, call.H, false, &w.w_hh});
      if (backward) items.push_back({w_hh, call.H, gates * call.H, true, &w.w_hh_t});
      if (backward && need_x) items.push_back({w_ih, call.I, gates * call.H, true, &w.w_ih_t});
      if (forward) w.bias = bias(d * each);
    }
    for (Item& item : items) {
      *item.to = workspace(item.transposed ? kernels.plain_panels_size(item.n, item.K)
                                           : kernels.forward_panels_size(call.cell, item.n, item.K));
    }
    parallel(items.size(), [&](int64_t lo, int64_t hi) {
      for (int64_t i = lo; i < hi; ++i) {
        const Item& item = items[i];
        const C* w = item.w.template const_data_ptr<C>();
        C* to = const_cast<C*>(*item.to);
        const int64_t row = item.w.stride(0), column = item.w.stride(1);
        if (item.transposed) {
          kernels.pack_plain(w, row, column, item.n, item.K, to);
        } else {
          kernels.pack_forward(call.cell, w, row, column, item.n, item.K, to);
        }
      }
    });
  }

  // b_ih + b_hh by pre-activation column; a GRU's n keeps its two apart, in columns n and hn.
  const C* bias(size_t at) {
    const int64_t H = call.H, gates = cpu::gate_count(call.cell);
    C* const sum = workspace(width * H);
    std::fill(sum, sum + width * H, C(0));
    if (!call.bias) return sum;
    const C *b_ih = values(call.weights[at + 2]), *b_hh = values(call.weights[at + 3]);
    for (int64_t i = 0; i < gates * H; ++i) {
      const bool apart = call.cell == cpu::Cell::kGru && i >= 2 * H;
      sum[i] = apart ? b_ih[i] : b_ih[i] + b_hh[i];
      if (apart) sum[i + H] = b_hh[i];
    }
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

Tensor empty_result(const Tensor& like, ScalarType dtype) { return torch::stable::new_empty(like, kNothing, dtype); }

// ---- Forward ----------------------------------------------------------------------------------------------------------

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
  const Tensor y = all_steps(storage), h_n = pass.tensor({D, B, H}), c_n = pass.tensor({has_c ? D : 0, B, H});
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

// ---- Backward ---------------------------------------------------------------------------------------------------------

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

// The weight gradients of one direction, summed over chunks in order.
template <class C>
struct WeightGradients {
  Pass<C>& pass;
  Tensor dw_ih, dw_hh, db;  // db: by pre-activation column
  Tensor partial, ones;
  bool any = false;

  WeightGradients(Pass<C>& p, int64_t most_rows) : pass(p) {
    const int64_t rows = cpu::gate_count(p.call.cell) * p.call.H, H = p.call.H, I = p.call.I;
    dw_ih = torch::stable::new_empty(p.call.x, Sizes{rows, I}, kScalar<C>);
    dw_hh = torch::stable::new_empty(p.call.x, Sizes{rows, H}, kScalar<C>);
    db = torch::stable::new_empty(p.call.x, Sizes{1, p.width * H}, kScalar<C>);
    partial = p.tensor({rows * std::max<int64_t>({I, H, 1})});
    ones = p.tensor({1, most_rows});
    std::fill(p.data(ones), p.data(ones) + most_rows, C(1));
  }

  // dgates (n, width * H), h_prev (n, H), x (n, I): a chunk's compact rows.
  void add(const Tensor& dgates, const Tensor& h_prev, const Tensor& x) {
    const int64_t H = pass.call.H, n = dgates.size(0);
    if (n == 0) return;
    const int64_t gates = cpu::gate_count(pass.call.cell);
    product(columns(dgates, 0, gates * H), x, dw_ih);
    if (pass.call.cell == cpu::Cell::kGru) {
      product(columns(dgates, 0, 2 * H), h_prev, leading(dw_hh, 0, 2 * H));
      product(columns(dgates, 3 * H, H), h_prev, leading(dw_hh, 2 * H, H));
    } else {
      product(dgates, h_prev, dw_hh);
    }
    if (pass.call.bias) accumulate(columns(ones, 0, n), dgates, db);
    any = true;
  }

  void product(const Tensor& dgates, const Tensor& factor, const Tensor& into) {
    if (factor.size(1) > 0) accumulate(torch::stable::transpose(dgates, 0, 1), factor, into);
  }

  void accumulate(const Tensor& a, const Tensor& b, const Tensor& into) {
    if (!any) return multiply(a, b, into);
    const int64_t n = into.numel();
    multiply(a, b, torch::stable::reshape(leading(partial, 0, n), into.sizes()));
    C* const sum = Pass<C>::data(into);
    const C* const more = Pass<C>::data(partial);
    const int64_t parts = n > 65536 ? pass.layer.plan.shares() : 1;
    pass.parallel(parts, [&](int64_t lo, int64_t hi) {
      for (int64_t i = n * lo / parts; i < n * hi / parts; ++i) sum[i] += more[i];
    });
  }

  // The gradients of w_ih, w_hh and, where there are biases, b_ih, b_hh, in storage.
  void append_to(std::vector<Tensor>& gradients) {
    const int64_t H = pass.call.H, gates = cpu::gate_count(pass.call.cell);
    const ScalarType storage = pass.call.x.scalar_type();
    if (!any) {
      for (Tensor* t : {&dw_ih, &dw_hh, &db}) torch::stable::zero_(*t);
    }
    gradients.push_back(as(dw_ih, storage));
    gradients.push_back(as(dw_hh, storage));
    if (!pass.call.bias) return;
    for (const bool hidden : {false, true}) {
      const Tensor b = torch::stable::new_empty(pass.call.x, Sizes{gates * H}, kScalar<C>);
      const C* const from = Pass<C>::data(db);
      C* const to = Pass<C>::data(b);
      const bool apart = hidden && pass.call.cell == cpu::Cell::kGru;
      for (int64_t i = 0; i < gates * H; ++i) to[i] = from[apart && i >= 2 * H ? i + H : i];
      gradients.push_back(as(b, storage));
    }
  }
};

template <class C>
BackwardResult backward(const Call& call, const Gradients& given, const Tensor& y, const Tensor& cells, const Tensor& tape,
                        Tape tape_kind, bool need_x, bool need_h0, bool need_c0, bool need_weights) {
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
    dgates.push_back(pass.tensor({most_rows, pass.width * H}));
    h_prev.push_back(pass.tensor({most_rows, H}));
    dir.dgates = pass.data(dgates[d]);
    dir.h_prev = pass.data(h_prev[d]);
    if (!x_compact) {
      x_rows.push_back(pass.tensor({most_rows, I}));
      dir.x_chunk = pass.data(x_rows[d]);
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
        const int64_t blocks = (rows + cpu::kBlockRows - 1) / cpu::kBlockRows;
        pass.parallel(blocks, [&](int64_t lo, int64_t hi) {
          pass.kernels.input_gradient(layer, static_cast<int>(d), lo * cpu::kBlockRows,
                                      std::min(rows, hi * cpu::kBlockRows));
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

// ---- The operators ----------------------------------------------------------------------------------------------------

ForwardResult layer_forward(std::string cell, Tensor x, OptionalTensor h0, OptionalTensor c0, std::vector<Tensor> weights,
                            bool bidirectional, OptionalTensor batch_sizes, OptionalTensor lengths, OptionalTensor reset,
                            std::string tape, bool cells) {
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
  const Tensor y_rows = with_rows(y), cell_rows = torch::stable::contiguous(cells), kept = torch::stable::contiguous(tape);
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

// ---- The module: what Python asks of the engine. An exception must not leave these functions. ---------------------------

namespace {

template <class F>
PyObject* guarded(const F& f) {
  try {
    return f();
  } catch (const std::exception& e) {
    PyErr_SetString(PyExc_RuntimeError, e.what());
    return nullptr;
  }
}

PyObject* cpu_isa(PyObject*, PyObject*) {
  return guarded([] { return PyUnicode_FromString(fastrnn::cpu::isa().name); });
}

PyObject* cpu_isas(PyObject*, PyObject*) {
  return guarded([] {
    PyObject* names = PyList_New(0);
    for (const fastrnn::cpu::Isa* const* isa = fastrnn::cpu::isas(); *isa != nullptr; ++isa) {
      PyObject* name = PyUnicode_FromString((*isa)->name);
      PyList_Append(names, name);
      Py_XDECREF(name);
    }
    return names;
  });
}

PyObject* cpu_plan(PyObject*, PyObject* args) {
  const char *cell = nullptr, *dtype = nullptr;
  long long steps = 0, batch = 0, inputs = 0, hidden = 0;
  int directions = 1, threads = 1;
  if (!PyArg_ParseTuple(args, "sLLLLisi", &cell, &steps, &batch, &inputs, &hidden, &directions, &dtype, &threads)) {
    return nullptr;
  }
  return guarded([&] {
    using namespace fastrnn::cpu;
    const std::string name = cell;
    const bool gated = name == "lstm" || name == "gru", wide = std::strcmp(dtype, "float64") == 0;
    Problem problem;
    problem.T = steps, problem.B = batch, problem.I = inputs, problem.H = hidden;
    problem.gates = name == "lstm" ? 4 : name == "gru" ? 3 : 1;
    problem.width = gated ? 4 : 1;
    problem.directions = directions;
    problem.element = wide ? 8 : 4;
    const long long lanes = (wide ? isa().f64->lanes : isa().f32->lanes) * (gated ? 1 : 4);
    problem.unit_panels = static_cast<int>((hidden + lanes - 1) / lanes);
    problem.threads = pool_usable() ? threads : 1;
    return PyUnicode_FromString((std::string(isa().name) + ", " + describe(make_plan(problem))).c_str());
  });
}

PyMethodDef methods[] = {
    {"cpu_isa", cpu_isa, METH_NOARGS, "The instruction set in use."},
    {"cpu_isas", cpu_isas, METH_NOARGS, "The instruction sets that this CPU can run, best first."},
    {"cpu_plan", cpu_plan, METH_VARARGS, "How a forward pass would be run: instruction set and threads."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", "The C++ engine of fastrnn.", -1, methods, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
