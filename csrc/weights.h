// fastrnn._C.flat_weights: the tensors that a layer computes with, where nothing about them is out of the ordinary.
#pragma once

#include "python.h"

namespace fastrnn {

// flat_weights(attributes, methods) -> the list `_flat_weights` in the attributes of a layer of torch.nn's, if its
// tensors are the layer's parameters of the names in `_flat_weights_names`, and torch.nn's forward would take it as it
// is; None otherwise, and where any of `methods` is among the attributes.
PyObject* flat_weights(PyObject*, PyObject* const* args, Py_ssize_t count);

}  // namespace fastrnn
