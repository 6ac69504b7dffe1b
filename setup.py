"""What pyproject.toml cannot say: configurations lie in the wheel below visrec/, with libraries.

Each C++ source is compiled for each instruction set of this architecture. Where that fails (no
compiler; an instruction set that a source or a compiler does not support), the library is left out.
"""

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

HERE = Path(__file__).parent
SHIPPED = {"visrec.configs": "configs", "visrec.tune_spaces": "tune_spaces"}
SOURCES = sorted(str(path.relative_to(HERE)) for path in HERE.glob("visrec/*/*.cpp"))


def _isas() -> ModuleType:
    """visrec/isas.py without the package, whose dependencies may not be installed yet."""
    spec = importlib.util.spec_from_file_location("isas", HERE / "visrec" / "isas.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


isas = _isas()


class Library(Extension):
    """A library of one source for one instruction set; it is not a Python module."""

    def __init__(self, source: str, isa: object) -> None:
        self.isa = isa
        path = Path(source).with_name(isas.Isa.library_name(isa, HERE / source))
        super().__init__(".".join(path.with_suffix("").parts), [source], optional=True)


class BuildLibraries(build_ext):
    """Compiles as visrec/native.py does on first use."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"

    def build_extension(self, ext: Library) -> None:
        if (compiler := isas.compiler()) is None:
            raise CompileError("no C++ compiler")
        target = Path(self.get_ext_fullpath(ext.name))
        try:
            isas.build(compiler, HERE / ext.sources[0], ext.isa, target)
        except subprocess.CalledProcessError as error:
            raise CompileError(error.stderr) from error


setup(
    packages=[*find_packages(include=["visrec", "visrec.*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={
        "visrec": [
            "py.typed",
            "evaluation/*.html",
            "cli/help_pages/*.txt",
            "*.h",
            "*/*.h",
            "*/*.cpp",
        ],
        **{package: ["*.yaml"] for package in SHIPPED},
    },
    ext_modules=[Library(source, isa) for source in SOURCES for isa in isas.of_machine()],
    cmdclass={"build_ext": BuildLibraries},
    # The libraries do not use Python's interface, so one wheel serves every version.
    options={"bdist_wheel": {"py_limited_api": "cp311"}, "build_ext": {"parallel": True}},
)
