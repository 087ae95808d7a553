// Python's C API. What is data there is weak here, so that a program without Python can load this library for its
// operators: functions are looked up when they are called, and then there is a Python.
#pragma once

#include <Python.h>

#pragma weak PyDict_Type
#pragma weak PyExc_RuntimeError
#pragma weak PyExc_TypeError
#pragma weak PyList_Type
#pragma weak _PyWeakref_RefType
#pragma weak _Py_FalseStruct
#pragma weak _Py_NoneStruct
#pragma weak _Py_TrueStruct
