"""What pyproject.toml cannot say: configs/ and tune_spaces/ lie in the wheel below visrec/."""

from setuptools import find_packages, setup

SHIPPED = {"visrec.configs": "configs", "visrec.tune_spaces": "tune_spaces"}

setup(
    packages=[*find_packages(include=["visrec", "visrec.*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={
        "visrec": ["py.typed", "evaluation/*.html", "retrieval/*.cpp", "models/*.cpp"],
        **{package: ["*.yaml"] for package in SHIPPED},
    },
)
