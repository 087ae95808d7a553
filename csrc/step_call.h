// fastrnn._C.step: a stream's next step, from what Python gave to what it gets back. What the call does not take it
// leaves to the operators, which say what is wrong with it, if anything.
#pragma once

#include <Python.h>

namespace fastrnn {

// step(cell, input, hx, params, layers, batch_first, most_rows, compute) -> what a module of that many unidirectional
// layers, or a cell where `layers` is 0, returns for `input` and `hx`; only True where it is not to compute. None where
// it is no single step, has more rows than most_rows, or where anything is not an ordinary contiguous CPU tensor of the
// right size and dtype.
PyObject* step_call(PyObject*, PyObject* const* args, Py_ssize_t count);

// Looks up what steps need of torch; to be called once, while the module is loaded.
void prepare_step_calls();

}  // namespace fastrnn
