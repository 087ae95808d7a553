// The module fastrnn._C: loading it registers the operators (ops.cpp), and it says what the engine would do. No
// exception may leave these functions.

#include <Python.h>

#include <cstring>
#include <string>

#include "call.h"
#include "shortcut.h"

namespace {

template <class F>
PyObject* guarded(const F& f) {
  try {
    return f();
  } catch (...) {
    return fastrnn::set_error();
  }
}

PyObject* cpu_isa(PyObject*, PyObject*) {
  return guarded([] { return PyUnicode_FromString(fastrnn::cpu::isa().name); });
}

PyObject* cpu_isas(PyObject*, PyObject*) {
  return guarded([] {
    PyObject* names = PyList_New(0);
    for (const fastrnn::cpu::Isa* const* isa = fastrnn::cpu::isas(); names != nullptr && *isa != nullptr; ++isa) {
      PyObject* const name = PyUnicode_FromString((*isa)->name);
      if (name == nullptr || PyList_Append(names, name) != 0) Py_CLEAR(names);
      Py_XDECREF(name);
    }
    return names;
  });
}

PyObject* cpu_plan(PyObject*, PyObject* args) {
  const char *cell = nullptr, *dtype = nullptr;
  long long steps = 0, batch = 0, inputs = 0, hidden = 0;
  int directions = 1, threads = 1;
  if (!PyArg_ParseTuple(args, "sLLLLisi", &cell, &steps, &batch, &inputs, &hidden, &directions, &dtype, &threads)) {
    return nullptr;
  }
  return guarded([&] {
    using namespace fastrnn::cpu;
    const bool wide = std::strcmp(dtype, "float64") == 0;
    const int lanes = wide ? isa().f64->lanes : isa().f32->lanes;
    const Problem problem = problem_of(fastrnn::parse_cell(cell), {steps, batch, inputs, hidden}, directions, lanes,
                                       wide ? 8 : 4, false, pool_usable() ? threads : 1);
    return PyUnicode_FromString((std::string(isa().name) + ", " + describe(make_plan(problem))).c_str());
  });
}

PyMethodDef methods[] = {
    {"cpu_isa", cpu_isa, METH_NOARGS, "The instruction set in use."},
    {"cpu_isas", cpu_isas, METH_NOARGS, "The instruction sets that this CPU can run, best first."},
    {"cpu_plan", cpu_plan, METH_VARARGS, "How a forward pass would be run: instruction set and threads."},
    {"shortcut", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(fastrnn::shortcut)), METH_FASTCALL,
     "A call of a stack of layers, or of a cell, without gradients."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", "The C++ engine of fastrnn.", -1, methods, nullptr, nullptr, nullptr, nullptr};
  fastrnn::prepare_shortcuts();
  return PyModule_Create(&definition);
}
