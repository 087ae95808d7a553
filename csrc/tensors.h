// Tensors of Python's, seen from C++. They are read by the C function that torch offers for DLPack: 30 ns for each, a
// tenth of what it takes to ask their Python attributes.
#pragma once

#include "python.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "dlpack.h"

namespace fastrnn {

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

constexpr int64_t kManyFactors = 1 << 18;  // of one gate: about 30 us, which is long

// Sizes of a tensor.
struct Shape {
  int64_t sizes[3] = {};
  int n = 0;
  void add(int64_t size) { sizes[n++] = size; }
};

inline bool has_shape(const dlpack::Tensor& t, const Shape& shape) {
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

  // Whether `object`, from the caller, is a tensor, and no subclass, which may act otherwise; on the CPU; and all that
  // it seems to hold is in its memory as it is.
  bool is_ordinary(PyObject* object, dlpack::Tensor& t) const {
    const auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    if (type != tensor_.get() && type != parameter_.get()) return false;
    if (!look(object, t)) {
      PyErr_Clear();
      return false;
    }
    if (t.device.type != dlpack::kCpu || t.byte_offset != 0) return false;
    const bool is_empty = std::any_of(t.shape, t.shape + t.ndim, [](int64_t size) { return size == 0; });
    if (t.data == nullptr && !is_empty) return false;
    const Reference negated(PyObject_CallFunctionObjArgs(is_neg_.get(), object, nullptr));
    if (!negated) PyErr_Clear();
    return negated.get() == Py_False;
  }

  // The same, and contiguous and not empty.
  bool read(PyObject* object, dlpack::Tensor& t) const {
    if (!is_ordinary(object, t) || t.data == nullptr) return false;
    int64_t apart = 1;
    for (int32_t d = t.ndim - 1; d >= 0; --d) {
      if (t.shape[d] != 1 && t.strides != nullptr && t.strides[d] != apart) return false;
      apart *= t.shape[d];
    }
    return apart > 0;
  }

  // Whether there are the functions below.
  bool has_handles() const { return to_handles_ && from_handles_; }

  // A list of tensors as a list of capsules that hold handles of torch's C interface, which are the caller's to delete;
  // and back, which takes the handles. Null where Python's error is set.
  Reference to_handles(PyObject* tensors) const { return call(to_handles_, tensors); }
  Reference from_handles(PyObject* capsules) const { return call(from_handles_, capsules); }

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
      const Reference core(PyObject_GetAttrString(torch.get(), "_C"));
      const Reference aoti(core ? PyObject_GetAttrString(core.get(), "_aoti") : nullptr);
      if (aoti) {
        to_handles_ = Reference(PyObject_GetAttrString(aoti.get(), "unsafe_alloc_void_ptrs_from_tensors"));
        from_handles_ = Reference(PyObject_GetAttrString(aoti.get(), "alloc_tensors_by_stealing_from_void_ptrs"));
      }
      PyErr_Clear();
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

  static Reference call(const Reference& function, PyObject* argument) {
    return Reference(PyObject_CallFunctionObjArgs(function.get(), argument, nullptr));
  }

  static Reference tuple(const Shape& shape) {
    Reference sizes(PyTuple_New(shape.n));
    for (int i = 0; sizes && i < shape.n; ++i) {
      PyObject* const size = PyLong_FromLongLong(shape.sizes[i]);
      if (size == nullptr || PyTuple_SetItem(sizes.get(), i, size) != 0) return Reference();
    }
    return sizes;
  }

  Reference tensor_, parameter_, is_neg_, empty_like_, new_empty_, to_handles_, from_handles_;
  const dlpack::Exchange* exchange_ = nullptr;
};

}  // namespace fastrnn
