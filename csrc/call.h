// What an operator of a layer is given, checked: tensors, sizes and the tables of rows and steps that the engine reads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "cpu/rnn.h"

namespace fastrnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

// A string argument. As std::string it would be lost with every call: torch's conversion leaks its copy until 2.13 at
// least (https://github.com/pytorch/pytorch/issues/191340).
inline std::string take(StringHandle argument) {
  size_t length = 0;
  const char* data = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_string_length(argument, &length));
  TORCH_ERROR_CODE_CHECK(torch_string_c_str(argument, &data));
  const std::string text(data, length);
  TORCH_ERROR_CODE_CHECK(torch_delete_string(argument));
  return text;
}

inline cpu::Cell parse_cell(const std::string& name) {
  if (name == "rnn_tanh") return cpu::Cell::kRnnTanh;
  if (name == "rnn_relu") return cpu::Cell::kRnnRelu;
  if (name == "lstm") return cpu::Cell::kLstm;
  STD_TORCH_CHECK(name == "gru", "cell: expected rnn_tanh, rnn_relu, lstm or gru, got ", name);
  return cpu::Cell::kGru;
}

enum class Tape { kNone, kFull, kLean };

inline Tape parse_tape(const std::string& name) {
  if (name == "full") return Tape::kFull;
  STD_TORCH_CHECK(name == "lean", "tape: expected full or lean, got ", name);
  return Tape::kLean;
}

inline std::string to_string(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

inline void check_sizes(const char* name, const Tensor& t, const Sizes& expected) {
  const auto got = t.sizes();
  STD_TORCH_CHECK(std::equal(got.begin(), got.end(), expected.begin(), expected.end()), name, ": expected size ",
                  to_string({expected.data(), expected.size()}), ", got ", to_string(got));
}

// A result that the caller holds has still its memory (not so after resize_(0) of its storage).
inline void check_kept(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.numel() == 0 || t.const_data_ptr() != nullptr, name,
                  ": expected the result of forward, got a tensor whose storage was freed");
}

inline void check_dtype(const char* name, const Tensor& t, ScalarType expected) {
  STD_TORCH_CHECK(t.scalar_type() == expected, name, ": expected ", torch::headeronly::toString(expected), ", got ",
                  torch::headeronly::toString(t.scalar_type()));
}

// As torch's C interface has it.
inline int32_t dtype_code(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    case ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    case ScalarType::Half:
      return aoti_torch_dtype_float16();
    default:
      return aoti_torch_dtype_float32();
  }
}

template <class C>
constexpr ScalarType kScalar = std::is_same_v<C, double> ? ScalarType::Double : ScalarType::Float;

inline Tensor as(const Tensor& t, ScalarType dtype) {
  return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
}

// Asked of the tensor first: a call of aten's takes microseconds.
inline Tensor without_gaps(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// A tensor whose rows can be read: the features of a row contiguous, any strides before them.
inline Tensor with_rows(const Tensor& t) {
  return t.numel() == 0 || t.stride(-1) == 1 || t.size(-1) == 1 ? t : torch::stable::contiguous(t);
}

// A tensor on the CPU whose memory nobody has written. torch::stable's come by way of the dispatcher, which takes three
// times as long.
inline Tensor empty(const Sizes& sizes, ScalarType dtype) {
  Sizes strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(1, sizes[i]);
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                  dtype_code(dtype), aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

// The common arguments of the operators, checked, with the tables that the engine reads.
struct Call {
  cpu::Cell cell;
  Tensor x;
  OptionalTensor h0, c0;
  std::vector<Tensor> weights;  // per direction: w_ih, w_hh, or w_ih, w_hh, b_ih, b_hh
  int directions;
  bool bias, packed, padded;
  bool half_weights;  // x, states and biases are float, w_ih and w_hh are bfloat16
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
    half_weights = x.scalar_type() == ScalarType::Float && weights[1].scalar_type() == ScalarType::BFloat16;
    for (size_t i = 0; i < weights.size(); ++i) {
      static const char* const kNames[] = {"w_ih", "w_hh", "b_ih", "b_hh"};
      const size_t kind = i % (weights.size() / directions);
      check_sizes(kNames[kind], weights[i], kind == 0 ? Sizes{rows, I} : kind == 1 ? Sizes{rows, H} : Sizes{rows});
      check_dtype(kNames[kind], weights[i], half_weights && kind < 2 ? ScalarType::BFloat16 : x.scalar_type());
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
    STD_TORCH_CHECK(T > 0, "x: expected at least one step, got none");
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

  Sizes rows_of(int64_t features) const { return packed ? Sizes{N, features} : Sizes{T, B, features}; }

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

}  // namespace fastrnn
