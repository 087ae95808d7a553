// To look them up in Python takes as long as a twentieth of a small step.

#include "weights.h"

namespace fastrnn {
namespace {

// An attribute that is a list, or null.
PyObject* list_in(PyObject* attributes, PyObject* name) {
  PyObject* const found = PyDict_GetItemWithError(attributes, name);
  return found != nullptr && PyList_CheckExact(found) ? found : nullptr;
}

bool is_any_in(PyObject* attributes, PyObject* names) {
  for (Py_ssize_t i = 0, n = PyTuple_Size(names); i < n; ++i) {
    if (PyDict_GetItemWithError(attributes, PyTuple_GetItem(names, i)) != nullptr) return true;
  }
  return false;
}

// The list, borrowed, or null.
PyObject* find(PyObject* attributes, PyObject* methods) {
  static PyObject* const parameters_name = PyUnicode_InternFromString("_parameters");
  static PyObject* const names_name = PyUnicode_InternFromString("_flat_weights_names");
  static PyObject* const flat_name = PyUnicode_InternFromString("_flat_weights");
  static PyObject* const references_name = PyUnicode_InternFromString("_flat_weight_refs");
  PyObject* const parameters = PyDict_GetItemWithError(attributes, parameters_name);
  PyObject* const names = list_in(attributes, names_name);
  PyObject* const flat = list_in(attributes, flat_name);
  PyObject* const references = list_in(attributes, references_name);
  if (parameters == nullptr || !PyDict_CheckExact(parameters)) return nullptr;  // one of another type may act otherwise
  if (names == nullptr || flat == nullptr || references == nullptr) return nullptr;
  const Py_ssize_t n = PyList_Size(names);
  if (PyList_Size(flat) != n || PyList_Size(references) != n || is_any_in(attributes, methods)) return nullptr;
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* const weight = PyList_GetItem(flat, i);
    if (PyDict_GetItemWithError(parameters, PyList_GetItem(names, i)) != weight) return nullptr;
    PyObject* const reference = PyList_GetItem(references, i);
    if (!PyWeakref_CheckRef(reference) || PyWeakref_GetObject(reference) != weight) return nullptr;
  }
  return flat;
}

}  // namespace

PyObject* flat_weights(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 2 || !PyDict_Check(args[0]) || !PyTuple_Check(args[1])) {
    PyErr_SetString(PyExc_TypeError, "flat_weights: expected a dict and a tuple");
    return nullptr;
  }
  PyObject* const found = find(args[0], args[1]);
  if (PyErr_Occurred() != nullptr) return nullptr;
  if (found == nullptr) Py_RETURN_NONE;
  Py_INCREF(found);
  return found;
}

}  // namespace fastrnn
