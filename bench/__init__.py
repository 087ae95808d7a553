"""Benchmarks of fastrnn: one harness, one results format, plots made from results alone.

``python -m bench cpu`` measures layers, ``python -m bench gpu`` those on a GPU, ``python -m bench plot RESULTS`` draws
what was measured, ``python -m bench report RESULTS`` tabulates it and says which targets it reaches, and ``python -m
bench workloads`` trains whole models with torch.nn and with fastrnn side by side.

* :mod:`bench.plan`: what a run is made of
* :mod:`bench.grid`, :mod:`bench.cpu`: which cells and shapes, and the benchmark that goes through them
* :mod:`bench.streaming`, :mod:`bench.packed`, :mod:`bench.resets`, :mod:`bench.tape`, :mod:`bench.scaling`: benchmarks
  beside the grid
* :mod:`bench.gpu`: layers on a GPU, and :mod:`bench.sanitize`: tiny ones for compute-sanitizer; ``bench/gpu.sh`` runs
  these, and the tests, on a machine with a GPU
* :mod:`bench.contestants`, :mod:`bench.onnx_stack`: who runs them, :mod:`bench.isas`: with which instruction set
* :mod:`bench.check`: the same numbers, or nothing is timed
* :mod:`bench.calls`, :mod:`bench.timing`: in turns, in one process
* :mod:`bench.roofline`: what the machine could do
* :mod:`bench.results`: what was measured, of what, by what, as JSON lines
* :mod:`bench.targets`: what is to be reached
* :mod:`bench.report`, :mod:`bench.plot`, :mod:`bench.curves`: tables and pictures of results, in one :mod:`bench.style`
* :mod:`bench.kernels`: what the Triton kernels are made of, by :mod:`bench.aot`, which compiles without a GPU, and
  :mod:`bench.assembly`, which finds the loops in machine code
* :mod:`bench.workloads`: end-to-end programs, on texts from :mod:`bench.corpus` mostly, with :mod:`bench.rounding` to
  say how far apart two trainings that compute the same may end
"""
