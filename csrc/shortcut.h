// fastrnn._C.shortcut: a call without gradients, from what Python gave to what it gets back. What the call does not
// take it leaves to the operators, which say what is wrong with it, if anything.
#pragma once

#include "python.h"

namespace fastrnn {

// shortcut(cell, input, hx, params, layers, bidirectional, batch_first, most_rows, compute) -> what a module of that
// many layers, or a cell where `layers` is 0, returns for `input` and `hx`; where it is not to compute, the number of
// steps. None where it is a single step of more than most_rows rows or in two directions, or where anything is not an
// ordinary contiguous CPU tensor of the right size and dtype.
PyObject* shortcut(PyObject*, PyObject* const* args, Py_ssize_t count);

}  // namespace fastrnn
