#include "direct.h"

#include <algorithm>
#include <string>
#include <vector>

#include "ops.h"
#include "tensors.h"

namespace fastrnn {
namespace {

// The tensors among a call's arguments, first read and then taken, all at once: to take one takes as long as a step.
class Arguments {
 public:
  Arguments(const Torch& torch, PyObject* const* args) : torch_(torch), args_(args), list_(PyList_New(0)) {}

  // False where it is no ordinary tensor, nor None where that may be.
  bool add(PyObject* object, bool may_be_none) {
    if (object == Py_None && may_be_none) {
      there_.push_back(false);
      return true;
    }
    dlpack::Tensor t;
    if (!list_ || !torch_.is_ordinary(object, t) || PyList_Append(list_.get(), object) != 0) return false;
    there_.push_back(true);
    return true;
  }
  bool add_optional(int first, int last) {
    return std::all_of(args_ + first, args_ + last + 1, [&](PyObject* object) { return add(object, true); });
  }
  bool add_one(int i) { return add(args_[i], false); }
  bool add_all_of(int i) {
    PyObject* const list = args_[i];
    if (!PyList_Check(list)) return false;
    for (Py_ssize_t k = 0; k < PyList_Size(list); ++k) {
      if (!add(PyList_GetItem(list, k), false)) return false;
    }
    return true;
  }

  // False where Python's error is set, or where torch is not as it is known to be.
  bool take() {
    const Reference capsules = torch_.to_handles(list_.get());
    if (!capsules || !PyList_Check(capsules.get())) return false;
    bool all = true;
    for (Py_ssize_t i = 0; i < PyList_Size(capsules.get()); ++i) {
      void* const handle = PyCapsule_GetPointer(PyList_GetItem(capsules.get(), i), nullptr);
      if (handle == nullptr) {
        all = false;
      } else {
        tensors_.emplace_back(static_cast<AtenTensorHandle>(handle));
      }
    }
    return all;
  }

  OptionalTensor next() { return there_[at_++] ? OptionalTensor(tensors_[taken_++]) : std::nullopt; }
  std::vector<Tensor> rest(size_t n) {
    std::vector<Tensor> found;
    for (size_t i = 0; i < n; ++i) found.push_back(*next());
    return found;
  }

 private:
  const Torch& torch_;
  PyObject* const* args_;
  Reference list_;
  std::vector<bool> there_;
  std::vector<Tensor> tensors_;
  size_t at_ = 0, taken_ = 0;
};

// Results as a tuple.
class Results {
 public:
  void add(const Tensor& t) {
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(t.get(), &handle));
    handles_.push_back(handle);
  }
  void add(const OptionalTensor& t) { t ? add(*t) : handles_.push_back(nullptr); }

  // Null where Python's error is set.
  PyObject* take(const Torch& torch) {
    Reference capsules(PyList_New(0));
    for (AtenTensorHandle handle : handles_) {
      if (!capsules) return nullptr;
      const Reference capsule(handle == nullptr ? none() : PyCapsule_New(handle, nullptr, nullptr));
      if (!capsule || PyList_Append(capsules.get(), capsule.get()) != 0) return nullptr;
    }
    const Reference tensors = torch.from_handles(capsules.get());
    if (!tensors) return nullptr;
    handles_.clear();
    return PyList_AsTuple(tensors.get());
  }
  ~Results() {
    for (AtenTensorHandle handle : handles_) {
      if (handle != nullptr) (void)aoti_torch_delete_tensor_object(handle);
    }
  }

 private:
  static PyObject* none() {
    Py_INCREF(Py_None);
    return Py_None;
  }
  std::vector<AtenTensorHandle> handles_;
};

std::string text(PyObject* object) {
  const char* const found = PyUnicode_AsUTF8AndSize(object, nullptr);
  return found == nullptr ? std::string() : std::string(found);
}

bool is_long(const Call& call) {
  return call.N > kManyFactors / std::max<int64_t>(1, call.directions * call.H * (call.I + call.H));
}

// Arguments that all operators have, from the one at `at`: x, h0, c0, weights, bidirectional, batch_sizes, lengths,
// reset.
bool add_layer(Arguments& arguments, int at) {
  return arguments.add_one(at) && arguments.add_optional(at + 1, at + 2) && arguments.add_all_of(at + 3) &&
         arguments.add_optional(at + 5, at + 7);
}

Call take_layer(Arguments& arguments, PyObject* const* args, int at) {
  const Tensor x = *arguments.next();
  const OptionalTensor h0 = arguments.next(), c0 = arguments.next();
  const std::vector<Tensor> weights = arguments.rest(PyList_Size(args[at + 3]));
  const OptionalTensor batch_sizes = arguments.next(), lengths = arguments.next(), reset = arguments.next();
  return Call(text(args[0]), x, h0, c0, weights, args[at + 4] == Py_True, batch_sizes, lengths, reset);
}

// f(torch) -> a result, null with Python's error set, or None; for a call of that many arguments.
template <class F>
PyObject* guarded(Py_ssize_t count, Py_ssize_t expected, const F& f) {
  if (count != expected) return PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", expected, count);
  const Torch* const torch = Torch::get();
  if (torch == nullptr || !torch->has_handles()) Py_RETURN_NONE;
  try {
    return f(*torch);
  } catch (...) {
    return set_error();
  }
}

PyObject* none_or_error() {
  if (PyErr_Occurred() != nullptr) return nullptr;
  Py_RETURN_NONE;
}

PyObject* run_forward(PyObject* const* args, Py_ssize_t count, bool keeps) {
  return guarded(count, 11, [&](const Torch& torch) {
    Arguments arguments(torch, args);
    if (!add_layer(arguments, 1) || !arguments.take()) return none_or_error();
    const Call call = take_layer(arguments, args, 1);
    const Tape tape = parse_tape(text(args[9]));
    Results results;
    {
      const Unlocked others(is_long(call));
      const Outputs outputs = forward(call, keeps ? tape : Tape::kNone, args[10] == Py_True);
      results.add(outputs.y), results.add(outputs.h_n), results.add(outputs.c_n), results.add(outputs.cells);
      if (keeps) results.add(outputs.tape);
    }
    return results.take(torch);
  });
}

}  // namespace

PyObject* direct_layer(PyObject*, PyObject* const* args, Py_ssize_t count) { return run_forward(args, count, false); }

PyObject* direct_layer_forward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return run_forward(args, count, true);
}

PyObject* direct_layer_backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return guarded(count, 21, [&](const Torch& torch) {
    Arguments arguments(torch, args);
    const bool ordinary = arguments.add_optional(1, 4) && add_layer(arguments, 5) && arguments.add_one(13) &&
                          arguments.add_optional(14, 15);
    if (!ordinary || !arguments.take()) return none_or_error();
    const OptionalTensor dy = arguments.next(), dh_n = arguments.next(), dc_n = arguments.next();
    const Cotangents given{dy, dh_n, dc_n, arguments.next()};
    const Call call = take_layer(arguments, args, 5);
    const Tensor y = *arguments.next();
    const OptionalTensor cells = arguments.next();
    const Kept kept{y, cells, arguments.next(), parse_tape(text(args[16]))};
    const auto is_true = [&](int i) { return args[i] == Py_True; };
    Results results;
    {
      const Unlocked others(is_long(call));
      const Gradients found = backward(call, given, kept, {is_true(17), is_true(18), is_true(19), is_true(20), true});
      results.add(found.x), results.add(found.h0), results.add(found.c0);
      for (size_t i = 0; i < call.weights.size(); ++i) {
        results.add(found.weights.empty() ? std::nullopt : OptionalTensor(found.weights[i]));
      }
    }
    return results.take(torch);
  });
}

}  // namespace fastrnn
