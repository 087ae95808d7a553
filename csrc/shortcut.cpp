// Tensors are read by the C function that torch offers for DLPack: 30 ns for each, a tenth of what it takes to ask
// their Python attributes.

#include "shortcut.h"

#include <unistd.h>

#include <algorithm>
#include <exception>
#include <new>
#include <utility>

#include "call.h"
#include "dlpack.h"
#include "inference.h"
#include "threads.h"

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

// While there is one, other threads of Python may run; but not if what is computed is done before one has begun.
class Unlocked {
 public:
  explicit Unlocked(bool is_long) : thread_(is_long ? PyEval_SaveThread() : nullptr) {}
  ~Unlocked() {
    if (thread_ == nullptr) return;
    try {
      PyEval_RestoreThread(thread_);
    } catch (...) {
      // Python shuts down. Before 3.14 it ends such a thread by unwinding it, past references that would be given back
      // without its lock; as 3.14 does, this one waits for the process to end.
      for (;;) pause();
    }
  }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  PyThreadState* thread_;
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
  // Null where this torch has no such exchange: then every call takes the usual route. First called while the module is
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
    const bool trains = !request.compute;  // a step whose gradients are wanted, or else it would be computed
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

std::nullptr_t set_error() {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& e) {
    PyErr_SetString(PyExc_RuntimeError, e.what());
  }
  return nullptr;
}

void prepare_shortcuts() { Torch::get(); }

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
  if (cpu::tuned.load(std::memory_order_relaxed) && (request.compute || call.layer.T == 1)) {
    const cpu::Whose whose = call.whose();
    if (whose == cpu::Whose::kUnknown || (!request.compute && whose == cpu::Whose::kOurs)) Py_RETURN_NONE;
    if (request.compute && whose == cpu::Whose::kTorchs) Py_RETURN_FALSE;
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
