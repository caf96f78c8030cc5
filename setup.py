"""Build glue only: sources and flags live in CMakeLists.txt, metadata in pyproject.toml."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Hand the native build to CMake; setuptools only decides where the libraries land."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build every native library of the package into the folder of ``ext``, the first one."""
        if ext is not self.extensions[0]:
            return
        import torch

        folder = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        configure = [
            *("cmake", "-S", str(ROOT), "-B", self.build_temp, "-GNinja"),
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder}",
            f"-DSSLFAST_TORCH_ROOT={Path(torch.__file__).parent}",
            f"-DSSLFAST_PYTHON={sys.executable}",
            "-DSSLFAST_STORE=ON",
        ]
        for name in ("SSLFAST_CUDA", "SSLFAST_CUDA_ARCHS"):
            if name in os.environ:
                configure.append(f"-D{name}={os.environ[name]}")
        subprocess.check_call(configure)
        subprocess.check_call(["cmake", "--build", self.build_temp])

    def copy_extensions_to_source(self) -> None:
        """Bring along the CUDA library, which setuptools does not know of: it is built only where nvcc is."""
        super().copy_extensions_to_source()
        for library in Path(self.build_lib, "sslfast").glob("_C_cuda.so"):
            self.copy_file(str(library), str(ROOT / "sslfast" / library.name))

    def get_ext_filename(self, fullname: str) -> str:
        """Name a library of operators without an ABI suffix: it holds no CPython symbol. ``_store`` has one."""
        suffix = sysconfig.get_config_var("EXT_SUFFIX") if fullname.endswith("_store") else ".so"
        return fullname.replace(".", "/") + suffix


setup(
    packages=[
        *find_packages(include=["sslfast", "sslfast.*"]),
        "sslfast.kernels",
        "sslfast.bench",
        "sslfast.bench.cases",
    ],
    package_dir={"sslfast": "sslfast", "sslfast.kernels": "kernels", "sslfast.bench": "bench"},
    ext_modules=[Extension("sslfast._C", sources=[]), Extension("sslfast._store", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
