"""The rig that proves Triton kernels on a machine without a GPU.

* :mod:`rig.interpreter`: runs them, right to the bit and the programs of a launch at the same time, under
  ``TRITON_INTERPRET=1``; its parts are :mod:`rig.numbers`, :mod:`rig.memory` and :mod:`rig.scheduler`
* :mod:`rig.operators`: has them compute layers
* :mod:`rig.ptx`: orders of memory, which an interpreter cannot prove, in what the compiler made
* :mod:`bench.aot`: what the machine code costs
"""
