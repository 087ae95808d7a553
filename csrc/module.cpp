// The module fastrnn._C: loading it registers the operators (ops.cpp), and it says what the engine would do. No
// exception may leave these functions.

#include "python.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "call.h"
#include "cpu/cores.h"
#include "cpu/machine.h"
#include "cpu/tuned.h"
#include "direct.h"
#include "shortcut.h"
#include "tensors.h"
#include "weights.h"

namespace {

template <class F>
PyObject* guarded(const F& f) {
  try {
    return f();
  } catch (...) {
    return fastrnn::set_error();
  }
}

int64_t number_of(const std::string& dtype) {
  using torch::headeronly::ScalarType;
  if (dtype == "float64") return static_cast<int>(ScalarType::Double);
  if (dtype == "bfloat16") return static_cast<int>(ScalarType::BFloat16);
  return static_cast<int>(dtype == "float16" ? ScalarType::Half : ScalarType::Float);
}

fastrnn::cpu::Split split_of(int teams, int shares, int by_units) {
  return {static_cast<int16_t>(teams), static_cast<int16_t>(shares), by_units != 0};
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
  int directions = 1, threads = 1, trains = 0, packed = 0, backward = 0;
  if (!PyArg_ParseTuple(args, "sLLLLisi|ppp", &cell, &steps, &batch, &inputs, &hidden, &directions, &dtype, &threads,
                        &trains, &packed, &backward)) {
    return nullptr;
  }
  return guarded([&] {
    using namespace fastrnn::cpu;
    const bool wide = std::strcmp(dtype, "float64") == 0;
    const int lanes = wide ? isa().f64->lanes : isa().f32->lanes;
    const Cell of = fastrnn::parse_cell(cell);
    Problem problem =
        problem_of(of, {steps, batch, inputs, hidden}, directions, lanes, wide ? 8 : 4, backward != 0, threads);
    const Kind kind{static_cast<int>(of), number_of(dtype), directions, 0, trains, packed};
    problem.split = split_for({kind, {steps, batch, inputs, hidden}}, threads);
    std::string why;
    const std::string how =
        std::string(isa().name) + " on " + machine().kind + ", " + describe(plan_here(problem, &why));
    return PyUnicode_FromString((why.empty() ? how : how + " (" + why + ")").c_str());
  });
}

PyObject* cpu_machine(PyObject*, PyObject* args) {
  using namespace fastrnn::cpu;
  Cpu cpu;
  const char* vendor = nullptr;
  long long second_level = 0;
  if (!PyArg_ParseTuple(args, "|siiL", &vendor, &cpu.family, &cpu.model, &second_level)) return nullptr;
  return guarded([&] {
    if (vendor == nullptr) return PyUnicode_FromString(describe(machine()).c_str());
    cpu.vendor = vendor, cpu.second_level = second_level;
    return PyUnicode_FromString(describe(machine_of(cpu)).c_str());
  });
}

// {cell, dtype, directions, layers, trains, packed, threads, cores, least, most (T, B, I and H each), steps, by_torch,
// teams, team_shares, by_units}
bool read_tuned(PyObject* list, std::vector<fastrnn::cpu::Tuned>& to) {
  for (Py_ssize_t i = 0; i < PyList_Size(list); ++i) {
    const char *cell = nullptr, *dtype = nullptr;
    fastrnn::cpu::Tuned t{};
    long long n[4], least[4], most[4], threads = 0, cores = 0, steps = 0;
    int by_torch = 0, teams = 0, shares = 0, by_units = 0;
    if (!PyArg_ParseTuple(PyList_GetItem(list, i), "ssLLLLLL(LLLL)(LLLL)Lpiip", &cell, &dtype, &n[0], &n[1], &n[2],
                          &n[3], &threads, &cores, &least[0], &least[1], &least[2], &least[3], &most[0], &most[1],
                          &most[2], &most[3], &steps, &by_torch, &teams, &shares, &by_units)) {
      return false;
    }
    t.kind = {static_cast<int>(fastrnn::parse_cell(cell)), number_of(dtype), n[0], n[1], n[2], n[3]};
    t.threads = threads, t.cores = cores, t.steps = steps, t.by_torch = by_torch != 0;
    std::copy(least, least + 4, t.least), std::copy(most, most + 4, t.most);
    t.split = split_of(teams, shares, by_units);
    to.push_back(t);
  }
  return true;
}

PyObject* cpu_tell(PyObject*, PyObject* args) {
  PyObject *calls = nullptr, *layers = nullptr;
  if (!PyArg_ParseTuple(args, "OO", &calls, &layers)) return nullptr;
  return guarded([&]() -> PyObject* {
    fastrnn::cpu::Tuning tuning;
    if (!read_tuned(calls, tuning.calls) || !read_tuned(layers, tuning.layers)) return nullptr;
    fastrnn::cpu::tell_tuning(std::move(tuning));
    Py_RETURN_NONE;
  });
}

PyObject* cpu_whose(PyObject*, PyObject* args) {
  const char *cell = nullptr, *dtype = nullptr;
  long long directions = 0, layers = 0, trains = 0, packed = 0, sizes[4];
  int threads = 0;
  if (!PyArg_ParseTuple(args, "ssLLLL(LLLL)i", &cell, &dtype, &directions, &layers, &trains, &packed, &sizes[0],
                        &sizes[1], &sizes[2], &sizes[3], &threads)) {
    return nullptr;
  }
  return guarded([&] {
    static const char* const kNames[] = {"unknown", "as ever", "ours", "torch"};
    const fastrnn::cpu::Kind kind{
        static_cast<int>(fastrnn::parse_cell(cell)), number_of(dtype), directions, layers, trains, packed};
    const auto whose = fastrnn::cpu::whose({kind, {sizes[0], sizes[1], sizes[2], sizes[3]}}, threads);
    return PyUnicode_FromString(kNames[static_cast<int>(whose)]);
  });
}

PyObject* cpu_force(PyObject*, PyObject* args) {
  int way = 0, teams = 0, shares = 0, by_units = 0;
  if (!PyArg_ParseTuple(args, "iiip", &way, &teams, &shares, &by_units)) return nullptr;
  using fastrnn::cpu::Whose;
  const Whose whose = way == 0 ? Whose::kUnknown : way == 1 ? Whose::kOurs : Whose::kTorchs;
  fastrnn::cpu::force_way(whose, split_of(teams, shares, by_units));
  Py_RETURN_NONE;
}

PyObject* cpu_own(PyObject*, PyObject* on) {
  fastrnn::cpu::keep_own_numbers(on == Py_True);
  Py_RETURN_NONE;
}

PyObject* cpu_tuned(PyObject*, PyObject*) { return PyBool_FromLong(fastrnn::cpu::tuned.load()); }

PyObject* cpu_cores(PyObject*, PyObject*) {
  return guarded([] { return PyLong_FromLong(fastrnn::cpu::cores()); });
}

PyObject* cpu_assume(PyObject*, PyObject* args) {
  int cores = 0, busy = 0;
  if (!PyArg_ParseTuple(args, "ip", &cores, &busy)) return nullptr;
  fastrnn::cpu::assume_cores(cores, busy != 0);
  Py_RETURN_NONE;
}

PyObject* cpu_quota(PyObject*, PyObject* args) {
  const char* root = nullptr;
  if (!PyArg_ParseTuple(args, "s", &root)) return nullptr;
  return guarded([&] { return PyFloat_FromDouble(fastrnn::cpu::quota(root)); });
}

PyObject* cpu_ledger(PyObject*, PyObject* entries) {
  return guarded([&]() -> PyObject* {
    fastrnn::cpu::Ledger ledger;
    PyObject* const found = PyList_New(0);
    for (Py_ssize_t i = 0; i < PyList_Size(entries); ++i) {
      long long alone = 0, took = 0, time = 0;
      if (!PyArg_ParseTuple(PyList_GetItem(entries, i), "LLL", &alone, &took, &time)) {
        Py_DECREF(found);
        return nullptr;
      }
      ledger.enter(alone, took, time);
      PyObject* const until = PyLong_FromLongLong(ledger.until());
      PyList_Append(found, until);
      Py_XDECREF(until);
    }
    return found;
  });
}

PyMethodDef methods[] = {
    {"cpu_isa", cpu_isa, METH_NOARGS, "The instruction set in use."},
    {"cpu_isas", cpu_isas, METH_NOARGS, "The instruction sets that this CPU can run, best first."},
    {"cpu_plan", cpu_plan, METH_VARARGS, "How a forward pass would be run now: instruction set and threads."},
    {"cpu_machine", cpu_machine, METH_VARARGS,
     "What plans know of this machine, or of one whose CPUID says so: vendor, family, model, bytes of cache."},
    {"cpu_tell", cpu_tell, METH_VARARGS, "Hand over what was measured: of calls, and of the layers in them."},
    {"cpu_whose", cpu_whose, METH_VARARGS, "Who is to compute a call: \"ours\", \"torch\" or \"as ever\"."},
    {"cpu_force", cpu_force, METH_VARARGS,
     "Have all be computed by ours (1), split so, or by torch (2); 0: as planned."},
    {"cpu_own", cpu_own, METH_O, "Whether torch's layers are kept out."},
    {"cpu_tuned", cpu_tuned, METH_NOARGS, "Whether anything was measured, or is forced, or nobody has looked yet."},
    {"cpu_cores", cpu_cores, METH_NOARGS, "The cores that threads of this process may have."},
    {"cpu_assume", cpu_assume, METH_VARARGS,
     "For tests: have there be as many cores, and others keep one busy or none; 0 cores: as it is."},
    {"cpu_quota", cpu_quota, METH_VARARGS, "CPU seconds a second that control groups allow, by files below a folder."},
    {"cpu_ledger", cpu_ledger, METH_O,
     "After each entry (alone, took, time) of a ledger: until when one thread works alone; 0: threads work."},
    {"shortcut", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(fastrnn::shortcut)), METH_FASTCALL,
     "A call of a stack of layers, or of a cell, without gradients."},
    {"layer", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(fastrnn::direct_layer)), METH_FASTCALL,
     "fastrnn::layer of ordinary tensors, past the dispatcher."},
    {"layer_forward", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(fastrnn::direct_layer_forward)),
     METH_FASTCALL, "fastrnn::layer_forward of ordinary tensors, past the dispatcher."},
    {"layer_backward", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(fastrnn::direct_layer_backward)),
     METH_FASTCALL, "fastrnn::layer_backward of ordinary tensors, past the dispatcher."},
    {"flat_weights", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(fastrnn::flat_weights)), METH_FASTCALL,
     "The tensors that a layer computes with, where nothing about them is out of the ordinary."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", "The C++ engine of fastrnn.", -1, methods, nullptr, nullptr, nullptr, nullptr};
  fastrnn::Torch::get();  // which looks up what is needed of torch
  return PyModule_Create(&definition);
}
