// Python's C API. What is data there is weak here, so that a program without Python can load this library for its
// operators: functions are looked up when they are called, and then there is a Python.
#pragma once

#include <Python.h>

#include <cstddef>
#include <exception>
#include <new>

#pragma weak PyDict_Type
#pragma weak PyExc_RuntimeError
#pragma weak PyExc_TypeError
#pragma weak PyList_Type
#pragma weak _PyWeakref_RefType
#pragma weak _Py_FalseStruct
#pragma weak _Py_NoneStruct
#pragma weak _Py_TrueStruct

namespace fastrnn {

// Python's error for the exception that is being handled; returns null, as a function of Python does then.
inline std::nullptr_t set_error() {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& e) {
    PyErr_SetString(PyExc_RuntimeError, e.what());
  }
  return nullptr;
}

}  // namespace fastrnn
