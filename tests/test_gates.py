"""The gates catch what they are there for: each broken operator below fails, and the sound one passes."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sslfast import testing
from sslfast.testing import GateFailure, OpCase, poisoned

LIBRARY = torch.library.Library("sslfast_broken", "DEF")


def define(name, implementation, backward=None):
    LIBRARY.define(f"{name}(Tensor x) -> Tensor")
    LIBRARY.impl(name, implementation, "CPU")
    torch.library.register_fake(f"sslfast_broken::{name}", lambda x: torch.empty_like(x), lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"sslfast_broken::{name}", backward, lib=LIBRARY)
    return getattr(torch.ops.sslfast_broken, name)


def half_written(x):
    result = torch.empty_like(x)
    result[: x.shape[0] // 2 + 1] = 2 * x[: x.shape[0] // 2 + 1]
    return result


SOUND = define("sound", lambda x: 2 * x, lambda ctx, grad: 2 * grad)
NO_GRADIENT = define("no_gradient", lambda x: 2 * x)
WRONG_GRADIENT = define("wrong_gradient", lambda x: 2 * x, lambda ctx, grad: 2.001 * grad)
WRONG_VALUE = define("wrong_value", lambda x: 2.001 * x, lambda ctx, grad: 2.001 * grad)
UNWRITTEN = define("unwritten", half_written, lambda ctx, grad: 2 * grad)


def case(function):
    return OpCase(
        name="doubled",
        operators=(),
        function=function,
        reference=lambda x: 2 * x,
        inputs=lambda size: (torch.arange(1, 1 + size[0], dtype=torch.float64),),
        sizes=((5,), (12,)),
        epsilon={torch.float64: 1e-12, torch.float32: 1e-6},
        second_order=False,
    )


def test_a_sound_operator_passes():
    testing.check_op(case(SOUND))


def test_no_gradient_is_caught():
    with pytest.raises(GateFailure, match="no gradient"):
        testing.gate_reference(case(NO_GRADIENT))
    with pytest.raises(GateFailure, match="gradcheck"):
        testing.gate_gradcheck(case(NO_GRADIENT))
    with pytest.raises(GateFailure):
        testing.check_op(case(NO_GRADIENT))


def test_a_wrong_gradient_is_caught():
    with pytest.raises(GateFailure, match="gradient of input 0 is off by"):
        testing.gate_reference(case(WRONG_GRADIENT))
    with pytest.raises(GateFailure, match="gradcheck"):
        testing.gate_gradcheck(case(WRONG_GRADIENT))


def test_a_wrong_value_is_caught():
    with pytest.raises(GateFailure, match="the output is off by"):
        testing.gate_reference(case(WRONG_VALUE))


def test_a_detached_result_is_caught():
    with pytest.raises(GateFailure, match="no gradient"):
        testing.gate_reference(case(lambda x: (2 * x).detach()))


def test_an_input_without_gradient_is_caught():
    two = replace(
        case(lambda x, y: 2 * x + y.detach()),
        reference=lambda x, y: 2 * x + y,
        inputs=lambda size: (torch.ones(size), torch.ones(size)),
    )
    with pytest.raises(GateFailure, match="input 1 gets no gradient"):
        testing.gate_reference(two)


def test_an_unwritten_output_is_caught():
    with pytest.raises(GateFailure, match="NaN: memory that was never written"):
        testing.gate_reference(case(UNWRITTEN))


def test_an_unwritten_gradient_is_caught():
    function = define("unwritten_gradient", lambda x: 2 * x, lambda ctx, grad: half_written(grad))
    with pytest.raises(GateFailure, match="gradient of input 0 holds .* NaN"):
        testing.gate_reference(case(function))


def test_a_graph_break_is_caught():
    def broken(x):
        torch._dynamo.graph_break()
        return SOUND(x)

    with pytest.raises(GateFailure, match="fullgraph"):
        testing.gate_compile(case(broken))


def test_a_missing_opcheck_sample_is_caught():
    with pytest.raises(GateFailure, match="no arguments for nt_xent_fwd"):
        testing.gate_opcheck(replace(case(SOUND), operators=("nt_xent_fwd",)))


def test_a_lying_fake_is_caught():
    LIBRARY.define("lying(Tensor x) -> Tensor")
    LIBRARY.impl("lying", lambda x: 2 * x, "CPU")
    torch.library.register_fake("sslfast_broken::lying", lambda x: x.new_empty(1), lib=LIBRARY)
    with pytest.raises(Exception, match="(?i)shape|size|mismatch|fake"):
        torch.library.opcheck(torch.ops.sslfast_broken.lying.default, (torch.ones(4),))


@pytest.fixture(scope="module")
def unwritten(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    library = tmp_path_factory.mktemp("native") / "unwritten.so"
    root = Path(torch.__file__).parent
    flags = [
        "-std=c++20",
        "-O1",
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
        f"-I{root}/include",
    ]
    source = Path(__file__).parent / "native" / "unwritten.cpp"
    subprocess.run([compiler, *flags, str(source), "-o", str(library), f"-L{root}/lib", "-ltorch_cpu"], check=True)
    torch.ops.load_library(library)
    return torch.ops.sslfast_unwritten


@pytest.mark.parametrize("name", ["with_empty_like", "with_new_empty"])
def test_poison_reaches_what_cpp_allocates(unwritten, name):
    with poisoned():
        result = getattr(unwritten, name)(torch.ones(1000, dtype=torch.float64))
    assert result[:-1].eq(2).all()
    assert result[-1].isnan()


def test_poison_leaves_the_settings_as_they_were():
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    with pytest.raises(KeyError), poisoned():
        raise KeyError
    after = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    assert after == before
