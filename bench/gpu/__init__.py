"""Layers on a GPU: ``python -m bench gpu`` measures fastrnn against torch.nn, which is cuDNN there.

``bench/gpu.sh`` runs this and the tests in two short calls, ``python -m bench gpu-decide`` says what follows.

* :mod:`bench.gpu.cases`: what is measured, in which order
* :mod:`bench.gpu.contestants`: layers on the device, and the strategies of fastrnn's kernels one by one
* :mod:`bench.gpu.clock`: time by CUDA events, of calls or of replays of a graph, and the setting of TF32
* :mod:`bench.gpu.memory`: what a training call takes of the device's memory
* :mod:`bench.gpu.measure`: the check and the rows of a case
* :mod:`bench.gpu.strategies`: the strategies by name, and which of them are left out
* :mod:`bench.gpu.latency`: what the device takes for the least there is to do
* :mod:`bench.gpu.meeting`, :mod:`bench.gpu.cluster`: what it takes that programs hand each other numbers
* :mod:`bench.gpu.constants`: the same as the constants of the kernels' cost model, and where the plan finds them
* :mod:`bench.gpu.targets`: what is to be reached, and against which of cuDNN's algorithms
* :mod:`bench.gpu.command`: the command, which ends in time and says what it left out
* :mod:`bench.gpu.stages`, :mod:`bench.gpu.running`: the groups of the two calls, and how they are run
* :mod:`bench.gpu.versions`, :mod:`bench.gpu.smoke`: what comes first in them
* :mod:`bench.gpu.precompile`: the kernels of all that (:mod:`bench.gpu.wanted`) compiled without a GPU, with their
  launchers (:mod:`bench.gpu.launchers`), and carried to one (:mod:`bench.gpu.carried`)
* :mod:`bench.gpu.desk`: a machine without a GPU taken for one with an H100, to prove all of this at
* :mod:`bench.gpu.decide`: records, constants, targets and tables from rows

The rows are those of the CPU's benchmarks, with a device in their provenance, so that ``report`` and ``plot`` show
them, on a machine without a GPU as well.
"""
