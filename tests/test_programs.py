"""What compilers make of a model and write to a file: computed by fresh processes, with Python and without."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn import _ops

OPERATORS = [_ops.layer, _ops.layer_forward, _ops.layer_backward]
LOADERS = {
    "export": "torch.export.load(path).module()",
    "aoti": "torch._inductor.aoti_load_package(path)",
}


class Net(nn.Module):
    """Every layer and every cell."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([fastrnn.RNN(5, 5), fastrnn.GRU(5, 5), fastrnn.LSTM(5, 5)])
        self.cells = nn.ModuleList([fastrnn.RNNCell(5, 5), fastrnn.GRUCell(5, 5), fastrnn.LSTMCell(5, 5)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x, _ = layer(x)
        rnn, gru, lstm = self.cells
        return lstm(gru(rnn(x[-1])))[0]


def exported(x: Tensor) -> tuple[torch.export.ExportedProgram, Tensor]:
    net = Net().eval()
    with torch.no_grad():
        return torch.export.export(net, (x,)), net(x)


def fresh(first: str, how: str, path: Path) -> "subprocess.CompletedProcess[str]":
    """A process that loads a program, runs it and checks its output."""
    code = f"""
import sys, torch, torch._inductor
{first}
path = {str(path)!r}
x, expected = torch.load(path + ".xy")
with torch.no_grad():
    torch.testing.assert_close({LOADERS[how]}(x), expected)
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("op", OPERATORS, ids=str)
def test_results_are_tensors(op: torch._ops.OpOverload) -> None:
    """And no lists, which Inductor's C++ wrapper does not take; a schema is the engine's, not Python's."""
    assert all(str(result.type) == "Tensor" for result in op._schema.returns)
    assert not op._defined_in_python


@pytest.mark.parametrize("how", ["export", pytest.param("aoti", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # torch's own
def test_a_saved_program(how: str, tmp_path: Path) -> None:
    path, x = tmp_path / "program.pt2", torch.randn(6, 3, 5)
    program, expected = exported(x)
    if how == "export":
        torch.export.save(program, path)
    else:
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    torch.save((x, expected), f"{path}.xy")
    for first in ("import fastrnn", f"torch.ops.load_library({fastrnn._C.__file__!r})"):
        run = fresh(first, how, path)
        assert run.returncode == 0, run.stderr
    run = fresh("", how, path)
    assert run.returncode != 0
    assert "fastrnn" in run.stderr, "it names what is missing"


def test_an_exported_cell_needs_no_fastrnn() -> None:
    for cell in Net().cells:
        x = torch.randn(3, 5)
        program = torch.export.export(cell, (x,))
        assert not [node for node in program.graph.nodes if "fastrnn" in str(node.target)]
        torch.testing.assert_close(program.module()(x), cell(x))


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_program_without_python_loads_the_operators(tmp_path: Path) -> None:
    source, program = tmp_path / "load.c", tmp_path / "load"
    source.write_text("""
#include <dlfcn.h>
#include <stdio.h>
int main(int count, char** paths) {
  for (int i = 1; i < count; ++i)
    if (dlopen(paths[i], RTLD_LAZY | RTLD_GLOBAL) == NULL) return puts(dlerror()), 1;
  return 0;
}
""")
    subprocess.run(["cc", str(source), "-o", str(program), "-ldl"], check=True)
    torch_library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    run = subprocess.run([str(program), str(torch_library), fastrnn._C.__file__], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one direction", "both directions"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of Inductor's own
def test_training_with_inductors_wrapper_in_cpp(bidirectional: bool) -> None:
    import torch._inductor.config

    net = fastrnn.LSTM(5, 7, bidirectional=bidirectional)
    x, found = torch.randn(6, 3, 5), []
    with torch._inductor.config.patch(cpp_wrapper=True):
        for module in (torch.compile(net, fullgraph=True), net):
            net.zero_grad()
            module(x)[0].square().sum().backward()
            found.append([p.grad.clone() for p in net.parameters()])
    torch._dynamo.reset()
    torch.testing.assert_close(*found)
