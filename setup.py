"""Hands settings.ini to setuptools: nbdev reads the same file, so name, version and requirements stand in one place."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8") if (here / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author=settings["author"],
    keywords=settings["keywords"],
    python_requires=f">={settings['min_python']},<3.14",
    install_requires=settings["requirements"].split(),
    extras_require={"dev": settings["dev_requirements"].split()},
    # kernels/ and weights/ stand beside fsrvos/ and are imported as fsrvos.kernels and fsrvos.weights, never by their bare names.
    packages=[*find_packages(include=["fsrvos", "fsrvos.*"], exclude=["fsrvos.kernels*", "fsrvos.weights*"]), "fsrvos.kernels", "fsrvos.weights"],
    package_dir={"fsrvos.kernels": "kernels", "fsrvos.weights": "weights"},
    package_data={"fsrvos.kernels": ["*.cpp"], "fsrvos.weights": ["*/*"]},
    entry_points={"console_scripts": settings["console_scripts"].split()},
    zip_safe=False,
)
