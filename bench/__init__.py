"""Benchmarks of fastrnn: one harness, one results format, plots made from results alone.

``python -m bench cpu`` measures layers, ``python -m bench plot RESULTS`` draws what was measured, and
``python -m bench.workloads.language_model`` trains a language model with torch.nn and with fastrnn side by side.

* :mod:`bench.grid`: which cells and shapes
* :mod:`bench.contestants`: who runs them
* :mod:`bench.check`: the same numbers, or nothing is timed
* :mod:`bench.timing`: in turns, in one process
* :mod:`bench.results`: what was measured, of what, by what, as JSON lines
* :mod:`bench.report`, :mod:`bench.plot`: tables and pictures of results
* :mod:`bench.workloads`: end-to-end programs, on texts from :mod:`bench.corpus`, with :mod:`bench.rounding` to say how
  far apart two trainings that compute the same may end
"""
