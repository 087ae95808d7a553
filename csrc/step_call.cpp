// Tensors are read by the C function that torch offers for DLPack: 30 ns for each, a tenth of what it takes to ask
// their Python attributes.

#include "step_call.h"

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "call.h"
#include "dlpack.h"
#include "step.h"

namespace fastrnn {
namespace {

// A reference that is given back; null where a call of Python failed, which leaves its error set.
class Reference {
 public:
  explicit Reference(PyObject* object = nullptr) : object_(object) {}
  Reference(Reference&& other) noexcept : object_(other.release()) {}
  Reference& operator=(Reference&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Reference() { Py_XDECREF(object_); }
  PyObject* get() const { return object_; }
  PyObject* release() { return std::exchange(object_, nullptr); }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  PyObject* object_;
};

struct Shape {
  int64_t sizes[3] = {};
  int n = 0;
  void add(int64_t size) { sizes[n++] = size; }
};

bool has_shape(const dlpack::Tensor& t, const Shape& shape) {
  return std::equal(t.shape, t.shape + t.ndim, shape.sizes, shape.sizes + shape.n);
}

// What is needed of torch.
class Torch {
 public:
  // Null where this torch has no such exchange: then every step takes the usual route. First called while the module is
  // loaded: making it runs Python, which may let another thread in, and that one would wait here for ever.
  static const Torch* get() {
    static const Torch* const torch = new Torch;  // for as long as Python runs
    return torch->exchange_ == nullptr ? nullptr : torch;
  }

  // Whether `object`, from the caller, is a tensor, and no subclass, which may act otherwise; contiguous, on the CPU,
  // and not empty.
  bool read(PyObject* object, dlpack::Tensor& t) const {
    const auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    if (type != tensor_.get() && type != parameter_.get()) return false;
    if (!look(object, t)) {
      PyErr_Clear();
      return false;
    }
    if (t.device.type != dlpack::kCpu || t.data == nullptr || t.byte_offset != 0) return false;
    int64_t apart = 1;
    for (int32_t d = t.ndim - 1; d >= 0; --d) {
      if (t.shape[d] != 1 && t.strides != nullptr && t.strides[d] != apart) return false;
      apart *= t.shape[d];
    }
    const Reference negated(PyObject_CallFunctionObjArgs(is_neg_.get(), object, nullptr));
    if (!negated) PyErr_Clear();
    return apart > 0 && negated.get() == Py_False;
  }

  // A tensor of that shape, of the dtype of one that is there; null where Python's error is set.
  Reference make(const Shape& shape, PyObject* like, const dlpack::Tensor& seen, dlpack::Tensor& t) const {
    Reference made;
    if (has_shape(seen, shape)) {
      made = Reference(PyObject_CallFunctionObjArgs(empty_like_.get(), like, nullptr));
    } else if (const Reference sizes = tuple(shape)) {
      made = Reference(PyObject_CallMethodObjArgs(like, new_empty_.get(), sizes.get(), nullptr));
    }
    return made && look(made.get(), t) ? std::move(made) : Reference();
  }

 private:
  Torch() {
    const Reference torch(PyImport_ImportModule("torch")), nn(PyImport_ImportModule("torch.nn"));
    if (torch && nn) {
      tensor_ = Reference(PyObject_GetAttrString(torch.get(), "Tensor"));
      parameter_ = Reference(PyObject_GetAttrString(nn.get(), "Parameter"));
      empty_like_ = Reference(PyObject_GetAttrString(torch.get(), "empty_like"));
      new_empty_ = Reference(PyUnicode_FromString("new_empty"));
    }
    if (tensor_ && parameter_ && empty_like_ && new_empty_) {
      is_neg_ = Reference(PyObject_GetAttrString(tensor_.get(), "is_neg"));
      const Reference capsule(PyObject_GetAttrString(tensor_.get(), dlpack::kExchangeAttribute));
      const void* const api = capsule ? PyCapsule_GetPointer(capsule.get(), dlpack::kExchangeCapsule) : nullptr;
      const auto* const exchange = static_cast<const dlpack::Exchange*>(api);
      const bool known = exchange != nullptr && exchange->version.major == dlpack::kMajorVersion;
      if (is_neg_ && known && exchange->read != nullptr) exchange_ = exchange;
    }
    PyErr_Clear();
  }

  bool look(PyObject* object, dlpack::Tensor& t) const { return exchange_->read(object, &t) == 0; }

  static Reference tuple(const Shape& shape) {
    Reference sizes(PyTuple_New(shape.n));
    for (int i = 0; sizes && i < shape.n; ++i) {
      PyObject* const size = PyLong_FromLongLong(shape.sizes[i]);
      if (size == nullptr || PyTuple_SetItem(sizes.get(), i, size) != 0) return Reference();
    }
    return sizes;
  }

  Reference tensor_, parameter_, is_neg_, empty_like_, new_empty_;
  const dlpack::Exchange* exchange_ = nullptr;
};

constexpr dlpack::DataType kFloat32 = {dlpack::kFloat, 32, 1}, kFloat64 = {dlpack::kFloat, 64, 1};
constexpr dlpack::DataType kBfloat16 = {dlpack::kBfloat, 16, 1};
constexpr int64_t kManyFactors = 1 << 18;  // of one gate: about 30 us

// A stack of layers, or a cell, at a single step.
struct StepCall {
  const Torch& torch;
  PyObject *input, *hx, *params;
  int64_t layers;  // 0: a cell
  bool batch_first;
  int64_t most_rows;
  bool compute;  // and not only check
  Step step{};
  int64_t each = 0;                // parameters a layer
  dlpack::Tensor x{}, state[2]{};  // of `state`, what hx has
  Shape output, states;
  PyObject* first_state = nullptr;

  bool read_input() {
    if (!torch.read(input, x)) return false;
    const bool whole = x.dtype == kFloat32 || x.dtype == kFloat64;
    if (!whole && (compute || x.dtype != kBfloat16)) return false;
    const int lead = layers > 0 ? 1 : 0;  // a layer's input has a dimension of time
    if (x.ndim != lead + 1 && x.ndim != lead + 2) return false;
    const bool batched = x.ndim == lead + 2;
    const int time = batch_first && batched ? 1 : 0;
    if (lead == 1 && x.shape[time] != 1) return false;
    step.is_double = x.dtype == kFloat64;
    step.B = batched ? x.shape[lead == 1 ? 1 - time : 0] : 1;
    step.I = x.shape[x.ndim - 1];
    step.x = x.data;
    if (step.B > most_rows) return false;
    if (lead == 1) states.add(layers);
    if (batched) states.add(step.B);
    for (int32_t d = 0; d + 1 < x.ndim; ++d) output.add(x.shape[d]);
    return true;
  }

  PyObject* param(int64_t i) const {
    return PyList_Check(params) ? PyList_GetItem(params, i) : PyTuple_GetItem(params, i);  // borrowed
  }

  int64_t params_count() const {
    return PyList_Check(params) ? PyList_Size(params) : PyTuple_Check(params) ? PyTuple_Size(params) : 0;
  }

  bool read_param(int64_t i, const Shape& shape, dlpack::DataType dtype, const void*& data) const {
    dlpack::Tensor t;
    if (!torch.read(param(i), t) || t.dtype != dtype || !has_shape(t, shape)) return false;
    data = t.data;
    return true;
  }

  // The weights of a layer, whose input has step.I features.
  bool read_layer(int64_t layer) {
    const int64_t rows = cpu::gate_count(step.cell) * step.H, i = layer * each;
    const dlpack::DataType weights = step.half_weights ? kBfloat16 : x.dtype;
    return read_param(i, {{rows, step.I}, 2}, weights, step.w_ih) &&
           read_param(i + 1, {{rows, step.H}, 2}, weights, step.w_hh) &&
           (each == 2 ||
            (read_param(i + 2, {{rows}, 1}, x.dtype, step.b_ih) && read_param(i + 3, {{rows}, 1}, x.dtype, step.b_hh)));
  }

  bool read_state() {
    if (hx == Py_None) return true;
    const bool two = cpu::has_c(step.cell);
    if (two && (!PyTuple_Check(hx) || PyTuple_Size(hx) != 2)) return false;
    for (int i = 0; i < (two ? 2 : 1); ++i) {
      PyObject* const given = two ? PyTuple_GetItem(hx, i) : hx;
      if (!torch.read(given, state[i]) || state[i].dtype != x.dtype || !has_shape(state[i], states)) return false;
      if (i == 0) first_state = given;
    }
    step.h0 = state[0].data, step.c0 = state[1].data;
    return true;
  }

  // Is it a single step of ordinary tensors?
  bool read() {
    const int64_t count = params_count();
    each = count / std::max<int64_t>(layers, 1);
    dlpack::Tensor w_hh;
    if ((each != 2 && each != 4) || count != each * std::max<int64_t>(layers, 1)) return false;
    if (!read_input() || !torch.read(param(1), w_hh) || w_hh.ndim != 2) return false;
    step.H = w_hh.shape[1];
    step.half_weights = compute && w_hh.dtype == kBfloat16 && x.dtype == kFloat32;
    states.add(step.H), output.add(step.H);
    return read_state() && read_layer(0);
  }

  // All layers, of a call that was read; false where the operators are to do it, or where Python's error is set.
  bool run(Reference& y, Reference& h_n, Reference& c_n) {
    dlpack::Tensor h{}, c{}, out{};
    const bool given = first_state != nullptr;
    h_n = torch.make(states, given ? first_state : input, given ? state[0] : x, h);
    if (!h_n) return false;
    if (cpu::has_c(step.cell)) {
      c_n = torch.make(states, h_n.get(), h, c);
      if (!c_n) return false;
    }
    if (layers > 0) {
      y = torch.make(output, h_n.get(), h, out);
      if (!y) return false;
    }
    const int64_t bytes = step.B * step.H * (step.is_double ? 8 : 4);
    const auto behind = [&](const void* p) { return p == nullptr ? p : static_cast<const char*>(p) + bytes; };
    step.h_n = h.data, step.c_n = c.data;
    for (int64_t layer = 0;;) {
      step.y = layer + 1 == layers ? out.data : step.h_n;
      if (!compute_layer()) return false;
      if (++layer >= layers) return true;
      step.x = step.h_n, step.I = step.H;
      step.h0 = behind(step.h0), step.c0 = behind(step.c0);
      step.h_n = const_cast<void*>(behind(step.h_n)), step.c_n = const_cast<void*>(behind(step.c_n));
      if (!read_layer(layer)) return false;
    }
  }

  // Other threads of Python may run meanwhile, unless the step is over before one of them has begun.
  bool compute_layer() const {
    const bool is_long = step.B * step.H * (step.I + step.H) > kManyFactors;
    PyThreadState* const thread = is_long ? PyEval_SaveThread() : nullptr;
    std::string failed;
    try {
      run_step(step);
    } catch (const std::exception& e) {
      failed = e.what();
    }
    if (is_long) PyEval_RestoreThread(thread);
    if (!failed.empty()) PyErr_SetString(PyExc_RuntimeError, failed.c_str());
    return failed.empty();
  }
};

}  // namespace

void prepare_step_calls() { Torch::get(); }

PyObject* step_call(PyObject*, PyObject* const* args, Py_ssize_t count) {
  constexpr Py_ssize_t kCount = 8;
  if (count != kCount) {
    return PyErr_Format(PyExc_TypeError, "step: expected %zd arguments, got %zd", kCount, count);
  }
  const Torch* const torch = Torch::get();
  if (torch == nullptr) Py_RETURN_NONE;
  const char* const name = PyUnicode_AsUTF8AndSize(args[0], nullptr);
  const int64_t layers = PyLong_AsLongLong(args[4]), most_rows = PyLong_AsLongLong(args[6]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  StepCall call{*torch, args[1], args[2], args[3], layers, args[5] == Py_True, most_rows, args[7] == Py_True};
  try {
    call.step.cell = parse_cell(name);
  } catch (const std::exception& e) {
    PyErr_SetString(PyExc_RuntimeError, e.what());
    return nullptr;
  }
  if (!call.read()) Py_RETURN_NONE;
  if (!call.compute) Py_RETURN_TRUE;
  Reference y, h_n, c_n;
  if (!call.run(y, h_n, c_n)) {
    if (PyErr_Occurred() != nullptr) return nullptr;
    Py_RETURN_NONE;
  }
  Reference states = c_n ? Reference(PyTuple_Pack(2, h_n.get(), c_n.get())) : std::move(h_n);
  return y && states ? PyTuple_Pack(2, y.get(), states.get()) : states.release();
}

}  // namespace fastrnn
