// The operators past the dispatcher, for which Python and torch take longer than a short sequence does.
#pragma once

#include "python.h"

namespace fastrnn {

// Take what the operators of fastrnn/_ops.py take. None where anything is not an ordinary tensor on the CPU, or torch
// has no way for it: then the operator is to be called. Nothing is seen by modes, and gradients are not recorded.
//
// direct_layer and direct_layer_forward return what the operators return, None in the place of tensors that hold
// nothing. direct_layer_backward returns the gradients of x, h0, c0 and of each weight, None where there is none.
PyObject* direct_layer(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* direct_layer_forward(PyObject*, PyObject* const* args, Py_ssize_t count);
PyObject* direct_layer_backward(PyObject*, PyObject* const* args, Py_ssize_t count);

}  // namespace fastrnn
