#include "shortcut.h"

#include <algorithm>
#include <utility>

#include "call.h"
#include "inference.h"
#include "tensors.h"
#include "threads.h"

namespace fastrnn {
namespace {

constexpr dlpack::DataType kFloat32 = {dlpack::kFloat, 32, 1}, kFloat64 = {dlpack::kFloat, 64, 1};
constexpr dlpack::DataType kBfloat16 = {dlpack::kBfloat, 16, 1};

// What Python asks for.
struct Request {
  PyObject *input, *hx, *params;
  int64_t layers;  // 0: a cell
  int directions;
  bool batch_first;
  int64_t most_rows;  // of a single step
  bool compute;       // and not only check
};

// A call of a stack of layers, or of a cell.
struct Shortcut {
  const Torch& torch;
  const Request& request;
  Inference layer{};
  int64_t each = 0;                // parameters a layer and direction
  dlpack::Tensor x{}, state[2]{};  // of `state`, what hx has
  Shape output, states;            // time comes first, but in the output of a single step
  PyObject* first_state = nullptr;

  bool read_input() {
    if (!torch.read(request.input, x)) return false;
    const bool whole = x.dtype == kFloat32 || x.dtype == kFloat64;
    if (!whole && (request.compute || x.dtype != kBfloat16)) return false;
    const bool is_cell = request.layers == 0;
    const int lead = is_cell ? 0 : 1;  // a layer's input has a dimension of time
    if (x.ndim != lead + 1 && x.ndim != lead + 2) return false;
    const bool batched = x.ndim == lead + 2;
    const int time = request.batch_first && batched ? 1 : 0;
    layer.is_double = x.dtype == kFloat64;
    layer.T = is_cell ? 1 : x.shape[time];
    layer.B = batched ? x.shape[is_cell ? 0 : 1 - time] : 1;
    layer.I = x.shape[x.ndim - 1];
    layer.x = x.data;
    layer.x_step = time == 1 ? layer.I : layer.B * layer.I;
    layer.x_row = time == 1 ? layer.T * layer.I : layer.I;
    if (layer.T == 1 && (layer.B > request.most_rows || request.directions > 1)) return false;
    if (!is_cell) states.add(request.layers * request.directions);
    if (batched) states.add(layer.B);
    for (int d = 0; d + 1 < x.ndim; ++d) output.add(x.shape[transposed() ? 1 - d : d]);
    return true;
  }

  // Whether the output is the transpose of what the engine writes, as it is where operators compute it.
  bool transposed() const { return request.batch_first && x.ndim == 3 && layer.T > 1; }

  PyObject* param(int64_t i) const {
    PyObject* const params = request.params;
    return PyList_Check(params) ? PyList_GetItem(params, i) : PyTuple_GetItem(params, i);  // borrowed
  }

  int64_t params_count() const {
    PyObject* const params = request.params;
    return PyList_Check(params) ? PyList_Size(params) : PyTuple_Check(params) ? PyTuple_Size(params) : 0;
  }

  bool read_param(int64_t i, const Shape& shape, dlpack::DataType dtype, const void*& data) const {
    dlpack::Tensor t;
    if (!torch.read(param(i), t) || t.dtype != dtype || !has_shape(t, shape)) return false;
    data = t.data;
    return true;
  }

  // The weights of a layer, whose input has layer.I features.
  bool read_layer(int64_t number) {
    const int64_t rows = cpu::gate_count(layer.cell) * layer.H;
    const dlpack::DataType dtype = layer.half_weights ? kBfloat16 : x.dtype;
    for (int d = 0; d < request.directions; ++d) {
      const int64_t i = (number * request.directions + d) * each;
      LayerWeights& w = layer.weights[d];
      if (!read_param(i, {{rows, layer.I}, 2}, dtype, w.w_ih) ||
          !read_param(i + 1, {{rows, layer.H}, 2}, dtype, w.w_hh)) {
        return false;
      }
      if (each == 2) continue;
      if (!read_param(i + 2, {{rows}, 1}, x.dtype, w.b_ih) || !read_param(i + 3, {{rows}, 1}, x.dtype, w.b_hh)) {
        return false;
      }
    }
    return true;
  }

  bool read_state() {
    PyObject* const hx = request.hx;
    if (hx == Py_None) return true;
    const bool two = cpu::has_c(layer.cell);
    if (two && (!PyTuple_Check(hx) || PyTuple_Size(hx) != 2)) return false;
    for (int i = 0; i < (two ? 2 : 1); ++i) {
      PyObject* const given = two ? PyTuple_GetItem(hx, i) : hx;
      if (!torch.read(given, state[i]) || state[i].dtype != x.dtype || !has_shape(state[i], states)) return false;
      if (i == 0) first_state = given;
    }
    layer.h0 = state[0].data, layer.c0 = state[1].data;
    return true;
  }

  // Is it a dense call of ordinary tensors?
  bool read() {
    const int64_t directions = std::max<int64_t>(request.layers, 1) * request.directions, count = params_count();
    each = count / directions;
    dlpack::Tensor w_hh;
    if ((each != 2 && each != 4) || count != each * directions) return false;
    if (!read_input() || !torch.read(param(1), w_hh) || w_hh.ndim != 2) return false;
    layer.directions = request.directions;
    layer.H = w_hh.shape[1];
    layer.half_weights = request.compute && w_hh.dtype == kBfloat16 && x.dtype == kFloat32;
    states.add(layer.H), output.add(request.directions * layer.H);
    if (!read_state()) return false;
    for (int64_t number = request.compute ? 0 : request.layers - 1; number > 0; --number) {
      layer.I = layer.directions * layer.H;
      if (!read_layer(number)) return false;
    }
    layer.I = x.shape[x.ndim - 1];
    return read_layer(0);
  }

  // Whose a call that was read is, by what was measured.
  cpu::Whose whose() const {
    if (layer.half_weights) return cpu::Whose::kOurs;  // which torch's layers do not take
    const bool trains = !request.compute;              // or else it would be computed
    return cpu::whose({kind_of(layer, request.layers, trains), {layer.T, layer.B, layer.I, layer.H}}, torch_threads());
  }

  // All layers, of a call that was read; false where the operators are to do it, or where Python's error is set.
  bool run(Reference& y, Reference& h_n, Reference& c_n) {
    dlpack::Tensor h{}, c{};
    const bool given = first_state != nullptr;
    h_n = torch.make(states, given ? first_state : request.input, given ? state[0] : x, h);
    if (!h_n) return false;
    if (cpu::has_c(layer.cell)) {
      c_n = torch.make(states, h_n.get(), h, c);
      if (!c_n) return false;
    }
    const int64_t item = layer.is_double ? 8 : 4, bytes = layer.directions * layer.B * layer.H * item;
    const auto behind = [&](const void* p) { return p == nullptr ? p : static_cast<const char*>(p) + bytes; };
    layer.h_n = h.data, layer.c_n = c.data;
    for (int64_t number = 0;;) {
      dlpack::Tensor out{};
      Reference made;
      const bool is_last = number + 1 >= request.layers;
      if (request.layers > 0 && (is_last || layer.T > 1)) {
        made = torch.make(output, h_n.get(), h, out);
        if (!made) return false;
      }
      layer.y = made ? out.data : layer.h_n;  // of a single step, they are the same
      if (!compute_layer()) return false;
      y = std::move(made);  // and what it held, this layer's input, goes
      if (is_last) return true;
      ++number;
      layer.x = layer.y, layer.I = layer.directions * layer.H;
      layer.x_step = layer.B * layer.I, layer.x_row = layer.I;
      layer.h0 = behind(layer.h0), layer.c0 = behind(layer.c0);
      layer.h_n = const_cast<void*>(behind(layer.h_n)), layer.c_n = const_cast<void*>(behind(layer.c_n));
      if (!read_layer(number)) return false;
    }
  }

  // False where Python's error is set.
  bool compute_layer() const {
    const int64_t factors = layer.directions * layer.H * (layer.I + layer.H);
    try {
      const Unlocked others(layer.T * layer.B > kManyFactors / factors);
      infer(layer);
      return true;
    } catch (...) {
      set_error();
      return false;
    }
  }

  // y as the caller has it, or null with Python's error set.
  Reference in_the_callers_layout(Reference y) const {
    return transposed() ? Reference(PyObject_CallMethod(y.get(), "transpose_", "ii", 0, 1)) : std::move(y);
  }
};

}  // namespace

PyObject* shortcut(PyObject*, PyObject* const* args, Py_ssize_t count) {
  constexpr Py_ssize_t kCount = 9;
  if (count != kCount) {
    return PyErr_Format(PyExc_TypeError, "shortcut: expected %zd arguments, got %zd", kCount, count);
  }
  const Torch* const torch = Torch::get();
  if (torch == nullptr) Py_RETURN_NONE;
  const char* const name = PyUnicode_AsUTF8AndSize(args[0], nullptr);
  const int64_t layers = PyLong_AsLongLong(args[4]), most_rows = PyLong_AsLongLong(args[7]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  const Request request{args[1],   args[2],           args[3], layers, args[5] == Py_True ? 2 : 1, args[6] == Py_True,
                        most_rows, args[8] == Py_True};
  Shortcut call{*torch, request};
  try {
    call.layer.cell = parse_cell(name);
  } catch (...) {
    return set_error();
  }
  if (!call.read()) Py_RETURN_NONE;
  if (cpu::tuned.load(std::memory_order_relaxed)) {
    const cpu::Whose whose = call.whose();
    if (request.compute && whose == cpu::Whose::kTorchs) Py_RETURN_FALSE;
    // With gradients, who called goes on by torch's cells where there is one step, and else by the engine.
    const cpu::Whose other = call.layer.T == 1 ? cpu::Whose::kOurs : cpu::Whose::kTorchs;
    if (whose == cpu::Whose::kUnknown || (!request.compute && whose == other)) Py_RETURN_NONE;
  }
  if (!request.compute) return PyLong_FromLongLong(call.layer.T);
  Reference y, h_n, c_n;
  if (!call.run(y, h_n, c_n)) {
    if (PyErr_Occurred() != nullptr) return nullptr;
    Py_RETURN_NONE;
  }
  Reference states = c_n ? Reference(PyTuple_Pack(2, h_n.get(), c_n.get())) : std::move(h_n);
  if (!states || layers == 0) return states.release();
  y = call.in_the_callers_layout(std::move(y));
  return y ? PyTuple_Pack(2, y.get(), states.get()) : nullptr;
}

}  // namespace fastrnn
